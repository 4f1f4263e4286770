"""The training step agrees with golden numbers of the reference's own, and the check can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xwam_ft.errors import UserError
from xwam_ft.model.parity import check_parity
from xwam_ft.model.parity_step import GRADIENT_BOUND, LOSS_BOUND

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
