"""What a run folder says about how it went: metrics by step, validations by step, where the time went.

metrics.jsonl                            losses, learning rates, errors: a line of JSON a step that was logged
validation/step-NNNNNN/metrics.json      losses at fixed noise and open-loop errors, all tables
validation/step-NNNNNN/imagined/         video, contact sheet, clouds and scores, where they were made at that step
time.json                                seconds by what was done, over all the sessions of the run
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.files import atomic_folder, read_json, remove_folder, write_json_atomic

if TYPE_CHECKING:
    from xwam_ft.recipe import ValidationSpec

METRICS_FILE = "metrics.jsonl"
CLIPS = "held_out_clips"
"""Over how many clips the held-out numbers of a row were taken."""
VALIDATION, IMAGINED = "validation", "imagined"
LOOKS = {"validate": ("held_out",), "imagine": ("imagine/", "blackout/")}
"""What the names of a look's numbers begin with."""
TIME_FILE = "time.json"


def of_look(name: str, *looks: str) -> bool:
    """Whether a number is of one of some looks."""
    return any(name.startswith(LOOKS[look]) for look in looks)


@dataclass(frozen=True)
class Validated:
    """One validation: its step, its folder, its tables, and those of what was imagined then (or None)."""

    step: int
    folder: Path
    tables: dict[str, Any] | None
    imagined: dict[str, Any] | None


@dataclass(frozen=True)
class History:
    """Reads and writes these files of a run folder."""

    run: Path

    def metrics(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl; one that a killed process left unfinished is not among them."""
        path = self.run / METRICS_FILE
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def comparable(self) -> list[dict[str, float]]:
        """Rows of held-out numbers over as many clips as the last ones: `validation.clips` may change on resume."""
        rows = [row for row in self.metrics() if any(name.startswith("held_out/") for name in row)]
        return [row for row in rows if row.get(CLIPS) == rows[-1].get(CLIPS)]

    def last_step(self) -> int:
        """The last that was logged."""
        rows = self.metrics()
        return int(rows[-1]["step"]) if rows else 0

    def looked(self, step: int) -> set[str]:
        """The looks of a step that are whole: their tables are there, and their row of metrics.jsonl."""
        names = [name for row in self.metrics() if row["step"] == step for name in row]
        rows = {look for look in LOOKS if any(of_look(name, look) for name in names)}
        seen = next((one for one in self.validated() if one.step == step), None)
        tables = {"validate": seen.tables, "imagine": seen.imagined} if seen is not None else {}
        return {look for look in rows if tables.get(look) is not None}

    def owed(self, step: int, spec: ValidationSpec, *, last: bool) -> list[str]:
        """The looks that a recipe wants after a step, and that are not whole; all kinds are wanted after the last."""
        every = {"validate": spec.every_steps} | ({"imagine": spec.imagine_every_steps} if spec.imagine_clips else {})
        whole = self.looked(step)
        return [look for look, n in every.items() if look not in whole and (last or (n and step % n == 0))]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        rows = [row for row in self.metrics() if name in row]
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def validated(self) -> list[Validated]:
        """Every validation, by step."""
        found: list[Validated] = []
        for folder in sorted((self.run / VALIDATION).glob("step-*")):
            tables, imagined = folder / "metrics.json", folder / IMAGINED / "metrics.json"
            found.append(
                Validated(
                    step=int(folder.name.removeprefix("step-")),
                    folder=folder,
                    tables=read_json(tables) if tables.is_file() else None,
                    imagined=read_json(imagined) if imagined.is_file() else None,
                )
            )
        return found

    def seconds(self) -> dict[str, float]:
        """Where the time went in the sessions before this one."""
        path = self.run / TIME_FILE
        return dict(read_json(path)) if path.is_file() else {}

    def write_seconds(self, spent: Mapping[str, float]) -> None:
        write_json_atomic(self.run / TIME_FILE, dict(spent))

    def write_validation(self, step: int, tables: Mapping[str, Any]) -> None:
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / "metrics.json", tables)

    @contextmanager
    def imagining(self, step: int) -> Generator[Path]:
        """A folder for what is imagined at a step, there once the block has ended well."""
        target = self.folder(step) / IMAGINED
        if target.exists():
            remove_folder(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target) as folder:
            yield folder

    def folder(self, step: int) -> Path:
        return self.run / VALIDATION / f"step-{step:06d}"

    def forget_after(self, step: int) -> None:
        """Remove validations of later steps, which a resumed run repeats."""
        for one in self.validated():
            if one.step > step:
                remove_folder(one.folder)
