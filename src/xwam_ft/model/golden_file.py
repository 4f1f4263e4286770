"""A golden file of the reference implementation: reading it, and how far from it we are.

A safetensors file with metadata `config` (the reference constructor's values, JSON), `weight.*` (its state dict),
`input.*` and `output.*`. What the outputs are: parity.py (of the network and its sampling), parity_step.py (of a
training step).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError, listed
from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

MAKE = "make it as described in src/xwam_ft/model/parity.py and parity_step.py"
STREAMS = ("video", "action", "proprio")


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
            raise UserError(f"no tensor input.{name}", self.path, f"add it: {MAKE}")
        return self.inputs[name]

    def noise(self) -> Streams:
        stored = self.outputs.get("sample", {})
        missing = [f"output.sample.noise_{name}" for name in STREAMS if f"noise_{name}" not in stored]
        if missing:
            raise UserError(f"sampled outputs without {listed(missing)}", self.path, f"add it: {MAKE}")
        return Streams(*(stored[f"noise_{name}"] for name in STREAMS))


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
        raise UserError(f"not a readable safetensors file ({error})", path, MAKE) from None
    try:
        config = json.loads(metadata["config"])
    except (KeyError, json.JSONDecodeError):
        config = None
    if not isinstance(config, dict):
        raise UserError("no metadata `config` in JSON", path, f"add the constructor's values: {MAKE}")
    outputs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in parts["output"].items():
        group, _, leaf = name.partition(".")
        outputs.setdefault(group, {})[leaf] = tensor
    return GoldenFile(path, config, parts["weight"], parts["input"], outputs)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value (over 1 where all values are 0)."""
    largest = float(expected.abs().max())
    return float((ours - expected).abs().max()) / (largest or 1.0)
