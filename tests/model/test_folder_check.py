"""Folders that are not Wan2.2-TI2V-5B's, or not whole, and machines that do not fit: a sentence before any work."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from xwam_ft import machine
from xwam_ft.errors import UserError
from xwam_ft.model.backbone import load_backbone, locate_backbone
from xwam_ft.model.precision import chosen_precision
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.recipe import TrainerSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import LocalHub
from published import make_hub_cache, make_published


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published") / "wan")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "wan")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "is a 14B model of Wan 2.2"),
        ("transformer/config.json", {"image_dim": 1280}, r"image-to-video transformer \(image_dim is set\)"),
        ("transformer/config.json", {"in_channels": 36, "out_channels": 16}, "it takes 36 channels and makes 16"),
        ("transformer/config.json", {"in_channels": 16, "out_channels": 16}, r"is of Wan 2.1 \(latents of 16 channels"),
        ("vae/config.json", {"z_dim": 16}, "is of Wan 2.1"),
        (
            "transformer/config.json",
            {"in_channels": 12, "out_channels": 12},
            "of 12 channels beside a VAE of 48",
        ),
        ("transformer/config.json", {"_class_name": "WanVACETransformer3DModel"}, "as its transformer a WanVACETransf"),
    ],
)
def test_relatives_are_named(folder: Path, file: str, values: dict[str, Any], sentence: str) -> None:
    change(folder / file, **values)
    for ask in (lambda: locate_backbone(str(folder), ("vae",)), lambda: read_skeleton(str(folder), dtype="float32")):
        with pytest.raises(UserError, match=sentence) as error:
            ask()
        assert "Wan-AI/Wan2.2-TI2V-5B-Diffusers" in error.value.fix


def test_a_file_that_is_cut_off_is_named_before_anything_is_loaded(folder: Path) -> None:
    path = sorted((folder / "text_encoder").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model-00001-of-00003.safetensors: is cut off or damaged .*hf download"):
        locate_backbone(str(folder), ("text",))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        locate_backbone(str(folder), ("text",))


def test_an_imported_folder_is_not_mended_with_wan_s_weights(folder: Path) -> None:
    (folder / "joint").mkdir()
    (folder / "joint" / "config.json").write_text("{}")
    path = sorted((folder / "transformer").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"is cut off or damaged") as error:
        locate_backbone(str(folder), ("transformer",))
    assert "import_xwam.py" in error.value.fix
    assert "hf download" not in error.value.fix


def test_a_hub_cache_with_a_blob_missing_is_incomplete(whole: Path, tmp_path: Path) -> None:
    snapshot = make_hub_cache(whole, tmp_path / "hub")
    sorted((snapshot / "transformer").glob("*.safetensors"))[0].resolve().unlink()
    with pytest.raises(
        UserError, match=r"the part 'transformer' is incomplete \(no transformer/diffusion_pytorch_model-0"
    ):
        load_backbone(str(snapshot), parts=("transformer",))


def test_versions_that_were_never_tried_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["transformers<6,>=5.3", "torch<3,>=2.9", "numpy>=1.26", "ftfy<7,>=6.1"]
    found = {"transformers": "5.2.0", "torch": "2.14.1+cu130", "ftfy": "6.3.1"}
    monkeypatch.setattr(machine, "requires", lambda name: lines)
    monkeypatch.setattr(machine, "version", found.__getitem__)
    with pytest.raises(UserError, match=r"transformers is 5.2.0, and transformers<6,>=5.3 was tried.*pip install -U"):
        machine.require_supported()
    found["transformers"] = "5.3.0"
    machine.require_supported()


def test_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(UserError, match="is bf16-mixed, and Tesla V100 does not compute in bfloat16"):
        chosen_precision(TrainerSpec(max_steps=1, precision="bf16-mixed"))
    assert chosen_precision(TrainerSpec(max_steps=1, precision="auto")) == (
        "32-true",
        "trainer.precision is auto: 32-true, since Tesla V100 does not compute in bfloat16",
    )


@pytest.mark.parametrize("content", ["{torn", "{}", "[]"])
def test_an_index_that_is_cut_off_is_named(folder: Path, content: str) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index.json: is (not valid JSON|no index of safetensors)"):
        locate_backbone(str(folder), ("transformer",))


@pytest.mark.parametrize("gone", ["index", "index and a shard"])
def test_shards_without_their_index_are_named_before_anything_is_loaded(folder: Path, gone: str) -> None:
    (folder / "text_encoder" / "model.safetensors.index.json").unlink()
    if gone != "index":
        (folder / "text_encoder" / "model-00002-of-00003.safetensors").unlink()
    lacks = "model.safetensors.index.json" if gone == "index" else "model-00002-of-00003.safetensors"
    with pytest.raises(UserError, match=rf"the part 'text_encoder' is incomplete \(no text_encoder/{lacks}"):
        locate_backbone(str(folder), ("text",))


def test_two_downloads_in_one_folder(folder: Path) -> None:
    """transformers would take the one file, diffusers those of the index."""
    one = folder / "text_encoder" / "model.safetensors"
    shutil.copy(sorted((folder / "text_encoder").glob("*.safetensors"))[0], one)
    with pytest.raises(UserError, match=r"holds one file of weights \(model.safetensors\) and an index of several"):
        locate_backbone(str(folder), ("text",))


def test_weights_of_another_name_are_told(folder: Path) -> None:
    place = folder / "vae" / "diffusion_pytorch_model.safetensors"
    place.rename(place.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(UserError, match=r"nor model.safetensors, but diffusion_pytorch_model.fp16.safetensors\)"):
        locate_backbone(str(folder), ("vae",))


def test_files_beside_a_parts_own_are_not_read(folder: Path) -> None:
    """Weights in another precision, or a shard of an older download."""
    own = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in own.items()}, folder / "vae" / "zeros.safetensors")
    state = load_backbone(str(folder), parts=("vae",)).vae.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.items())
    path = sorted((folder / "transformer").glob("*.safetensors"))[0]
    shard = load_file(path)
    save_file({name: value + 1 for name, value in shard.items()}, folder / "transformer" / "zz-old.safetensors")
    deferred = load_backbone(str(folder), dtype="float32", parts=("transformer",), defer=True).deferred
    assert deferred is not None
    for name, value in shard.items():
        assert torch.equal(deferred[name].read(slice(None), torch.float32, torch.device("cpu")), value), name
    load_backbone(str(folder), dtype="float32", parts=("transformer",))


@pytest.mark.parametrize("defer", [False, True])
def test_a_configuration_with_fewer_blocks_than_its_files(folder: Path, defer: bool) -> None:
    change(folder / "transformer" / "config.json", num_layers=2)
    with pytest.raises(UserError, match=r"its files hold blocks.2.*which its config.json has no place for"):
        load_backbone(str(folder), parts=("transformer",), defer=defer)
    change(folder / "text_encoder" / "config.json", num_layers=1)
    with pytest.raises(UserError, match=r"its files hold encoder.block.1.*which its config.json has no place for"):
        load_backbone(str(folder), parts=("text",))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}, "has 16 latents_mean and 16 latents_std for latents"),
        ({"latents_std": [1.0] * 47 + [0.0]}, "has a latents_std that is not above 0"),
    ],
)
def test_latent_statistics_of_another_vae(folder: Path, values: dict[str, Any], sentence: str) -> None:
    change(folder / "vae" / "config.json", **values)
    with pytest.raises(UserError, match=rf"vae/config.json: {sentence}"):
        load_backbone(str(folder), parts=("vae",))


def test_latent_statistics_that_are_not_stated_are_not_those_of_wan_2_1(folder: Path) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if not name.startswith("latents_")})
    )
    with pytest.raises(UserError, match="has 16 latents_mean and 16 latents_std for latents of 48 channels"):
        load_backbone(str(folder), parts=("vae",))


def test_a_tokenizer_that_says_no_length_is_fed_all_positions(folder: Path) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    assert read_skeleton(str(folder), dtype="float32").backbone.text_len == 512
    assert load_backbone(str(folder), parts=("text",)).text_len == 512


def test_weights_that_are_no_numbers(folder: Path) -> None:
    path = sorted((folder / "transformer").glob("*.safetensors"))[0]
    shard = load_file(path)
    name = next(iter(shard))
    shard[name][:] = float("nan")
    save_file(shard, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"its files hold {name}, not all of whose numbers are finite"):
        load_backbone(str(folder), parts=("transformer",))


def test_a_tokenizer_that_lost_its_words_is_named_before_anything_is_loaded(folder: Path) -> None:
    """transformers makes one of the same class that knows its special tokens alone, and says nothing."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"the part 'tokenizer' is incomplete \(no tokenizer/tokenizer.json\)"):
        locate_backbone(str(folder), ("text",))


