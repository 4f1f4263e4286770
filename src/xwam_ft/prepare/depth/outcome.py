"""What became of depth, per camera over all episodes: for the console, the report and `depth.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xwam_ft.prepare.depth.check import DepthCheck

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.prepare.depth import DepthPlan
    from xwam_ft.prepare.jobs import EpisodeResult


@dataclass(frozen=True)
class DepthOutcome:
    """Shares are of 1; those at `near` and `far` are held at the ends of the coded range.

    `flicker`: change of what stands still from frame to frame (align.py), `flicker_raw` before.
    """

    valid: float
    at_near: float | None  # of the valid pixels; None for relative depth, which has no range
    at_far: float | None
    flicker_raw: float | None
    flicker: float | None
    check: DepthCheck | None


def depth_outcomes(results: Sequence[EpisodeResult]) -> dict[str, DepthOutcome]:
    """By camera, episodes weighed by their frames; empty without depth."""
    cameras = list(dict.fromkeys(name for result in results for name in result.depth_valid))
    found: dict[str, DepthOutcome] = {}
    for name in cameras:
        seen = [result for result in results if name in result.depth_valid]
        checks = [DepthCheck(**result.depth_check[name]) for result in seen if name in result.depth_check]  # pyright: ignore[reportArgumentType]
        valid = _mean([(result.depth_valid[name], result.frames) for result in seen])
        assert valid is not None
        flickers = [(result.depth_flicker.get(name, {}), result.frames) for result in seen]
        near, far = (
            _mean([(result.depth_ends[name][end], result.frames) for result in seen if name in result.depth_ends])
            for end in (0, 1)
        )
        raw, aligned = (_mean([(each.get(kind), n) for each, n in flickers]) for kind in ("raw", "aligned"))
        found[name] = DepthOutcome(valid, near, far, raw, aligned, DepthCheck.over(checks))
    return found


def say_depth(outcomes: dict[str, DepthOutcome], plan: DepthPlan, console: Console) -> None:
    """Print the table, where depth was estimated or compared."""
    from rich.table import Table

    if not outcomes or (plan.estimator is None and not plan.aligned and not plan.check):
        return
    table = Table("camera", title=f"depth: {plan.spec}", title_justify="left")
    headings = ["valid", "at near", "at far", "flicker", "before alignment"]
    fitted = ", scale and shift fitted" if plan.code.kind == "relative" else ""
    headings += [f"AbsRel{fitted}", "delta1", "pixels compared"] if plan.check else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, found in outcomes.items():
        cells = [f"{found.valid:.1%}", _percent(found.at_near), _percent(found.at_far)]
        cells += [_percent(found.flicker), _percent(found.flicker_raw)]
        if plan.check:
            check = found.check
            cells += ["-"] * 3 if check is None else [f"{check.abs_rel:.4f}", f"{check.delta1:.4f}", str(check.pixels)]
        table.add_row(name, *cells)
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _mean(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None
