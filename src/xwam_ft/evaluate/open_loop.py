"""Open-loop evaluation: predicted against recorded commands on clips the policy never saw, beside two baselines.

Every clip starts from its recorded picture and state; the chunk the policy answers is decoded to absolute commands and
compared with those that were recorded, in physical units (errors.py). Steps past a recording's end do not count. A low
error says that the policy imitates; it does not say that the robot succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xwam_ft import observation
from xwam_ft.errors import UserError
from xwam_ft.evaluate.baselines import hold_still, mean_action
from xwam_ft.evaluate.errors import ErrorTable, Measure, command_errors
from xwam_ft.files import atomic_folder, write_bytes_atomic, write_json_atomic, write_text_atomic
from xwam_ft.policy.policy import clip_observation
from xwam_ft.policy.source import PolicySource
from xwam_ft.progress import progress_bar
from xwam_ft.shards import CONTRACT_FILE, ShardSet

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from rich.console import Console

    from xwam_ft.observation import EncodedObservation
    from xwam_ft.policy.policy import Policy
    from xwam_ft.shards import Clip, Split

METHODS = ("policy", "mean_action", "hold_still")
BATCH = 8  # clips a forward pass
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
        "by_horizon": {slot: {quantity: {"unit", method: [Ta]}}}, "dimensions": as "slots", a number each}.

        `better`: the policy's error is below both baselines'. None where nothing was recorded, or always the same
        command (its mean has no error).
        """
        means = {method: self.mean(method) for method in METHODS}
        curves = {method: self.by_horizon(method) for method in METHODS}
        tables: dict[str, dict[str, dict[str, Any]]] = {"slots": {}, "by_horizon": {}, "dimensions": {}}
        for index, measure in enumerate(self.measures):
            values = {method: _number(means[method][index]) for method in METHODS}
            entry = {"unit": measure.unit, **values, "better": _better(values)}
            table = tables["dimensions" if measure.dimension else "slots"]
            table.setdefault(measure.slot, {})[measure.name] = entry
            if not measure.dimension:
                lines = {method: [_number(value) for value in curves[method][:, index]] for method in METHODS}
                tables["by_horizon"].setdefault(measure.slot, {})[measure.name] = {"unit": measure.unit, **lines}
        steps = self.weights.shape[1]
        return {
            "clips": self.clips,
            "split": self.split,
            "trained_backbone": self.trained,
            "horizon_seconds": [index * self.period for index in range(steps)],
            **tables,
        }


def open_loop(
    policy: Policy,
    shards: ShardSet,
    *,
    split: Split = "held_out",
    clips: int,
    progress: Callable[[int], None] | None = None,
    mean: Float[ndarray, "ta da"] | None = None,
    black: str | None = None,
) -> OpenLoopResult:
    """Score a policy on clips spread evenly over a split.

    Args:
        clips: how many; all of them where the split has fewer.
        progress: told how many clips were done.
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
            "prepare again with `held_out` above 0 in the embodiment file",
        )
    mean = mean_action(shards) if mean is None else mean
    tables: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    weights: list[np.ndarray] = []
    measures: tuple[Measure, ...] = ()
    for first in range(0, len(chosen), BATCH):
        batch = [shards.read_clip(ref) for ref in chosen[first : first + BATCH]]
        seeds = [policy.settings.seed + first + index for index in range(len(batch))]
        actions = policy.infer_batch([_observed(shards, clip, dark) for clip in batch], seeds)
        for clip, action in zip(batch, actions, strict=True):
            still = hold_still(shards.contract, clip.proprio[0], mean)
            compared = [_errors(shards, clip, answer) for answer in (action, mean, still)]
            for method, table in zip(METHODS, compared, strict=True):
                tables[method].append(table.error)
            measures = compared[0].measures
            weights.append(compared[0].weight)
        if progress is not None:
            progress(len(batch))
    return OpenLoopResult(
        split=split,
        keys=tuple(ref.key for ref in chosen),
        measures=measures,
        errors={method: np.stack(rows) for method, rows in tables.items()},
        weights=np.stack(weights),
        period=shards.contract.timing.action_period,
        trained=policy.trained,
    )


def evaluate_bundle(
    bundle: Path | PolicySource,
    shards: Path,
    out: Path | None,
    clips: int,
    console: Console,
    *,
    split: Split = "held_out",
    latency: bool = False,
    camera_blackout: bool = False,
    seams: bool = False,
) -> OpenLoopResult:
    """`xwam-ft evaluate`: print the table; with `out`, write metrics.json, horizon.png and report.html there.

    Args:
        latency: also error and time of a call for 1 to 10 action steps (latency.py).
        camera_blackout: also errors with each camera's pictures black (blackout.py).
        seams: also jerk where a chunk follows another (seams.py).

    Raises:
        UserError: `out` is not empty; not a bundle or shard set; they were made of different preparations; the split
            holds no clips.
    """
    from xwam_ft.evaluate.blackout import blackout
    from xwam_ft.evaluate.latency import MOST_CLIPS, STEPS, latency_table
    from xwam_ft.evaluate.report import horizon_plot, html, print_table
    from xwam_ft.evaluate.seams import MOST_PAIRS, seam_table

    with ExitStack() as stack:
        folder = stack.enter_context(atomic_folder(out)) if out is not None else None
        shard_set = ShardSet.open(shards)
        source = PolicySource.of(bundle)
        policy = source.load()
        shard_set = shard_set.under(policy.contract, source.folder / CONTRACT_FILE)
        total = min(clips, len(shard_set.clips(split, 1)))
        work = total + (total * len(shard_set.contract.cameras) if camera_blackout else 0)
        work += min(total, MOST_CLIPS) * len(STEPS) if latency else 0
        work += min(total, MOST_PAIRS) if seams else 0
        with progress_bar(console, "evaluate", "clips", work) as advance:
            mean = mean_action(shard_set)
            result = open_loop(policy, shard_set, split=split, clips=clips, progress=advance, mean=mean)
            metrics = {"bundle": source.name, "shards": str(shards), **result.metrics()}
            if latency:
                metrics["latency"] = latency_table(policy, shard_set, split=split, clips=clips, mean=mean, told=advance)
            if camera_blackout:
                metrics["blackout"] = blackout(policy, shard_set, result, clips=clips, mean=mean, told=advance)
            if seams:
                metrics["seams"] = seam_table(policy, shard_set, split=split, clips=clips, told=advance)
        print_table(metrics, console)
        if folder is not None:
            plot = horizon_plot(metrics)
            write_json_atomic(folder / "metrics.json", metrics)
            write_bytes_atomic(folder / "horizon.png", plot)
            write_text_atomic(folder / "report.html", html(metrics, policy.contract, plot))
    if out is not None:
        console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return result


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
