"""Guards that hold for any version of a library: what was loaded is what the files hold, and instructions differ."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xwam_ft.errors import UserError
from xwam_ft.model.backbone import Backbone, load_backbone
from xwam_ft.model.embed import embed_prompts
from xwam_ft.model.stored_part import StoredPart

sys.path.insert(0, str(Path(__file__).parents[1]))
from published import make_published

PROMPTS = ["", "pick up the cube", "put the cube in the bowl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published") / "wan")


@pytest.fixture
def text(folder: Path) -> Backbone:
    return load_backbone(str(folder), dtype="float32", parts=("text",))


def test_an_untied_embedding_is_the_files(folder: Path, text: Backbone) -> None:
    shards = [load_file(path) for path in (folder / "text_encoder").glob("*.safetensors")]
    [stored] = [held["shared.weight"] for held in shards if "shared.weight" in held]
    assert stored.dtype == torch.bfloat16
    assert torch.equal(text.text_encoder.encoder.embed_tokens.weight, stored.float())


def test_an_embedding_under_the_encoders_own_name_alone(folder: Path, tmp_path: Path, text: Backbone) -> None:
    """As a version that keeps the other of two equal tensors saves it."""
    copy = shutil.copytree(folder, tmp_path / "copy") / "text_encoder"
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    file = index["weight_map"].pop("shared.weight")
    index["weight_map"]["encoder.embed_tokens.weight"] = file
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    shard = load_file(copy / file)
    shard["encoder.embed_tokens.weight"] = shard.pop("shared.weight")
    save_file(shard, copy / file, {"format": "pt"})
    other = load_backbone(str(copy.parent), dtype="float32", parts=("text",))
    assert torch.equal(other.encode_prompts(PROMPTS), text.encode_prompts(PROMPTS))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_an_embedding_that_a_library_left_as_it_was_is_refused(folder: Path, text: Backbone, value: float) -> None:
    """transformers 5.0 to 5.2 leave it uninitialised: zeros or NaN."""
    encoder = text.text_encoder.encoder
    encoder.embed_tokens.weight = torch.nn.Parameter(
        torch.full_like(encoder.embed_tokens.weight, value), requires_grad=False
    )
    with pytest.raises(UserError, match=r"embed_tokens.weight is not what its file holds once transformers 5.0"):
        StoredPart.find(folder / "text_encoder").require_loaded(text.text_encoder, "transformers 5.0")


def test_only_the_last_row_differs(folder: Path, text: Backbone) -> None:
    with torch.no_grad():
        text.text_encoder.shared.weight[-1, -1] += 1
    with pytest.raises(UserError, match="not what its file holds"):
        StoredPart.find(folder / "text_encoder").require_loaded(text.text_encoder, "transformers")


def test_a_weight_that_no_file_holds_is_refused(folder: Path, tmp_path: Path) -> None:
    """diffusers draws it and says so in a log."""
    copy = tmp_path / "wan"
    shutil.copytree(folder, copy)
    for part, name in (("vae", "encoder.conv_in.bias"), ("transformer", "proj_out.bias")):
        for path in (copy / part).glob("*.safetensors"):
            held = load_file(path)
            held.pop(name, None)
            save_file(held, path, {"format": "pt"})
        with pytest.raises(UserError, match=rf"{re.escape(name)} is in none of its files"):
            load_backbone(str(copy), parts=(part,))  # pyright: ignore[reportArgumentType]


def test_instructions_are_embedded_as_by_the_encoder_itself(text: Backbone) -> None:
    done: list[int] = []
    made = embed_prompts(text, PROMPTS, torch.bfloat16, done.append)
    assert sum(done) == 3
    for prompt, embedding in zip(PROMPTS, made, strict=True):
        assert torch.equal(embedding, text.encode_prompts([prompt])[0].bfloat16())


def test_two_instructions_that_mean_the_same_stop(text: Backbone) -> None:
    embed_prompts(text, ["pick  up", "pick up"], torch.float32)  # one instruction, written twice
    with torch.no_grad():
        text.text_encoder.encoder.embed_tokens.weight.zero_()
    with pytest.raises(UserError, match=r"text encoder makes the same of 'pick up the cube' and 'put the cube"):
        embed_prompts(text, PROMPTS[1:], torch.float32)


def test_words_that_the_tokenizer_does_not_tell_apart_stop(text: Backbone) -> None:
    with pytest.raises(UserError, match=r"tokenizer makes the same 512 tokens of '\u62ff' and '\u653e'.*characters"):
        embed_prompts(text, ["\u62ff", "\u653e"], torch.float32)
    long = "a " * 600
    with pytest.raises(UserError, match="word them apart in their first words"):
        embed_prompts(text, [long + "red", long + "blue"], torch.float32)


def test_an_output_that_is_not_finite_is_named(text: Backbone) -> None:
    with torch.no_grad():
        text.text_encoder.encoder.final_layer_norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"output for 'pick up the cube' is not finite"):
        embed_prompts(text, PROMPTS[1:], torch.float32)


def test_a_vae_that_makes_no_numbers_is_named(folder: Path) -> None:
    backbone = load_backbone(str(folder), parts=("vae",))
    latents = backbone.encode_pictures(torch.zeros(1, 3, 1, 32, 32))
    assert torch.isfinite(latents).all()
    with torch.no_grad():
        backbone.vae.decoder.conv_in.bias.fill_(float("nan"))
        with pytest.raises(UserError, match="its VAE makes pictures that are not finite"):
            backbone.decode_pictures(latents)
        backbone.decode_pictures(latents * float("nan"))  # not the VAE's fault: whoever made those tells
        backbone.vae.quant_conv.bias.fill_(float("inf"))
        with pytest.raises(UserError, match="its VAE makes latents that are not finite"):
            backbone.encode_pictures(torch.zeros(1, 3, 1, 32, 32))
