"""What an import did: for import_report.json, and as a table to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwam_ft import __version__
from xwam_ft.errors import listed

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class PartRow:
    """One folder of the result: where it came from and how much it is."""

    part: str
    origin: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Args:
        used: of every part, names in the checkpoint -> names in the folder.
        ignored: names in the checkpoint -> why they were left out.
        stand_ins: classes and functions a torch file asked for; none of them ran.
        notes: what was assumed or found.
    """

    source: str
    rows: list[PartRow]
    used: dict[str, dict[str, str]]
    ignored: dict[str, str]
    stand_ins: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        rows = [vars(row) for row in self.rows]
        own = {"parts": rows, "used": self.used, "ignored": self.ignored, "missing": []}
        return {"xwam_ft": __version__, "source": self.source} | own | {"not_run": self.stand_ins, "notes": self.notes}

    def print(self, console: Console) -> None:
        """The table of parts, then what was left out, not run, and assumed."""
        from rich.table import Table

        table = Table("part", "from", "tensors", "parameters", "MB", title=self.source)
        for row in self.rows:
            counts = (f"{row.tensors:,}", f"{row.parameters:,}") if row.tensors else ("", "")
            table.add_row(row.part, row.origin, *counts, f"{row.bytes / 1e6:,.1f}")
        console.print(table)
        if self.ignored:
            reasons = sorted(set(self.ignored.values()))
            console.print(f"ignored ({', '.join(reasons)}): {listed(sorted(self.ignored), 8)}", soft_wrap=True)
        if self.stand_ins:
            console.print(f"named in the file and not run: {listed(self.stand_ins, 8)}", soft_wrap=True)
        for note in self.notes:
            console.print(note, soft_wrap=True)
