"""report.html: what was prepared, on one page that needs no network; the same bytes for the same shard set."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xwam_ft import conventions, quantiles
from xwam_ft.prepare.depth.outcome import depth_outcomes
from xwam_ft.prepare.findings import FindingGroup, can_be_dropped, episodes_text, grouped, names_of
from xwam_ft.prepare.jobs import Motions, MotionsByNumber

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xwam_ft.contract import Contract, Slot
    from xwam_ft.limits import Limits
    from xwam_ft.prepare.depth import DepthPlan
    from xwam_ft.prepare.jobs import EpisodeJob, EpisodeResult

SHEETS = 24  # episodes shown in pictures
THUMBNAILS = 6  # a finding
TEMPLATE = Path(__file__).with_name("report.html.jinja")


class _Encoded(NamedTuple):
    """Of the training episodes: states [F, P], and actions [N, Da] of clip starts with their masks."""

    states: np.ndarray
    actions: np.ndarray
    masks: np.ndarray


def render(
    contract: Contract,
    accepted: Sequence[EpisodeJob],
    results: Sequence[EpisodeResult],
    held_out: set[int],
    depth: DepthPlan,
) -> str:
    """The page as text. Pictures are of at most `SHEETS` episodes: held-out and warned ones first, then evenly."""
    from jinja2 import Environment

    kept = [results[job.number] for job in accepted]
    chosen = _shown(kept, held_out)
    sheets = [
        {
            "number": job.number,
            "title": f"{results[job.number].dataset} episode {job.episode.index}",
            "instruction": results[job.number].instruction,
            "cameras": [
                {"name": name, "data": _data((job.folder / f"sheet-{name}.jpg").read_bytes())}
                for name in contract.camera_names
            ],
        }
        for job in accepted
        if job.number in chosen
    ]
    train = Motions([job for job in accepted if job.number not in held_out])
    numbers = _Encoded(quantiles.all_states(train), *quantiles.chunk_actions(contract, train))
    groups = grouped((result.number, finding) for result in results for finding in result.findings)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        contract=contract,
        timing=contract.timing,
        seconds=f"{(contract.timing.span - 1) / contract.timing.fps:.2f}",
        kept=kept,
        held_out=held_out,
        rejected=[result for result in results if result.reason is not None],
        frames=sum(result.frames for result in kept),
        duration=f"{sum(result.frames for result in kept) / contract.timing.fps / 60:.1f}",
        padded=sum(result.padded_starts for result in kept),
        starts=sum(max(0, result.frames - contract.timing.frame_skip) for result in kept),
        groups=[_group(group, results, contract.camera_names) for group in groups],
        droppable={group.check for group in groups if can_be_dropped(group, groups, {job.number for job in accepted})},
        warnings=sum(group.severity == "warning" for group in groups),
        slots=_slots(contract, numbers),
        changes={
            plan.slot.name: "the command before" if plan.delta.to == "command" else "the state"
            for plan in accepted[0].slots
            if plan.delta is not None
        },
        sheets=sheets,
        hidden=len(kept) - len(sheets),
        plots=plots(contract, MotionsByNumber(accepted), numbers, kept, held_out),
        depth=depth,
        depth_rows=depth_outcomes(kept),
        codecs=kept[0].codecs,
    )


def plots(
    contract: Contract,
    motions: Mapping[int, quantiles.Motion],
    numbers: _Encoded,
    kept: Sequence[EpisodeResult],
    held_out: set[int],
) -> dict[str, str | None]:
    """The page's plots as data URLs, by name."""
    from xwam_ft.prepare import report_plots

    episodes, frames = [result.number for result in kept], [result.frames for result in kept]
    apart = [result.seconds_apart for result in kept]
    return {
        "distributions": histograms(contract, numbers),
        "paths": report_plots.paths(contract, motions, held_out),
        "timing": report_plots.timing(contract.timing.fps, episodes, frames, apart, held_out),
    }


def histograms(contract: Contract, numbers: _Encoded) -> str:
    """Distributions of every slot's normalised numbers, as a data URL."""
    from xwam_ft.prepare.report_plots import distributions

    return distributions(contract, numbers.states, numbers.actions, numbers.masks)


