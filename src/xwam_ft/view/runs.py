"""A run's curves and looks, and folders that `imagine` and `evaluate` wrote, as the page sees them.

Both are read anew at every request: a run that learns is watched while it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError
from xwam_ft.files import read_json, require_local
from xwam_ft.media import count_frames, probe
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from xwam_ft.runs.history import History

Rows = list[dict[str, Any]]
METRICS, FILM = "metrics.json", "imagined.mp4"
SHOWN = {".html", ".png", ".mp4"}
"""Kinds of files that a folder of results is asked for."""


def run_summary(run: Path) -> dict[str, Any]:
    """A run's state, its curves, its looks and where its report is (addresses are below files/run/)."""
    from xwam_ft.runs.history import History
    from xwam_ft.runs.report import REPORT_FILE
    from xwam_ft.runs.runs import summary

    told, history = summary(run, run), History(run)
    report = "files/run/" + REPORT_FILE if (run / REPORT_FILE).is_file() else None
    return {
        "name": run.absolute().name,
        "folder": str(run),
        "step": told.step,
        "max_steps": told.max_steps,
        "state": told.state,
        "trouble": told.trouble,
        "report": report,
        "curves": [] if told.trouble else curves(history),
        "looks": [] if told.trouble else looks(history),
    }


def curves(history: History) -> Rows:
    """Losses of each stream, then errors of the actions in their units beside both baselines."""
    from xwam_ft.evaluate.report import NAMES
    from xwam_ft.runs.report import STREAMS, smooth

    found: Rows = []
    for stream in STREAMS:
        steps, values = history.series(f"train/loss_{stream}")
        known = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]  # 0: nothing measured
        held_steps, held = history.series(f"held_out/{stream}")
        steps, values = [step for step, _ in known], [value for _, value in known]
        lines = [_line("training", steps, values), _line("training, smoothed", steps, smooth(values))]
        lines += [_line("held out", held_steps, held)]
        if known or held:
            found.append({"title": f"{stream} loss", "unit": "", "log": True, "lines": lines})
    tables = [(one.step, one.tables["open_loop"]["slots"]) for one in history.validated() if one.tables is not None]
    for slot, rows in (tables[-1][1] if tables else {}).items():
        for name, cell in rows.items():
            lines: Rows = []
            for method, said in NAMES.items():
                values = {step: table.get(slot, {}).get(name, {}).get(method) for step, table in tables}
                known = [(step, value) for step, value in values.items() if value is not None]
                lines.append(_line(said, [step for step, _ in known], [value for _, value in known]))
            unit = "" if cell["unit"] == "1" else cell["unit"]
            found.append({"title": f"{slot} {name}, held-out error", "unit": unit, "log": False, "lines": lines})
    return found


def looks(history: History) -> Rows:
    """Every look at which something was imagined, the newest first."""
    from xwam_ft.runs.history import IMAGINED
    from xwam_ft.runs.report import score_rows

    return [
        {
            "step": one.step,
            "episode": one.imagined.get("episode"),
            "instruction": one.imagined.get("instruction", ""),
            "scores": score_rows(one.imagined),
            **_pictures(one.folder / IMAGINED, f"files/run/{(one.folder / IMAGINED).relative_to(history.run)}"),
        }
        for one in reversed(history.validated())
        if one.imagined is not None
    ]


def run_files(run: Path) -> Iterator[tuple[str, Path]]:
    """What of a run may be asked for: its report, and the pictures of its looks."""
    from xwam_ft.runs.history import IMAGINED, History
    from xwam_ft.runs.report import REPORT_FILE

    yield REPORT_FILE, run / REPORT_FILE
    for one in History(run).validated():
        for path in _shown(one.folder / IMAGINED):
            yield path.relative_to(run).as_posix(), path


def run_sets(run: Path) -> tuple[list[ShardSet], list[str]]:
    """The shard sets of a run that are there, and why others are not."""
    from xwam_ft.places import RECIPE_FILE
    from xwam_ft.recipe import load_recipe
    from xwam_ft.runs.moved import found_again, places

    found: list[ShardSet] = []
    lost: list[str] = []
    for place in places(found_again(load_recipe(run / RECIPE_FILE), run).data):
        try:
            require_local(Path(place), "a shard set that is watched")
            found.append(ShardSet.open(place))
        except UserError as error:
            lost.append(f"its shard set is not shown: {error}")
    return found, lost


def is_results(folder: Path) -> bool:
    """Whether `imagine` or `evaluate` wrote a folder."""
    if not (folder / METRICS).is_file():
        return False
    return any((folder / name).is_file() for name in (FILM, "report.html", "compare.html"))


def result_summary(folder: Path, place: str) -> dict[str, Any]:
    """A folder of results; `place` is what its files' addresses begin with."""
    metrics = read_json(folder / METRICS)
    report = next((name for name in ("report.html", "compare.html") if (folder / name).is_file()), None)
    names = [path.relative_to(folder).as_posix() for path in _shown(folder) if path.suffix == ".mp4"]
    scores: list[Any] = []
    if isinstance(metrics, dict) and "scores" in metrics and "point_cloud" in metrics:
        from xwam_ft.runs.report import score_rows

        scores = score_rows(metrics)
    told = metrics if isinstance(metrics, dict) else {}
    return {
        "folder": str(folder),
        "name": folder.absolute().name,
        "bundle": told.get("bundle"),
        "episode": told.get("episode"),
        "instruction": told.get("instruction", ""),
        "trained": told.get("trained_backbone", True),
        "report": None if report is None else f"{place}/{report}",
        "scores": scores,
        **_pictures(folder, place),
        "films": [_film(folder, name, place) for name in names if name != FILM],
    }


def result_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in _shown(folder):
        yield path.relative_to(folder).as_posix(), path


def _shown(folder: Path) -> list[Path]:
    """Pages, pictures and films of a folder and of those in it; what a link leads out to is not among them."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(path for path in found if path.suffix in SHOWN and path.is_file() and not path.is_symlink())


def _pictures(folder: Path, place: str) -> dict[str, Any]:
    names = {"sheet": "contact_sheet.png", "cloud": "pointcloud.png"}
    shown = {key: f"{place}/{name}" if (folder / name).is_file() else None for key, name in names.items()}
    return {"film": _film(folder, FILM, place) if (folder / FILM).is_file() else None, **shown}


def _film(folder: Path, name: str, place: str) -> dict[str, Any]:
    """Where a film is, and what a page needs to go to one of its frames."""
    found: dict[str, Any] = {"address": f"{place}/{name}", "name": name}
    try:
        info, frames = probe(folder / name), count_frames(folder / name)
    except UserError as error:
        return {**found, "why": str(error)}
    return {**found, "why": None, "size": [info.height, info.width], "fps": info.fps, "frames": frames}


def _line(name: str, steps: list[int], values: list[float]) -> dict[str, Any]:
    return {"name": name, "x": steps, "y": values}
