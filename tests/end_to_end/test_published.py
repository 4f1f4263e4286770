"""The published folder at toy widths, from a hub cache without network: from plan to robot, as with the 5B."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import xwam_ft
from xwam_ft.contract import Contract
from xwam_ft.model.backbone import load_backbone, part_fingerprints
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.request import example_observation
from xwam_ft.policy.server import serving
from xwam_ft.runs.checkpoint import list_checkpoints
from xwam_ft.shards import ShardSet

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "model"))
from foreign import wan_text_name, wan_vae_name

from published import HUB_ID, make_hub_cache, make_published

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(contract: Contract, segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HF_HUB_OFFLINE=1 and HF_HUB_CACHE, as after a download; returns the snapshot, all of it links."""
    from huggingface_hub import constants

    views = torch.from_numpy(segment.rgb).movedim(-1, 1).float() / 127.5 - 1
    videos = torch.cat([views[:, :, first : first + 5] for first in range(0, 25, 5)])
    snapshot = make_hub_cache(make_published(tmp_path / "wan", videos), tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_from_plan_to_robot(
    hub: Path, contract: Contract, make_shard_set: Callable[[Path, Contract], ShardSet], tmp_path: Path
) -> None:
    assert all(path.is_symlink() for path in hub.rglob("*.safetensors"))
    shards = make_shard_set(tmp_path / "shards", contract).folder
    recipe = xwam_ft.Recipe.model_validate(
        {
            "backbone": {"path": HUB_ID},
            "data": {"shards": str(shards), "clip_stride": 7, "encode_batch": 1},
            "model": {
                "gradient_checkpointing": True, "lora": {"rank": 2, "alpha": 2},
                "depth": {"blocks": 1, "branch": "adapter"},
            },
            # Two steps at usual rates teach adapters less than a bfloat16 base resolves: export would rightly refuse.
            "optim": {"lr_lora": 1e-1, "lr_heads": 1e-3, "lr_depth": 1e-3, "warmup_steps": 0, "ema_decay": 0.9},
            "trainer": {
                "max_steps": 2, "batch_size": 1, "accumulate": 2, "accelerator": "cpu", "precision": "bf16-mixed",
                "threads": 1,
            },
            "checkpoint": {"every_steps": 1},
            "validation": {"every_steps": 0, "clips": 1, "action_steps": 2, "video_steps": 2, "imagine_clips": 0},
        }
    )  # fmt: skip
    plan = xwam_ft.plan(recipe)
    assert plan.latents == (48, 2, 2, 2, 4)
    assert plan.text == (512, 16)

    encoded = xwam_ft.encode(shards, recipe)
    embeddings = load_file(encoded.path / "prompts.safetensors")["embeddings"]
    assert embeddings.dtype == torch.bfloat16
    assert tuple(embeddings.shape[1:]) == (512, 16)
    direct = load_backbone(str(hub), parts=("text",)).encode_prompts([""])[0]
    assert torch.equal(embeddings[0], direct)

    run = xwam_ft.train(recipe, run=tmp_path / "run")
    assert run.step == 2
    last = list_checkpoints(run.path)[-1]
    whole = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    assert whole
    shutil.rmtree(last)
    xwam_ft.train(resume=run)
    assert {path.name: path.read_bytes() for path in last.glob("*.safetensors")} == whole

    bundle = xwam_ft.export(run, tmp_path / "bundle")
    for name in ("peft", "diffusers"):
        xwam_ft.export(run, tmp_path / name, format=name)
    xwam_ft.export(run, tmp_path / "beside", merged=False)
    wan = tmp_path / "wan-files"
    wan.mkdir()
    backbone = load_backbone(str(hub), dtype="float32", parts=("vae", "text"))
    torch.save({wan_vae_name(k): v for k, v in backbone.vae.state_dict().items()}, wan / "Wan2.2_VAE.pth")
    encoder = {wan_text_name(k): v for k, v in backbone.text_encoder.state_dict().items() if "embed_tokens" not in k}
    torch.save(encoder, wan / "models_t5_umt5-xxl-enc-bf16.pth")
    xwam_ft.export(run, tmp_path / "xwam", format="xwam", wan=wan)

    policy = xwam_ft.Policy.load(bundle.path)
    answer = policy.infer(example_observation(policy.contract, "pick up the cube"), seed=0)
    assert all(np.isfinite(values).all() for values in answer.commands.slots.values())
    with serving(policy) as address, closing(PolicyClient(address)) as client:
        served = client.infer(client.metadata["example_observation"], timeout=300)
        assert np.isfinite(served["actions"]).all()
    imagined = xwam_ft.imagine(bundle, shards, 2, tmp_path / "imagined")
    assert imagined.film.is_file()


def test_the_hub_id_and_its_folder_are_one_backbone(hub: Path) -> None:
    assert part_fingerprints(HUB_ID, ("transformer", "vae", "text")) == part_fingerprints(
        str(hub), ("transformer", "vae", "text")
    )
