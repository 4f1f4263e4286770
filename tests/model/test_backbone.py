"""Loading in diffusers' folder layout, the built-in tiny backbone, and pictures and prompts through both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from toy import make_transformer
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

from hub_server import LocalHub
from xwam_ft.bundled import bundled
from xwam_ft.errors import UserError
from xwam_ft.media import read_rgb
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import Backbone, load_backbone
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.tiny import TINY, tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan2.2-TI2V's classes and form (residual VAE of factor 16 on patches, several shards), at toy size."""
    root = tmp_path_factory.mktemp("wan")
    make_transformer().save_pretrained(root / "transformer", max_shard_size="60KB")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[False, True, True], latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[0.5, 1.0, 2.0, 1.5], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
            scale_factor_temporal=4, scale_factor_spatial=16,
        )  # fmt: skip
        encoder = UMT5EncoderModel(UMT5Config(vocab_size=384, d_model=10, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    vae.save_pretrained(root / "vae")
    encoder.save_pretrained(root / "text_encoder")
    ByT5Tokenizer(model_max_length=24).save_pretrained(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def wan(folder: Path) -> Backbone:
    return load_backbone(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", dtype="float32")


def pictures(count: int, frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth random videos in [-1, 1]: ordinary pictures have more of large shapes than of noise."""
    g = torch.Generator().manual_seed(0)
    coarse = 0.5 * torch.randn(count, 3, 2, 4, 5, generator=g) + 0.3 * torch.randn(count, 3, 1, 1, 1, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear").clamp(-1, 1)


def as_pixels(videos: torch.Tensor, views: int) -> torch.Tensor:
    return ((videos + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).unflatten(0, (-1, views))


def test_a_folder_gives_back_the_weights_it_was_saved_from(wan: Backbone) -> None:
    saved, loaded = make_transformer().state_dict(), wan.transformer.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert wan.trained
    assert wan.text_len == 24
    modules = (wan.transformer, wan.vae, wan.text_encoder)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_bfloat16_keeps_what_computes_in_float32(folder: Path) -> None:
    for path in (str(folder), "tiny"):
        backbone = load_backbone(path, parts=("transformer", "vae"))
        dtypes = {name: parameter.dtype for name, parameter in backbone.transformer.named_parameters()}
        assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
        assert dtypes["blocks.0.scale_shift_table"] == torch.float32
        assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
        assert {parameter.dtype for parameter in backbone.vae.parameters()} == {torch.float32}
        assert backbone.text_encoder is None


def test_latents_are_the_normalised_mode_of_each_view(wan: Backbone) -> None:
    videos = pictures(4, 5, 32, 64)
    pixels = as_pixels(videos, views=2)
    latents = wan.encode_video(pixels, batch=3)
    assert tuple(latents.shape) == (2, *wan.latent_shape(2, 5, 32, 64)) == (2, 4, 2, 2, 2, 4)
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 1.0, 2.0, 1.5])
    one = pixels[1, 0].movedim(-1, 0)[None].float() / 127.5 - 1
    with torch.no_grad():
        raw = wan.vae.encode(one).latent_dist.mode()[0]
    wanted = (raw - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    torch.testing.assert_close(latents[1, :, :, 0], wanted, rtol=0, atol=1e-5)
    with torch.no_grad():
        decoded = wan.vae.decode(raw[None]).sample[0]
    pixels_out = wan.decode_video(latents, batch=3)
    assert tuple(pixels_out.shape) == (2, 2, 5, 32, 64, 3)
    difference = pixels_out[1, 0].movedim(-1, 0).float() - (decoded + 1) * 127.5
    assert float(difference.abs().max()) < 0.51


@pytest.mark.parametrize("name", ["wan", "tiny"])
def test_the_first_latent_frame_depends_on_the_first_frame_alone(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    videos = pictures(2, 5, 32, 64)
    clip, first = backbone.encode_pictures(videos), backbone.encode_pictures(videos[:, :, :1])
    torch.testing.assert_close(clip[:, :, :1], first, rtol=0, atol=1e-5)


def test_all_text_positions_are_the_encoders_outputs_the_padded_ones_too(wan: Backbone) -> None:
    embeddings = wan.encode_prompts(["open  the\ndoor", ""])
    assert tuple(embeddings.shape) == (2, 24, 10)
    ids = wan.tokenizer("open the door").input_ids
    mask = torch.zeros(1, 24, dtype=torch.long)
    padded = torch.zeros(1, 24, dtype=torch.long)
    mask[:, : len(ids)], padded[:, : len(ids)] = 1, torch.tensor(ids)
    with torch.no_grad():
        wanted = wan.text_encoder(padded, mask).last_hidden_state
    torch.testing.assert_close(embeddings[:1], wanted)
    assert float(embeddings[:, -1].abs().min()) > 0


def test_a_prompt_that_is_cut_is_named_in_the_log(wan: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    wan.encode_prompts(["put the red cube into the blue bowl"])
    assert "prompt of 36 tokens cut to 24: 'put the red cube into the blue bowl'" in caplog.text


def test_the_fingerprint_follows_the_content(folder: Path, wan: Backbone, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert load_backbone(str(copy), parts=("vae",)).fingerprint == wan.fingerprint
    weights = sorted((copy / "transformer").glob("*.safetensors"))[0]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = load_backbone(str(copy), parts=("vae",))
    assert changed.fingerprint != wan.fingerprint
    assert changed.part_fingerprint("vae") == wan.part_fingerprint("vae")
    assert load_backbone("tiny", parts=("vae",)).fingerprint == load_backbone("tiny", dtype="float32").fingerprint


@pytest.mark.parametrize(
    ("remove", "sentence"),
    [
        ("vae", r"the part 'vae' is missing \(no vae/config.json\)"),
        ("tokenizer/tokenizer_config.json", r"the part 'tokenizer' is missing \(no tokenizer/tokenizer_config.json\)"),
        ("text_encoder/model.safetensors", r"the part 'text_encoder' is incomplete \(no text_encoder/\*.safetensors\)"),
        ("shard", r"the part 'transformer' is incomplete \(no transformer/diffusion_pytorch_model-00001-of-"),
    ],
)
def test_an_incomplete_folder_is_named_part_by_part(folder: Path, tmp_path: Path, remove: str, sentence: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    gone = sorted((copy / "transformer").glob("*.safetensors"))[0] if remove == "shard" else copy / remove
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=sentence + r".*Wan-AI/Wan2\.2-TI2V-5B-Diffusers"):
        load_backbone(str(copy))


def test_a_part_that_is_no_wan_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = copy / "vae" / "config.json"
    told = json.loads(config.read_text())
    config.write_text("{not json")
    with pytest.raises(UserError, match=r"vae/config\.json: is not valid JSON"):
        load_backbone(str(copy), parts=("vae",))
    config.write_text(json.dumps({**told, "z_dim": "many"}))
    with pytest.raises(UserError, match="the part 'vae' cannot be loaded"):
        load_backbone(str(copy), parts=("vae",))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, local_hub: LocalHub) -> None:
    with pytest.raises(UserError, match=r"no such folder.*or 'tiny'"):
        load_backbone(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"nobody/none: is not there: neither a folder here nor on the Hub"):
        load_backbone("nobody/none")
    local_hub.stop()
    with pytest.raises(UserError, match=r"nobody/none of the Hub: cannot be fetched"):
        load_backbone("nobody/none")


def test_a_backbone_of_the_hub_is_that_of_its_folder(local_hub: LocalHub) -> None:
    old = local_hub.add("models/org/wan", tiny_folder())
    here = load_backbone(TINY, parts=("vae",))
    there = load_backbone("org/wan", parts=("vae",))
    assert there.part_fingerprint("vae") == here.part_fingerprint("vae")
    assert not [name for name in local_hub.fetched() if name.startswith(("transformer/diff", "text_encoder"))]
    local_hub.repos["models/org/wan"].commit({"README.md": b"emptied"})
    assert load_backbone(f"org/wan@{old}", parts=("vae",)).part_fingerprint("vae") == here.part_fingerprint("vae")
    with pytest.raises(UserError, match="the part 'vae' is missing"):
        load_backbone("org/wan", parts=("vae",))


def test_pictures_the_vae_cannot_divide_are_refused(wan: Backbone) -> None:
    with pytest.raises(UserError, match=r"pictures of 48x64.*height a multiple of 32 and their width one of 32"):
        wan.encode_pictures(torch.zeros(1, 3, 5, 48, 64))
    with pytest.raises(UserError, match=r"clips of 6 frames.*1 \+ a multiple of 4"):
        wan.encode_pictures(torch.zeros(1, 3, 6, 32, 64))


def test_the_untrained_transformer_is_the_same_on_every_call_and_leaves_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = (load_backbone("tiny-untrained", dtype="float32", parts=("transformer",)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    ours, other = first.transformer.state_dict(), second.transformer.state_dict()
    assert all(torch.equal(ours[key], other[key]) for key in ours)
    assert first.fingerprint == second.fingerprint


def test_untrained_differs_from_tiny_in_the_transformer_alone(tiny: Backbone) -> None:
    untrained = load_backbone("tiny-untrained", dtype="float32")
    assert tiny.trained
    assert not untrained.trained
    assert untrained.fingerprint != tiny.fingerprint
    for part in ("vae", "text"):
        assert untrained.part_fingerprint(part) == tiny.part_fingerprint(part)
    assert untrained.view_embedding is None
    assert tiny.view_embedding is not None
    assert dict(untrained.transformer.config)["patch_size"] == tuple(tiny.transformer.config.patch_size)
    shapes = [{key: value.shape for key, value in b.transformer.state_dict().items()} for b in (tiny, untrained)]
    assert shapes[0] == shapes[1]


def test_tiny_has_the_size_it_claims(tiny: Backbone) -> None:
    assert tiny.text_len == 64
    assert tiny.latent_shape(3, 5, 96, 128) == (48, 2, 3, 6, 8)
    sizes = {name: sum(p.numel() for p in getattr(tiny, name).parameters()) for name in ("transformer", "vae")}
    assert 3.5e6 < sizes["transformer"] < 4.5e6
    assert 2e6 < sizes["vae"] < 3e6
    folder = bundled("tiny")
    parts = [path for path in folder.rglob("*.safetensors") if path.name != "depth.safetensors"]
    assert sum(path.stat().st_size for path in parts) < 16e6
    assert (folder / "depth.safetensors").stat().st_size < 4e6
    assert "Held-out" in (folder / "README.md").read_text()


def recorded_clips() -> torch.Tensor:
    """Five pictures of every camera of two bundled episodes, which no built-in weight has seen: [6, 3, 5, 96, 128]."""
    videos = sorted((bundled("recordings/metaworld_demo") / "videos").glob("*/*/*.mp4"))
    rgb = [path for path in videos if "depth" not in str(path)]
    clips = [read_rgb(path, range(start, start + 20, 4)) for path in rgb for start in (20, 420)]
    return torch.from_numpy(np.stack(clips)).movedim(-1, 1).float() / 127.5 - 1


def test_tiny_latents_of_recorded_pictures_have_unit_scale_and_decode_to_them(tiny: Backbone) -> None:
    clips = recorded_clips()
    latents = tiny.encode_pictures(clips)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.25)
    assert float(latents.mean().abs()) < 0.2
    error = (tiny.decode_pictures(latents).clamp(-1, 1) - clips).square().mean(dim=(1, 2, 3, 4))
    assert float((10 * torch.log10(4 / error)).mean()) > 22


def test_a_network_on_tiny_starts_from_its_view_embedding(tiny: Backbone) -> None:
    assert tiny.view_embedding is not None
    known = len(tiny.view_embedding)
    for views in (known - 1, known + 1):
        config = NetworkConfig(views, action_dim=2, proprio_dim=2, actions_per_frame=1, depth_blocks=0)
        network = build_network(tiny, config, 0)
        both = min(views, known)
        assert torch.equal(network.view_embedding.weight[:both], tiny.view_embedding[:both])
        assert torch.all(network.view_embedding.weight.std(dim=1) > 0.005)
