"""report.html: what was prepared, on one page that needs no network; the same bytes for the same shard set."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions
from xwam_ft.prepare import statistics
from xwam_ft.prepare.depth.outcome import depth_outcomes
from xwam_ft.prepare.episode_job import Motions

if TYPE_CHECKING:
    from xwam_ft.contract import Contract, Slot
    from xwam_ft.prepare.depth import DepthPlan
    from xwam_ft.prepare.episode_job import EpisodeJob, EpisodeResult

SHEETS = 24  # episodes shown in pictures
TURNS = ("dx", "dy", "dz", "rx", "ry", "rz")
BINS = np.linspace(-1.5, 1.5, 61)
TEMPLATE = Path(__file__).with_name("report.html.jinja")


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
            "cameras": [
                {"name": name, "data": _data((job.folder / f"sheet-{name}.jpg").read_bytes(), "jpeg")}
                for name in contract.camera_names
            ],
        }
        for job in accepted
        if job.number in chosen
    ]
    train = Motions([job for job in accepted if job.number not in held_out])
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
        warnings=[(result.number, text) for result in kept for text in result.warnings],
        slots=[_slot_rows(contract, slot) for slot in contract.slots],
        sheets=sheets,
        hidden=len(kept) - len(sheets),
        histograms=histograms(contract, train),
        depth=depth,
        depth_rows=depth_outcomes(kept) if depth.estimator or depth.aligned or depth.check else {},
        codecs=kept[0].codecs,
    )


def _shown(kept: Sequence[EpisodeResult], held_out: set[int]) -> set[int]:
    numbers = [result.number for result in kept]
    first = [result.number for result in kept if result.number in held_out or result.warnings][: SHEETS // 2]
    rest = [number for number in numbers if number not in first]
    even = (
        np.unique(np.linspace(0, len(rest) - 1, min(len(rest), SHEETS - len(first))).round().astype(int))
        if rest
        else []
    )
    return {*first, *(rest[i] for i in even)}


def _slot_rows(contract: Contract, slot: Slot) -> dict[str, Any]:
    """One table row a number: its element, unit, and the quantiles of proprio and action."""
    quantiles = contract.quantiles
    state_at = conventions.state_slices(contract)[slot.name]
    rows: list[dict[str, str]] = []
    action_at = conventions.action_slices(contract).get(slot.name)
    turns = slot.kind == "pose"
    width = max(slot.state_width, slot.action_width)
    for i in range(width):
        row = {"state": "", "unit": "", "state_range": "", "action": "", "action_unit": "", "action_range": ""}
        if i < slot.state_width:
            at = state_at.start + i
            row["state"], row["unit"] = slot.elements[i], slot.units[i]
            row["state_range"] = _span(quantiles.proprio_low[at], quantiles.proprio_high[at])
        if action_at is not None and i < slot.action_width:
            at = action_at.start + i
            # A command in its own units is another quantity than the state, an effort for an opening, say.
            other = slot.command_units is not None and slot.action_width == 1
            row["action"] = TURNS[i] if turns else "command" if other else slot.elements[i]
            units = slot.command_units or slot.units
            row["action_unit"] = ("m" if i < 3 else "rad") if turns else units[i]
            row["action_range"] = _span(quantiles.action_low[at], quantiles.action_high[at])
        rows.append(row)
    return {"slot": slot, "rows": rows}


def histograms(contract: Contract, train: Sequence[statistics.Motion]) -> str:
    """Normalised training actions, one small plot a slot, as a data URL."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    actions, masks = statistics.chunk_actions(contract, train)
    values = conventions.normalise_action(contract, actions)
    places = {name: at for name, at in conventions.action_slices(contract).items() if contract.slot(name).present}
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.2 * columns, 2.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for cell, (name, place) in enumerate(places.items()):
            axes = figure.add_subplot(rows, columns, cell + 1)
            slot = contract.slot(name)
            labels = TURNS if slot.kind == "pose" else slot.elements
            labels = ("command",) if slot.command_units is not None and len(labels) == 1 else labels
            for i, label in enumerate(labels):
                column = values[masks[:, place.start + i] > 0, place.start + i]
                counts, _ = np.histogram(np.clip(column, BINS[0], BINS[-1]), BINS)
                axes.stairs(counts / max(1, len(column)), BINS, label=label)
            for border in (-1, 1):
                axes.axvline(border, color="0.8", linewidth=0.8, zorder=0)
            axes.set_title(f"{name} ({slot.convention})", loc="left")
            axes.set_yticks([])
            if len(labels) <= 7:
                axes.legend(frameon=False, fontsize=6)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return _data(buffer.getvalue(), "png")


def _span(low: float, high: float) -> str:
    return f"{low:.4g} … {high:.4g}"


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
