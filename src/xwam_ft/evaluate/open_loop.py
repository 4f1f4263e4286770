"""Open-loop evaluation: predicted against recorded commands on clips the policy never saw, beside two baselines.

Every clip starts from its recorded picture and state; the chunk the policy answers is decoded to absolute commands and
compared with those that were recorded, in physical units (errors.py). Steps past a recording's end do not count. A low
error says that the policy imitates; it does not say that the robot succeeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xwam_ft import observation
from xwam_ft.errors import UserError
from xwam_ft.evaluate.baselines import hold_still, mean_action
from xwam_ft.evaluate.errors import ErrorTable, Measure, command_errors
from xwam_ft.policy.policy import clip_observation
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.observation import EncodedObservation
    from xwam_ft.policy.policy import Policy
    from xwam_ft.policy.settings import Settings
    from xwam_ft.progress import Advance
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import Clip

METHODS = ("policy", "mean_action", "hold_still")
BATCH = 8  # clips a forward pass
OTHER_SPLIT = (
    "measure on what it was trained on with --split train; for new recordings that none was held out of, "
    "`xwam-ft shards resplit {shards} NEW --held-out 0.5`"
)
Item = TypeVar("Item")


@dataclass(frozen=True)
class OpenLoopResult:
    """Mean errors. N clips, Ta steps, M measures.

    Args:
        errors, weights: per method [N, Ta, M]; weight 0 where nothing was recorded.
        period: seconds between two steps.
        trained: False where the policy's backbone was never trained.
    """

    split: Split
    keys: tuple[str, ...]
    episodes: tuple[int, ...]  # of each clip
    measures: tuple[Measure, ...]
    errors: dict[str, Float[ndarray, "n ta m"]]
    weights: Float[ndarray, "n ta m"]
    period: float
    trained: bool

    @property
    def clips(self) -> int:
        return len(self.keys)

    def mean(self, method: str) -> Float[ndarray, " m"]:
        """Over clips and steps; NaN where nothing was recorded."""
        return _mean(self.errors[method], self.weights, (0, 1))

    def by_horizon(self, method: str) -> Float[ndarray, "ta m"]:
        """Over clips alone."""
        return _mean(self.errors[method], self.weights, (0,))

    def metrics(self) -> dict[str, Any]:
        """The JSON form: {"clips", "split", "trained_backbone", "horizon_seconds" [Ta],
        "slots": {slot: {quantity: {"unit", "policy", "mean_action", "hold_still", "better"}}},
        "by_horizon": {slot: {quantity: {"unit", method: [Ta]}}}, "dimensions": as "slots", a number each,
        "per_clip": {"keys" [N], "episodes" [N], "slots": {slot: {quantity: the policy's error in each clip [N]}}}}.

        `better`: the policy's error is below both baselines'. None where nothing was recorded, or always the same
        command (its mean has no error).
        """
        means = {method: self.mean(method) for method in METHODS}
        curves = {method: self.by_horizon(method) for method in METHODS}
        of_clips = _mean(self.errors["policy"], self.weights, (1,))
        tables: dict[str, dict[str, dict[str, Any]]] = {"slots": {}, "by_horizon": {}, "dimensions": {}}
        clips: dict[str, dict[str, list[float | None]]] = {}
        for index, measure in enumerate(self.measures):
            values = {method: _number(means[method][index]) for method in METHODS}
            entry = {"unit": measure.unit, **values, "better": _better(values)}
            table = tables["dimensions" if measure.dimension else "slots"]
            table.setdefault(measure.slot, {})[measure.name] = entry
            if not measure.dimension:
                lines = {method: [_number(value) for value in curves[method][:, index]] for method in METHODS}
                tables["by_horizon"].setdefault(measure.slot, {})[measure.name] = {"unit": measure.unit, **lines}
                clips.setdefault(measure.slot, {})[measure.name] = [_number(value) for value in of_clips[:, index]]
        steps = self.weights.shape[1]
        return {
            "clips": self.clips,
            "split": self.split,
            "trained_backbone": self.trained,
            "horizon_seconds": [index * self.period for index in range(steps)],
            **tables,
            "per_clip": {"keys": list(self.keys), "episodes": list(self.episodes), "slots": clips},
        }


def open_loop(
    policy: Policy,
    shards: ShardSet,
    *,
    split: Split = "held_out",
    clips: int,
    settings: Settings | None = None,
    advance: Advance | None = None,
    mean: Float[ndarray, "ta da"] | None = None,
    black: str | None = None,
) -> OpenLoopResult:
    """Score a policy on clips spread evenly over a split.

    Args:
        clips: how many; all of them where the split has fewer.
        settings: how it samples; default its own.
        advance: is told how many clips were done.
        mean: what `mean_action` gave of these shards, where it is known already.
        black: a camera whose pictures the policy is given black.

    Raises:
        UserError: the split holds no clips.
    """
    dark = None if black is None else shards.contract.camera_names.index(black)
    chosen = spread(shards.clips(split, 1), clips)
    if not chosen:
        raise UserError(
            f"holds no {split.replace('_', '-')} clips",
            shards.folder,
            OTHER_SPLIT.format(shards=shards.folder) if split == "held_out" else "evaluate it on held_out",
        )
    mean = mean_action(shards) if mean is None else mean
    settings = settings or policy.settings
    tables: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    weights: list[np.ndarray] = []
    measures: tuple[Measure, ...] = ()
    for first in range(0, len(chosen), BATCH):
        batch = [shards.read_clip(ref) for ref in chosen[first : first + BATCH]]
        seeds = [settings.seed + first + index for index in range(len(batch))]
        actions = policy.infer_batch([_observed(shards, clip, dark) for clip in batch], seeds, settings)
        for clip, action in zip(batch, actions, strict=True):
            still = hold_still(shards.contract, clip.proprio[0], mean)
            compared = [_errors(shards, clip, answer) for answer in (action, mean, still)]
            for method, table in zip(METHODS, compared, strict=True):
                tables[method].append(table.error)
            measures = compared[0].measures
            weights.append(compared[0].weight)
        if advance is not None:
            advance(len(batch))
    return OpenLoopResult(
        split=split,
        keys=tuple(ref.key for ref in chosen),
        episodes=tuple(ref.entry.episode for ref in chosen),
        measures=measures,
        errors={method: np.stack(rows) for method, rows in tables.items()},
        weights=np.stack(weights),
        period=shards.contract.timing.action_period,
        trained=policy.trained,
    )


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """One line a quantity of every pose slot (of every slot, where there is no pose), from `metrics.json`:
    "arm position: 12.3 mm (mean action 20.1, hold still 35.0)"."""
    poses = {name: rows for name, rows in metrics["slots"].items() if "position" in rows and "rotation" in rows}
    lines: list[str] = []
    for slot, quantities in (poses or metrics["slots"]).items():
        for name, row in quantities.items():
            if row["policy"] is None:
                continue
            unit = "" if row["unit"] == "1" else f" {row['unit']}"
            others = f"mean action {figure(row['mean_action'])}, hold still {figure(row['hold_still'])}"
            lines.append(f"{slot} {name}: {figure(row['policy'])}{unit} ({others})")
    return lines


def figure(value: float | None) -> str:
    """A number for people: three significant figures or one decimal, whichever says more; "–" for none."""
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def spread(refs: Sequence[Item], count: int) -> list[Item]:
    """At most `count`, evenly over the list."""
    if len(refs) <= count:
        return list(refs)
    return [refs[index] for index in np.linspace(0, len(refs) - 1, count).round().astype(int)]


def _observed(shards: ShardSet, clip: Clip, dark: int | None) -> EncodedObservation:
    seen = clip_observation(shards.contract, clip)
    if dark is None:
        return seen
    pictures = seen.pictures.copy()
    pictures[dark] = 0
    return replace(seen, pictures=pictures)


def _errors(shards: ShardSet, clip: Clip, action: np.ndarray) -> ErrorTable:
    commands = observation.decode(shards.contract, action, clip.proprio[0], states=clip.action_states)
    return command_errors(shards.contract, commands.table, clip.action, clip.action_mask)


def _mean(errors: np.ndarray, weights: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    total = weights.sum(axis=axes)
    sums = (errors * weights).sum(axis=axes)
    return np.where(total > 0, sums / np.maximum(total, 1.0), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _better(values: Mapping[str, float | None]) -> bool | None:
    ours, mean, still = (values[method] for method in METHODS)
    if ours is None or mean is None or still is None:
        return None
    return None if mean == 0 else ours < min(mean, still)  # always the same command: nothing to be better at
