"""Folders that are not Wan2.2-TI2V-5B's, or not whole, and machines that do not fit: a sentence before any work."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from xwam_ft import machine
from xwam_ft.errors import UserError
from xwam_ft.model.backbone import load_backbone, locate_backbone
from xwam_ft.model.precision import chosen_precision
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.recipe import TrainerSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
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
