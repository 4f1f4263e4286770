"""Our network and sampler against golden tensors of the reference implementation.

A golden file is a safetensors file: metadata `config` (the reference constructor's values, JSON), `weight.*`
(its state dict), `input.*`, and any of

    output.forward.*   one forward of the inputs as they are
    output.guided.*    the same with guidance 2.0
    output.sample.noise_{video,action,proprio} and output.sample{Nv}_{Na}.*   asynchronous denoising from that
                       noise, unguided, with Nv video and Na action steps

The error of an output is its largest difference over its largest value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.model.network import JointNetwork, Prediction
from xwam_ft.model.reference import build_from_reference
from xwam_ft.model.sampler import SampleNoise, guide, sample
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
_MAKE = "make it as described in src/xwam_ft/model/parity.py"


@dataclass(frozen=True)
class Row:
    """One output: its name, relative error and the bound it must keep."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # a NaN does not pass


@dataclass(frozen=True)
class ParityReport:
    """All outputs of a golden file, and the usual ones it does not hold."""

    rows: list[Row]
    absent: list[str]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)


@dataclass(frozen=True)
class GoldenFile:
    """A golden file's parts; tensors by name without their prefix, in float32."""

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, dict[str, Tensor]]

    def input(self, name: str) -> Tensor:
        if name not in self.inputs:
            raise UserError(f"no tensor input.{name}", self.path, f"add it: {_MAKE}")
        return self.inputs[name]

    def noise(self) -> SampleNoise:
        stored = self.outputs.get("sample", {})
        missing = [f"output.sample.noise_{name}" for name in _STREAMS if f"noise_{name}" not in stored]
        if missing:
            raise UserError(f"sampled outputs without {listed(missing)}", self.path, f"add it: {_MAKE}")
        return SampleNoise(*(stored[f"noise_{name}"] for name in _STREAMS))


_STREAMS = ("video", "action", "proprio")


def read_golden(path: Path) -> GoldenFile:
    """Read a golden file; raises `UserError` for whatever is not one."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError("no such file", path, "give the path of a golden .safetensors file")
    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "input": {}, "output": {}}
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            for name in stored.keys():  # noqa: SIM118 - a file handle, not a dict
                kind, _, rest = name.partition(".")
                if kind not in parts or not rest:
                    raise UserError(f"unknown tensor {name}", path, "name tensors weight.*, input.* and output.*")
                parts[kind][rest] = stored.get_tensor(name).float()
    except (SafetensorError, OSError) as error:
        raise UserError(f"not a readable safetensors file ({error})", path, _MAKE) from None
    try:
        config = json.loads(metadata["config"])
    except (KeyError, json.JSONDecodeError):
        config = None
    if not isinstance(config, dict):
        raise UserError("no metadata `config` in JSON", path, f"add the constructor's values: {_MAKE}")
    outputs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in parts["output"].items():
        group, _, leaf = name.partition(".")
        outputs.setdefault(group, {})[leaf] = tensor
    return GoldenFile(path, config, parts["weight"], parts["input"], outputs)


def check_parity(path: Path) -> ParityReport:
    """Compare every output that a golden file holds; raises `UserError` on a file that is not one."""
    golden = read_golden(path)
    groups = {name: leaves for name, leaves in golden.outputs.items() if name != "sample"}
    if not groups:
        raise UserError("it holds no outputs, so there is nothing to compare", path, _MAKE)
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


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value (over 1 where all values are 0)."""
    largest = float(expected.abs().max())
    return float((ours - expected).abs().max()) / (largest or 1.0)


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
        golden.input("latents")[:, :, 0],
        golden.input("proprios")[:, 0],
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