def _group(group: FindingGroup, results: Sequence[EpisodeResult], cameras: Sequence[str]) -> dict[str, Any]:
    """What the page says of one finding: its sentences with their episodes, and pictures of the first few."""
    names = names_of(results)
    pictures: list[dict[str, Any]] = []
    for number, finding in group.found:
        data = results[number].thumbnails.get(f"{finding.camera or cameras[0]}:{finding.frame}")
        if data is not None and len(pictures) < THUMBNAILS:
            caption = f"{episodes_text([number], names)}, {finding.camera or cameras[0]}, frame {finding.frame}"
            pictures.append({"data": f"data:image/jpeg;base64,{data}", "caption": caption})
    return {
        "check": group.check,
        "severity": group.severity,
        "summary": group.summary,
        "fix": group.fix,
        "episodes": "" if group.of_dataset else episodes_text(group.episodes, names),
        "texts": [(episodes_text(numbers, names), text) for text, numbers in group.texts.items()],
        "pictures": pictures,
    }


def _shown(kept: Sequence[EpisodeResult], held_out: set[int]) -> set[int]:
    numbers = [result.number for result in kept]
    first = [result.number for result in kept if result.number in held_out or result.of("warning")][: SHEETS // 2]
    rest = [number for number in numbers if number not in first]
    even = (
        np.unique(np.linspace(0, len(rest) - 1, min(len(rest), SHEETS - len(first))).round().astype(int))
        if rest
        else []
    )
    return {*first, *(rest[i] for i in even)}


def _slots(contract: Contract, numbers: _Encoded) -> list[dict[str, Any]]:
    actions = np.where(numbers.masks > 0, numbers.actions, np.nan)
    return [_slot_rows(contract, slot, numbers.states, actions) for slot in contract.slots]


def _slot_rows(contract: Contract, slot: Slot, states: np.ndarray, actions: np.ndarray) -> dict[str, Any]:
    """One table row a number: its element, unit, and quantiles and extremes of proprio and action."""
    from xwam_ft.prepare.report_plots import action_names

    quantiles = contract.quantiles
    state_at = conventions.state_slices(contract)[slot.name]
    action_at = conventions.action_slices(contract).get(slot.name)
    rows: list[dict[str, str]] = []
    for i in range(max(slot.state_width, slot.action_width)):
        row: dict[str, str] = dict.fromkeys(
            ("state", "unit", "state_range", "state_ends", "action", "action_unit", "action_range", "action_ends"), ""
        )
        if i < slot.state_width:
            at = state_at.start + i
            row["state"], row["unit"] = slot.elements[i], slot.units[i]
            row["state_range"] = _span(quantiles.proprio_low[at], quantiles.proprio_high[at])
            row["state_ends"] = _ends(states[:, at])
        if action_at is not None and i < slot.action_width:
            at = action_at.start + i
            row["action"] = action_names(slot)[i]
            units = slot.command_units or slot.units
            row["action_unit"] = ("m" if i < 3 else "rad") if slot.kind == "pose" else units[i]
            row["action_range"] = _span(quantiles.action_low[at], quantiles.action_high[at])
            row["action_ends"] = _ends(actions[:, at])
        rows.append(row)
    return {"slot": slot, "rows": rows, "limits": _limit_rows(contract, slot)}


def _limit_rows(contract: Contract, slot: Slot) -> list[dict[str, str]]:
    """What commands are held in, by number, and whether somebody stated it."""
    found, stated = contract.limits(slot.name), slot.limits
    if found is None or not slot.present or not slot.commanded:
        return []
    names = list(slot.elements[:3] if slot.kind == "pose" else slot.elements)
    rows = _rows_of(names, found, stated)
    if slot.kind == "pose" and found.speed is not None:
        source = "recorded" if stated is None or stated.speed is None else "stated"
        along = [("along its path", f"{found.speed[0]:.3g} m/s"), ("its turn", f"{found.speed[1]:.3g} rad/s")]
        rows = [{**row, "speed": ""} for row in rows]
        rows += [{"name": name, "bounds": "", "speed": speed, "source": source} for name, speed in along]
    if found.joints is not None:
        rows += _rows_of(list(slot.columns), found.joints, stated and stated.joints)
    return rows


def _rows_of(names: Sequence[str], found: Limits, stated: Limits | None) -> list[dict[str, str]]:
    whole = stated is not None and stated == stated.completed(found)
    source = "stated" if whole else "recorded, with a margin" if stated is None else "in part recorded"
    nothing = [""] * len(names)
    bounds = nothing if found.low is None or found.high is None else list(map(_span, found.low, found.high))
    speeds = nothing if found.speed is None else [f"{value:.3g}" for value in found.speed] + nothing
    return [
        {"name": name, "bounds": bound, "speed": speed, "source": source}
        for name, bound, speed in zip(names, bounds, speeds, strict=False)
    ]


def _span(low: float, high: float) -> str:
    return f"{low:.3g} … {high:.3g}"


def _ends(column: np.ndarray) -> str:
    known = column[np.isfinite(column)]
    return _span(float(known.min()), float(known.max())) if len(known) else ""


def _data(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
