"""Our training step against one of the reference's: noise levels, four losses, every gradient.

A golden file of this kind holds, beside `config` and `weight.*` (golden_file.py),

    input.{latents, depth_latents, actions, action_mask, proprios, proprio_mask, text, null_text}
    input.{uniform_video, uniform_action, beta, action_is_clean, drop_text}     draws of each clip, before the shift
    input.noise_{video, action, proprio}
    output.sigma_{video, action}; output.loss.{video_loss, action_loss, proprio_loss, depth_loss, loss}
    output.grad.NAME    the gradient of every tensor that has one, under the reference's names

The error of losses is relative, that of levels and gradients their largest difference over their largest value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.golden_file import MAKE, ParityReport, Row, relative_error
from xwam_ft.model.losses import LossMasks, Targets, flow_losses
from xwam_ft.model.noise import Sigmas, asynchronous_levels, noised, shift
from xwam_ft.model.reference import build_from_reference, to_reference
from xwam_ft.model.solver import SHIFT
from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.model.golden_file import GoldenFile
    from xwam_ft.model.network import JointNetwork

LOSS_BOUND = 1e-6
GRADIENT_BOUND = 5e-5


def is_step(golden: GoldenFile) -> bool:
    """Whether a golden file holds a training step rather than outputs of the network."""
    return "loss" in golden.outputs or "grad" in golden.outputs


def check_step(golden: GoldenFile) -> ParityReport:
    """Every output of a golden training step, computed with and without gradient checkpointing.

    Raises:
        UserError: inputs that are missing or fit no network, outputs of unknown names.
    """
    network = build_from_reference(golden.config, golden.weights, golden.path)
    report = ParityReport([], [])
    ours: dict[str, Tensor] = {}
    for checkpointing in (False, True):
        network.gradient_checkpointing = checkpointing
        note = " (checkpointed)" if checkpointing else ""
        try:
            sigmas, losses = _step(network, golden)
        except (RuntimeError, IndexError) as error:
            line = str(error).splitlines()[0]
            raise UserError(f"its inputs do not fit its network ({line})", golden.path, MAKE) from None
        network.zero_grad(set_to_none=True)
        losses["loss"].backward()
        slopes = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
        gradients = to_reference(slopes)
        ours = {f"loss.{name}": value.detach() for name, value in losses.items()}
        ours |= {f"grad.{name}": value for name, value in gradients.items()} | sigmas
        if "total" in golden.outputs.get("loss", {}):
            ours["loss.total"] = ours["loss.loss"]  # some files hold the sum under both names
        report.rows.extend(_compared(golden, ours, note))
    leaves = {f"{group}.{leaf}" for group, held in golden.outputs.items() for leaf in held}
    report.absent.extend(f"output.{name.rstrip('.')}" for name in sorted(ours) if name not in leaves)
    return report


def _step(network: JointNetwork, golden: GoldenFile) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    clean = golden.input("action_is_clean").bool()
    levels = asynchronous_levels(
        golden.input("uniform_action"), golden.input("uniform_video"), golden.input("beta"), clean
    )
    video_sigma, action_sigma = (shift(level, SHIFT) for level in levels)
    sigmas = Sigmas(video_sigma, action_sigma, clean)
    data = Streams(*(golden.input(name) for name in ("latents", "actions", "proprios")))
    noise = Streams(*(golden.input(f"noise_{name}") for name in ("video", "action", "proprio")))
    dropped = golden.input("drop_text").bool()[:, None, None]
    text = torch.where(dropped, golden.input("null_text"), golden.input("text"))
    prediction = network(*noised(data, noise, sigmas).parts, text, 1000 * sigmas.video, 1000 * sigmas.action)
    depth = golden.inputs.get("depth_latents")
    targets = Targets(*(noise - data).parts, depth)
    masks = LossMasks(
        video=torch.ones(data.video.shape[0], data.video.shape[2]),
        action=golden.input("action_mask"),
        proprio=golden.input("proprio_mask"),
        action_is_clean=clean,
        depth=None if depth is None else torch.ones_like(depth[:, 0]),
    )
    losses = {f"{name}_loss": term.mean for name, term in flow_losses(prediction, targets, masks).items()}
    losses["loss"] = torch.stack(list(losses.values())).sum()
    return {"sigma_video.": sigmas.video, "sigma_action.": sigmas.action}, losses


def _compared(golden: GoldenFile, ours: dict[str, Tensor], note: str) -> list[Row]:
    found: list[Row] = []
    outputs = {f"{group}.{leaf}": value for group, leaves in golden.outputs.items() for leaf, value in leaves.items()}
    for name, expected in sorted(outputs.items()):
        shown = f"output.{name.rstrip('.')}"
        if name not in ours:
            raise UserError(f"{shown} is none of this network's training step", golden.path, MAKE)
        if ours[name].numel() != expected.numel():
            shapes = f"{list(expected.shape)}, ours has {list(ours[name].shape)}"
            raise UserError(f"{shown} has shape {shapes}", golden.path, "store one step of the network in the file")
        bound = GRADIENT_BOUND if name.startswith("grad.") else LOSS_BOUND
        found.append(Row(shown + note, relative_error(ours[name].reshape(expected.shape), expected), bound))
    return found
