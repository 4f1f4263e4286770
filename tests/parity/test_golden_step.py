"""The training step agrees with golden numbers of the reference's own, and the check can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

from xwam_ft.errors import UserError
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.model.noise import asynchronous_levels, shift
from xwam_ft.model.parity import check_parity
from xwam_ft.model.parity_step import GRADIENT_BOUND, LOSS_BOUND
from xwam_ft.model.reference import to_reference
from xwam_ft.model.solver import SHIFT

GOLDEN = Path(__file__).parents[1] / "golden" / "xwam_step.safetensors"
GRADIENTS, OTHERS = 170, 8  # in the file; each is compared without and with gradient checkpointing


def read() -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(GOLDEN, framework="pt") as stored:
        return stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def test_levels_losses_and_gradients_agree_with_the_reference_with_and_without_checkpointing() -> None:
    report = check_parity(GOLDEN)
    assert report.absent == []
    assert len(report.rows) == 2 * (GRADIENTS + OTHERS)
    assert sum("(checkpointed)" in row.name for row in report.rows) == GRADIENTS + OTHERS
    for row in report.rows:
        assert row.bound == (GRADIENT_BOUND if ".grad." in row.name else LOSS_BOUND)
        assert row.passed, row


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("weight.blocks.1.ffn.0.weight", "output.loss.video_loss"),
        ("input.beta", "output.sigma_video"),
        ("input.uniform_action", "output.sigma_action"),
        ("input.noise_proprio", "output.loss.proprio_loss"),
        ("input.null_text", "output.grad.text_embedding.0.weight"),
        ("output.grad.extra_heads.0.head.weight", "output.grad.extra_heads.0.head.weight"),
    ],
)
def test_one_changed_number_is_caught(tmp_path: Path, name: str, fails: str) -> None:
    metadata, tensors = read()
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] += 0.05
    save_file(tensors, tmp_path / "mutated.safetensors", metadata)
    report = check_parity(tmp_path / "mutated.safetensors")
    assert fails in {row.name for row in report.rows if not row.passed}


def synthesise(path: Path, *, views: int, text: int, width: int, depth_blocks: int) -> None:
    """A golden step of other sizes: our own network's, its losses written out here as means of squared errors."""
    torch.manual_seed(views)
    config = {
        "model_type": "ti2v", "num_modalities": 2 if depth_blocks else 1, "num_views": views, "patch_size": [1, 1, 2],
        "text_len": text, "in_dim": 6, "dim": width, "ffn_dim": 40, "freq_dim": 16, "text_dim": 12, "action_dim": 7,
        "action_num": 2, "proprio_dim": 9, "out_dim": 6, "num_heads": 2, "num_layers": 3,
        "num_extra_layers": depth_blocks,
    }  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 2), num_attention_heads=2, attention_head_dim=width // 2, in_channels=6, out_channels=6,
        text_dim=12, freq_dim=16, ffn_dim=40, num_layers=3,
    )  # fmt: skip
    network = JointNetwork(transformer, NetworkConfig(views, 7, 9, 2, depth_blocks))
    clean = {"latents": (2, 6, 3, views, 3, 4), "actions": (2, 16, 7), "proprios": (2, 9, 9)}
    given = {name: torch.randn(shape) for name, shape in clean.items()}
    noise = dict(
        zip(("video", "action", "proprio"), (torch.randn_like(value) for value in given.values()), strict=True)
    )
    draws = {name: torch.rand(2) for name in ("uniform_video", "uniform_action", "beta")}
    given |= {"text": torch.randn(2, text, 12), "null_text": torch.randn(text, 12), "action_mask": torch.ones(2, 16, 7)}
    given |= {"proprio_mask": torch.ones(2, 9, 9), "action_is_clean": torch.zeros(2), "drop_text": torch.zeros(2)}
    if depth_blocks:
        given["depth_latents"] = torch.randn(clean["latents"])
    levels = asynchronous_levels(draws["uniform_action"], draws["uniform_video"], draws["beta"], torch.zeros(2).bool())
    video, action = (shift(level, SHIFT) for level in levels)

    def at(name: str, of: str, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.view(-1, *[1] * (given[name].ndim - 1))
        return (1 - level) * given[name] + level * noise[of]

    latents, states = at("latents", "video", video), at("proprios", "proprio", action)
    latents[:, :, 0], states[:, 0] = given["latents"][:, :, 0], given["proprios"][:, 0]
    actions = at("actions", "action", action)
    out = network(latents, actions, states, given["text"], 1000 * video, 1000 * action)
    losses = {
        "video_loss": (out.video - noise["video"] + given["latents"])[:, :, 1:].square().mean(),
        "action_loss": (out.action - noise["action"] + given["actions"]).square().mean(),
        "proprio_loss": (out.proprio - noise["proprio"] + given["proprios"])[:, 1:].square().mean(),
    }
    if depth_blocks:
        losses["depth_loss"] = (out.depth - given["depth_latents"]).square().mean()
    losses["loss"] = torch.stack(list(losses.values())).sum()
    losses["loss"].backward()
    slopes = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    tensors = {f"weight.{name}": value for name, value in to_reference(network.state_dict()).items()}
    tensors |= {f"input.{name}": value for name, value in {**given, **draws}.items()}
    tensors |= {f"input.noise_{name}": value for name, value in noise.items()}
    tensors |= {"output.sigma_video": video, "output.sigma_action": action}
    tensors |= {f"output.loss.{name}": value for name, value in losses.items()}
    tensors |= {f"output.grad.{name}": value for name, value in to_reference(slopes).items()}
    held = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(held, path, {"config": json.dumps(config)})


@pytest.mark.parametrize(("views", "text", "width", "depth_blocks"), [(1, 3, 24, 2), (4, 11, 48, 1), (2, 7, 32, 0)])
def test_steps_of_other_widths_views_and_text_lengths_are_read(
    tmp_path: Path, views: int, text: int, width: int, depth_blocks: int
) -> None:
    path = tmp_path / "other.safetensors"
    synthesise(path, views=views, text=text, width=width, depth_blocks=depth_blocks)
    report = check_parity(path)
    assert report.absent == []
    assert len(report.rows) > 150
    for row in report.rows:
        assert row.passed, row
    with safe_open(path, framework="pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    tensors["input.text"] = tensors["input.text"] + 0.05
    save_file(tensors, path, metadata)
    assert any(not row.passed for row in check_parity(path).rows)


def test_a_file_without_an_input_is_one_sentence(tmp_path: Path) -> None:
    metadata, tensors = read()
    tensors.pop("input.beta")
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(UserError, match=r"no tensor input\.beta"):
        check_parity(tmp_path / "bad.safetensors")


def test_an_output_no_step_has_is_one_sentence(tmp_path: Path) -> None:
    metadata, tensors = read()
    tensors["output.grad.blocks.9.modulation"] = torch.zeros(1)
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(UserError, match=r"output\.grad\.blocks\.9\.modulation is none of this network's training step"):
        check_parity(tmp_path / "bad.safetensors")