def test_a_tokenizer_that_knows_no_words_or_too_many(folder: Path) -> None:
    place = folder / "tokenizer" / "tokenizer.json"
    whole = json.loads(place.read_text())
    few = whole | {"model": whole["model"] | {"vocab": whole["model"]["vocab"][:5]}}
    place.write_text(json.dumps(few))
    with pytest.raises(UserError, match=r"tokenizer: does not know all of 'pick up the cube': its words are missing"):
        load_backbone(str(folder), parts=("text",))
    many = [*whole["model"]["vocab"], *([f"word{number}", -9.0] for number in range(400))]
    place.write_text(json.dumps(whole | {"model": whole["model"] | {"vocab": many}}))
    with pytest.raises(UserError, match=r"tokenizer: knows 799 tokens, and the text encoder beside it 400"):
        load_backbone(str(folder), parts=("text",))
    place.write_text("{torn")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_backbone(str(folder), parts=("text",))


def test_a_folder_one_level_too_high_or_too_low(whole: Path, tmp_path: Path) -> None:
    snapshot = make_hub_cache(whole, tmp_path / "hub")
    for given, meant, sentence in (
        (whole / "transformer", whole, "is one part of a backbone"),
        (whole / "vae", whole, "is one part of a backbone"),
        (whole.parent, whole, "holds no backbone itself, but in a folder below"),
        (tmp_path / "hub", snapshot, "holds no backbone itself, but in a folder below"),
        (snapshot.parents[1], snapshot, "holds no backbone itself, but in a folder below"),
        (snapshot.parent, snapshot, "holds no backbone itself, but in a folder below"),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            locate_backbone(str(given), ("vae",))
        assert error.value.fix.endswith(str(meant))
        with pytest.raises(UserError, match=sentence):
            read_skeleton(str(given), dtype="float32")


def test_the_command_that_fetches_a_cut_file_again_does_so(
    whole: Path, local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob of the hub's cache counts as downloaded, however little of it is there."""
    local_hub.add("models/org/wan", whole)
    path = sorted((locate_backbone("org/wan", ("vae",)) / "vae").glob("*.safetensors"))[0]
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-10])
    with pytest.raises(UserError, match="is cut off or damaged") as error:
        locate_backbone("org/wan", ("vae",))
    command = shlex.split(error.value.fix.removeprefix("fetch it again, with network: "))
    environment = os.environ | {"HF_ENDPOINT": local_hub.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.read_bytes() == content
    locate_backbone("org/wan", ("vae",))
