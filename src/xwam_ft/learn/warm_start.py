"""A run that starts from another one: what it starts as is kept in the run, so that it never needs the old place again.

init/trainable.safetensors    every trained tensor before the first step
init/report.json              what was started from (place, step, SHA-256), what was carried over, new or left behind,
                              the quantiles old and new
init/seen.json                which episodes it was trained on, by digest (policy/seen.py)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.consoles import print_table
from xwam_ft.encode.inherit import SlotRange, inherit, sentences
from xwam_ft.encode.inputs import first_rank, wait_for
from xwam_ft.errors import listed
from xwam_ft.files import atomic_folder, disk_errors, write_json_atomic
from xwam_ft.learn.carry import Carried, carry, table_rows
from xwam_ft.model.adapters import load_trainable, trainable_state
from xwam_ft.model.trainable import brings_depth
from xwam_ft.runs.origin import SEEN_FILE, Origin, open_origin, require_backbone, seen_by

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe

START = "init"
START_FILE = f"{START}/trainable.safetensors"


@dataclass(frozen=True)
class StartReport:
    """What a run started from and what became of it."""

    origin: Origin
    carried: Carried
    ranges: list[SlotRange]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        origin = {key: getattr(self.origin, key) for key in ("place", "said", "sha256", "backbone")}
        own = {"carried": asdict(self.carried), "quantiles": [asdict(row) for row in self.ranges]}
        return {"origin": {**origin, "contract": self.origin.contract.sha256}, **own, "notes": self.notes}

    def print(self, console: Console) -> None:
        """A table of parts, one of ranges, and sentences."""
        told = f"starts from {self.origin.place}: {self.origin.said}"
        console.print(told, soft_wrap=True, markup=False)
        parts = table_rows(self.carried)
        if not print_table(("part", "carried over", "new"), parts, console):
            for part, carried, new in parts:
                console.print(f"{part}\n    carried over: {carried}\n    new: {new}", soft_wrap=True, markup=False)
        self._print_ranges(console)
        for note in self.notes:
            console.print(note, soft_wrap=True, markup=False)

    def _print_ranges(self, console: Console) -> None:
        rows: list[tuple[str, ...]] = []
        for row in self.ranges:
            ends = (f"{low:.4g}..{high:.4g}" for low, high in (row.old, row.new))
            used = "kept" if row.kept else "refitted"
            rows.append((row.slot, row.stream, row.number, *ends, f"{row.reach:.2f}", used))
        header = ("slot", "numbers", "farthest", "old range", "new range", "reach", "quantiles")
        if not rows or print_table(header, rows, console):
            return
        for slot, stream, number, old, new, reach, used in rows:
            told = f"quantiles {used}; farthest is {number}: {old} before, {new} now, reach {reach}"
            console.print(f"{slot}, {stream}\n    {told}", soft_wrap=True, markup=False)


def begin(
    network: JointNetwork, backbone: Backbone, recipe: Recipe, contract: Contract, run: Path | None, console: Console
) -> None:
    """Set the trained tensors of a fresh network to those its recipe starts from, and keep them in the run.

    Args:
        contract: of the recordings, as it was decided (inherit.py).
        run: the run folder; None: nothing is written.

    Raises:
        UserError: what `init_from` names is gone or cannot be carried over; the run cannot be written.
    """
    from safetensors.torch import save_file

    assert recipe.init_from is not None
    kept = None if run is None else run / START_FILE
    if kept is not None and (kept.is_file() or not first_rank()):
        load_trainable(network, read_start(kept), kept)
        return
    origin = open_origin(recipe.init_from)
    require_backbone(origin, recipe.backbone, backbone.fingerprint)
    brought = brings_depth(backbone, recipe.model.depth.blocks)
    report = start_report(recipe, contract, origin, carry(network, origin, contract, console, brought=brought))
    report.print(console)
    if run is not None:
        state = {name: tensor.cpu().contiguous().clone() for name, tensor in trainable_state(network).items()}
        with disk_errors(run), atomic_folder(run / START) as folder:
            save_file(state, folder / Path(START_FILE).name)
            write_json_atomic(folder / "report.json", report.to_dict())
            write_json_atomic(folder / Path(SEEN_FILE).name, sorted(seen_by(recipe.init_from)))


def read_start(kept: Path) -> dict[str, Tensor]:
    """What a run keeps of its start (mapped, not read); waits for the first rank, which makes it."""
    from safetensors.torch import load_file

    if not first_rank():
        wait_for(kept)
    return load_file(kept)


def start_report(recipe: Recipe, contract: Contract, origin: Origin, carried: Carried) -> StartReport:
    """`contract`: as decided; what its ranges would be without the origin is gone, and is read off the recordings."""
    from xwam_ft.encode.data_sets import open_sets

    _, ranges, signs = inherit(open_sets(recipe.data).contract, origin.contract, recipe.init_quantiles)
    notes = [*carried.sentences, *other_clock(contract, origin.contract, origin.place)]
    notes += [*sentences(ranges, recipe.init_quantiles), *signs, *other_future(recipe, origin)]
    if carried.left:
        notes.append(f"left behind, since nothing here holds it: {listed(carried.left, 6)}")
    return StartReport(origin, carried, ranges, notes)


def other_future(recipe: Recipe, origin: Origin) -> list[str]:
    """What it means that the origin was trained to act with the future otherwise than the recipe says."""
    if recipe.model.future == origin.future:
        return []
    if origin.future == "joint":
        return [
            f"future: {origin.place} learned to act with the imagined frames alone; to act without them is learned "
            "here, so its first actions are worse than that policy's"
        ]
    return [
        f"future: {origin.place} can act without the imagined frames, and with model.future: joint this run unlearns "
        "it; set it to optional to keep that"
    ]


def other_clock(ours: Contract, theirs: Contract, of: str) -> list[str]:
    """Seconds that lie otherwise between pictures or actions: what moves seems faster or slower than was learned.

    Args:
        of: whose contract `theirs` is, for the sentences.
    """
    steps = {
        "pictures": [one.timing.frame_skip / one.timing.fps for one in (ours, theirs)],
        "actions": [one.timing.action_period for one in (ours, theirs)],
    }
    return [
        f"timing: {what} are {here:.4g} s apart here and were {there:.4g} s in {of}, which learned that pace"
        for what, (here, there) in steps.items()
        if abs(here - there) > 0.01 * there
    ]
