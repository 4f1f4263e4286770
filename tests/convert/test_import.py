"""Released checkpoints in every form become a backbone folder whose network is the one that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import foreign
import pytest
import torch
from safetensors.torch import load_file, save_file

from xwam_ft.convert.convert import ConvertOptions, ImportReport, import_checkpoint
from xwam_ft.convert.frozen import text_config, text_name, vae_config, vae_name
from xwam_ft.convert.released import ACTION, PROPRIO
from xwam_ft.errors import UserError
from xwam_ft.model.assemble import build_network, empty_network
from xwam_ft.model.backbone import Backbone, load_backbone, part_fingerprints
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.parity import read_golden, relative_error
from xwam_ft.model.reference import from_reference, to_reference

FLOAT32 = torch.float32


@pytest.fixture(scope="module")
def vae_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.save_vae_text(tmp_path_factory.mktemp("vae_text"))


def bring_in(source: Path, out: Path, vae_text: Path | None, **options: object) -> ImportReport:
    given = {"vae_text": vae_text, "heads": foreign.HEADS, "dtype": FLOAT32} | options
    return import_checkpoint(source, out, ConvertOptions(**given))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, vae_text: Path) -> Path:
    """The golden network as a DeepSpeed checkpoint with frozen copies, imported in float32; read it only."""
    folder = tmp_path_factory.mktemp("imported")
    bring_in(foreign.save_deepspeed(folder, foreign.module(frozen=True)), folder / "out", vae_text)
    return folder / "out"


def same_outputs(backbone: Backbone) -> None:
    """The network on a backbone gives the golden outputs."""
    golden = read_golden(foreign.GOLDEN)
    assert backbone.joint is not None
    network = build_network(backbone, backbone.joint.config, seed=3).eval()
    streams = [golden.input(name) for name in ("latents", "actions", "proprios", "text")]
    with torch.no_grad():
        out = network(*streams, *(1000 * golden.input(name) for name in ("t_video", "t_action")))
    wanted = golden.outputs["forward"]
    for name, ours in (
        ("video_velocity", out.video), ("action_velocity", out.action),
        ("proprio_velocity", out.proprio), ("depth_latents", out.depth),
    ):  # fmt: skip
        assert relative_error(ours, wanted[name]) <= 1e-5, name


def deepspeed(folder: Path) -> Path:
    return foreign.save_deepspeed(folder, foreign.module())


def deepspeed_file(folder: Path) -> Path:
    return deepspeed(folder) / "checkpoint" / "mp_rank_00_model_states.pt"


def flattened(folder: Path) -> Path:
    torch.save({"module": foreign.module()}, folder / "xwam.pt")
    return folder / "xwam.pt"


def plain_state(folder: Path) -> Path:
    torch.save(foreign.golden()[1], folder / "state.pt")
    return folder / "state.pt"


def one_safetensors(folder: Path) -> Path:
    config, weights = foreign.golden()
    save_file(weights, folder / "xwam.safetensors", {"config": json.dumps(config)})
    return folder / "xwam.safetensors"


def sharded_safetensors(folder: Path) -> Path:
    return foreign.save_shards(folder / "shards", foreign.module())


@pytest.mark.parametrize(
    "form", [deepspeed, deepspeed_file, flattened, plain_state, one_safetensors, sharded_safetensors]
)
def test_every_form_gives_the_golden_outputs(tmp_path: Path, vae_text: Path, form) -> None:
    source = form(tmp_path)
    report = bring_in(source, tmp_path / "out", vae_text)
    backbone = load_backbone(str(tmp_path / "out"), dtype="float32", parts=("transformer",))
    same_outputs(backbone)
    assert {row.part for row in report.rows} == {"transformer", "joint", "vae", "text_encoder", "tokenizer"}
    used = {source for names in report.used.values() for source in names}
    assert len(used) == len(foreign.golden()[1])


def test_a_whole_released_checkpoint_brings_its_vae_and_text_encoder(imported: Path, vae_text: Path) -> None:
    backbone = load_backbone(str(imported), dtype="float32")
    same_outputs(backbone)
    vae = foreign.make_vae()
    videos = torch.randn(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.no_grad():
        mode = vae.encode(videos).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(backbone.encode_pictures(videos), (mode - mean) / std)
    assert dict(backbone.vae.config)["latents_mean"] == pytest.approx(vae.config.latents_mean)
    assert backbone.spatial_factor == 16
    assert backbone.temporal_factor == 4
    text = foreign.make_text().bfloat16().float()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours, wanted = (model(ids).last_hidden_state for model in (backbone.text_encoder, text))
    torch.testing.assert_close(ours, wanted)
    report = json.loads((imported / "import_report.json").read_text())
    assert report["ignored"]["global_steps"] == "training state, no weights"
    assert report["missing"] == []
    used = [source for names in report["used"].values() for source in names]
    assert sorted(used) == sorted(foreign.module(frozen=True))  # every tensor of the file, each once
    linked = imported / "tokenizer" / "tokenizer_config.json"
    assert linked.read_bytes() == (vae_text / "tokenizer" / "tokenizer_config.json").read_bytes()


def test_wans_text_encoder_is_the_same_function() -> None:
    """UMT5's formulas, written out under Wan's names, give what the translated weights give."""
    model = foreign.make_text()
    own = {foreign.wan_text_name(name): tensor for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[3, 9, 4, 11]])
    x = own["token_embedding.weight"][ids]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * own[f"{name}.weight"]

    distance = torch.arange(4)[None] - torch.arange(4)[:, None]  # of a key from its query
    bucket = distance.abs() + 16 * (distance > 0)
    for block in ("blocks.0", "blocks.1"):
        h = norm(x, f"{block}.norm1")
        q, k, v = ((h @ own[f"{block}.attn.{name}.weight"].T).unflatten(-1, (2, -1)).transpose(1, 2) for name in "qkv")
        bias = own[f"{block}.pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        mixed = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        x = x + mixed.transpose(1, 2).flatten(2) @ own[f"{block}.attn.o.weight"].T
        h = norm(x, f"{block}.norm2")
        gate = torch.nn.functional.gelu(h @ own[f"{block}.ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (h @ own[f"{block}.ffn.fc1.weight"].T)) @ own[f"{block}.ffn.fc2.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(model(ids).last_hidden_state, norm(x, "norm"))


def test_bfloat16_keeps_what_computes_in_float32(tmp_path: Path, vae_text: Path) -> None:
    bring_in(flattened(tmp_path), tmp_path / "out", vae_text, dtype=torch.bfloat16, shard_bytes=100_000)
    out = tmp_path / "out"
    assert len(list((out / "transformer").glob("*.safetensors"))) > 1
    index = json.loads((out / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    stored = {name: t for file in (out / "transformer").glob("*.safetensors") for name, t in load_file(file).items()}
    assert stored.keys() == index["weight_map"].keys()
    joint = {name: t for file in (out / "joint").glob("*.safetensors") for name, t in load_file(file).items()}
    assert stored["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert stored["blocks.0.scale_shift_table"].dtype == FLOAT32
    assert joint["depth_branch.blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert joint["action_encoder.0.weight"].dtype == FLOAT32
    backbone = load_backbone(str(out), parts=("transformer",))
    weights = foreign.golden()[1]
    ours = backbone.transformer.blocks[1].ffn.net[2].weight
    assert torch.equal(ours, weights["blocks.1.ffn.2.weight"].bfloat16())


def test_wans_own_files_become_a_transformer(tmp_path: Path, vae_text: Path) -> None:
    weights = {
        name: tensor
        for name, tensor in foreign.golden()[1].items()
        if not name.startswith(("view_", "action_", "proprio_", "extra_"))
    }
    folder = foreign.save_shards(tmp_path / "wan", weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "ti2v", "num_heads": foreign.HEADS, "eps": 1e-5}))
    with pytest.raises(UserError, match=r"holds weights .*: python data_tools/import_xwam\.py \S+wan OUT --vae-text"):
        load_backbone(str(folder))
    bring_in(folder, tmp_path / "out", vae_text, heads=None)
    backbone = load_backbone(str(tmp_path / "out"), dtype="float32")
    assert backbone.joint is None
    assert not (tmp_path / "out" / "joint").exists()
    assert backbone.transformer.config.eps == 1e-5
    wanted = from_reference(weights)
    for name, tensor in backbone.transformer.state_dict().items():
        assert torch.equal(tensor, wanted[f"transformer.{name}"]), name


def test_the_fingerprint_covers_the_joint_weights(imported: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(imported, copy)
    before = part_fingerprints(str(copy), ("transformer", "vae"))
    assert before == part_fingerprints(str(imported), ("transformer", "vae"))
    file = copy / "joint" / "joint.safetensors"
    tensors = load_file(file)
    tensors["action_decoder.2.bias"] = tensors["action_decoder.2.bias"] + 1
    save_file(tensors, file)
    after = part_fingerprints(str(copy), ("transformer", "vae"))
    assert after["transformer"] != before["transformer"]
    assert after["vae"] == before["vae"]


def test_the_layout_names_xwams_numbers(imported: Path) -> None:
    joint = load_backbone(str(imported), parts=("transformer",)).joint
    assert joint is not None
    assert joint.layout.proprio == PROPRIO
    assert joint.layout.action == ACTION
    assert PROPRIO[:8] == (
        "left_arm.x", "left_arm.y", "left_arm.z", "left_arm.qw", "left_arm.qx", "left_arm.qy", "left_arm.qz",
        "left_gripper.opening",
    )  # fmt: skip
    assert ACTION[7:] == (
        "right_arm.dx", "right_arm.dy", "right_arm.dz", "right_arm.rx", "right_arm.ry", "right_arm.rz",
        "right_gripper.opening",
    )  # fmt: skip


def test_every_name_at_full_size() -> None:
    """Wan2.2-TI2V-5B with X-WAM's additions as published: 1,115 tensors there and back, every parameter counted."""
    sizes = {
        "patch_size": [1, 2, 2], "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48,
        "out_channels": 48, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 14336, "num_layers": 30,
    }  # fmt: skip
    state = empty_network(sizes, NetworkConfig(3, 14, 16, 4, depth_blocks=10)).state_dict()
    theirs = to_reference(state)
    back = from_reference(theirs)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    assert len(theirs) == len(state) == 825 + 17 + 273

    def count(*prefixes: str) -> int:
        return sum(tensor.numel() for name, tensor in theirs.items() if name.startswith(prefixes))

    added, depth = count("view_", "action_", "proprio_"), count("extra_")
    wan = count("") - added - depth
    assert (wan, added, depth) == (4_999_787_712, 37_960_734, 1_637_163_200)
    assert round((wan + added) / 1e9, 2) == 5.04
    assert round(depth / 1e9, 2) == 1.64
    print(f"\n{len(theirs)} tensors; Wan {wan:,} + X-WAM {added:,} = {wan + added:,}; depth branch {depth:,}")


