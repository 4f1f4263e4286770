"""Our network and sampler against golden tensors of the reference implementation.

A golden file (golden_file.py) holds a training step (parity_step.py), or any of

    output.forward.*   one forward of the inputs as they are
    output.guided.*    the same with guidance 2.0
    output.sample.noise_{video,action,proprio} and output.sample{Nv}_{Na}.*   asynchronous denoising from that
                       noise, unguided, with Nv video and Na action steps

The error of an output is its largest difference over its largest value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.model.golden_file import MAKE, GoldenFile, ParityReport, Row, read_golden, relative_error
from xwam_ft.model.network import JointNetwork, Prediction
from xwam_ft.model.parity_step import check_step, is_step
from xwam_ft.model.reference import build_from_reference
from xwam_ft.model.sampler import Conditions, guide, sample
from xwam_ft.model.solver import Solver

if TYPE_CHECKING:
    from torch import Tensor

FORWARD_BOUND = 1e-5
SAMPLE_BOUND = 1e-4
GUIDANCE = 2.0

_PREDICTION = {
    "video_velocity": "video", "action_velocity": "action",
    "proprio_velocity": "proprio", "depth_latents": "depth",
}  # fmt: skip
_SAMPLE = {"video": "video", "action": "action", "proprio": "proprio", "depth_latents": "depth"}
_RUN = re.compile(r"sample(?P<video>\d+)_(?P<action>\d+)")


def check_parity(path: Path) -> ParityReport:
    """Compare every output that a golden file holds; raises `UserError` on a file that is not one."""
    golden = read_golden(path)
    if is_step(golden):
        return check_step(golden)
    groups = {name: leaves for name, leaves in golden.outputs.items() if name != "sample"}
    if not groups:
        raise UserError("it holds no outputs, so there is nothing to compare", path, MAKE)
    unknown = [name for name in groups if name not in ("forward", "guided") and not _RUN.fullmatch(name)]
    if unknown:
        raise UserError(
            f"unknown outputs {listed(f'output.{name}' for name in unknown)}",
            path,
            "name them output.forward.*, output.guided.* or output.sample{Nv}_{Na}.*",
        )
    network = build_from_reference(golden.config, golden.weights, path).eval()
    report = ParityReport([], [])
    for group in sorted(groups, key=_order):
        bound = FORWARD_BOUND if group in ("forward", "guided") else SAMPLE_BOUND
        computed = _computed(network, golden, group)
        absent = [leaf for leaf in computed if leaf not in groups[group]]
        report.absent.extend(f"output.{group}.{leaf}" for leaf in absent)
        for leaf, expected in groups[group].items():
            report.rows.append(Row(f"output.{group}.{leaf}", _error(computed, golden, group, leaf, expected), bound))
    for group in ("forward", "guided"):
        if group not in groups:
            report.absent.append(f"output.{group}.*")
    if not any(_RUN.fullmatch(group) for group in groups):
        report.absent.append("output.sample{Nv}_{Na}.*")
    return report


def _order(group: str) -> tuple[int, ...]:
    match = _RUN.fullmatch(group)
    return (1, int(match["video"]), int(match["action"])) if match else (0, group == "guided")


def _error(computed: dict[str, Tensor], golden: GoldenFile, group: str, leaf: str, expected: Tensor) -> float:
    name = f"output.{group}.{leaf}"
    if leaf not in computed:
        raise UserError(
            f"{name} is not an output of this network", golden.path, f"keep to {listed(computed)}, or give its branch"
        )
    if computed[leaf].shape != expected.shape:
        shapes = f"{list(expected.shape)}, ours has {list(computed[leaf].shape)}"
        raise UserError(f"{name} has shape {shapes}", golden.path, "store the outputs of the inputs in the same file")
    return relative_error(computed[leaf], expected)


def _computed(network: JointNetwork, golden: GoldenFile, group: str) -> dict[str, Tensor]:
    run = _RUN.fullmatch(group)
    compute: Callable[[], dict[str, Tensor]]
    if run is None:
        compute = lambda: _forward(network, golden, guided=group == "guided")  # noqa: E731
    else:
        compute = lambda: _sample(network, golden, int(run["video"]), int(run["action"]))  # noqa: E731
    try:
        return compute()
    except (AssertionError, RuntimeError, IndexError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"its inputs do not fit its network ({line})", golden.path, "store inputs of the shapes its config says"
        ) from None


@torch.no_grad()
def _forward(network: JointNetwork, golden: GoldenFile, *, guided: bool) -> dict[str, Tensor]:
    times = [1000 * golden.input(name) for name in ("t_video", "t_action")]

    def predict(text: str) -> Prediction:
        streams = [golden.input(name) for name in ("latents", "actions", "proprios")]
        return network(*streams, golden.input(text), *times)

    out = predict("text")
    if guided:
        out = guide(out, predict("null_text"), GUIDANCE)
    return _named(out, _PREDICTION)


def _sample(network: JointNetwork, golden: GoldenFile, video_steps: int, action_steps: int) -> dict[str, Tensor]:
    out = sample(
        network,
        Conditions(golden.input("latents")[:, :, 0], golden.input("proprios")[:, 0]),
        golden.input("text"),
        noise=golden.noise(),
        video_steps=video_steps,
        action_steps=action_steps,
    )
    timesteps = {"video_timesteps": Solver(video_steps).timesteps, "action_timesteps": Solver(action_steps).timesteps}
    return _named(out, _SAMPLE) | {name: value.float() for name, value in timesteps.items()}


def _named(out: object, names: dict[str, str]) -> dict[str, Tensor]:
    tensors = {leaf: getattr(out, field) for leaf, field in names.items()}
    return {leaf: tensor for leaf, tensor in tensors.items() if tensor is not None}