def test_the_frozen_parts_at_full_size() -> None:
    """Wan2.2's VAE and the UMT5-XXL encoder as published: 0.70 B and 5.68 B parameters, configurations found again."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        vae = AutoencoderKLWan(
            base_dim=160, decoder_base_dim=256, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
            temperal_downsample=[False, True, True], latents_mean=[0.0] * 48, latents_std=[1.0] * 48, is_residual=True,
            in_channels=12, out_channels=12, patch_size=2, scale_factor_temporal=4, scale_factor_spatial=16,
        )  # fmt: skip
        text = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        )
    shapes = {foreign.wan_vae_name(name): tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    assert {vae_name(name) for name in shapes} == vae.state_dict().keys()
    found = vae_config(shapes, [0.0] * 48, [1.0] * 48, "here")
    assert {key: vae.config[key] for key in found} == found
    assert sum(tensor.numel() for tensor in vae.state_dict().values()) == 704_688_668
    state = {name: t for name, t in text.state_dict().items() if name != "encoder.embed_tokens.weight"}
    shapes = {foreign.wan_text_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    assert {text_name(name) for name in shapes} == state.keys()
    found = text_config(shapes, "here")
    assert found["d_kv"] == 64
    assert {key: getattr(text.config, key) for key in found if key != "dropout_rate"} == {
        key: value for key, value in found.items() if key != "dropout_rate"
    }
    assert sum(tensor.numel() for tensor in state.values()) == 5_680_910_336


@pytest.mark.parametrize("name", ["vae.encoder.x", "encoder.downsamples.0.conv.weight", "decoder.middle.1x.weight"])
def test_names_that_no_vae_has_are_unknown(name: str) -> None:
    assert vae_name(name) is None
    assert text_name(name) is None
