"""`xwam-ft inspect`: what recordings hold, a proposal how to time clips, and a starter embodiment file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table as RichTable

from xwam_ft import media
from xwam_ft.consoles import marked, plain_console
from xwam_ft.errors import UserError
from xwam_ft.files import require_local, write_text_atomic
from xwam_ft.hub import fetched_from, name_of
from xwam_ft.inspect.evidence import Evidence, gather
from xwam_ft.inspect.grouping import HAND
from xwam_ft.inspect.known_robots import known_embodiments, said_of
from xwam_ft.inspect.starter import starter
from xwam_ft.inspect.timing import propose_timing
from xwam_ft.prepare.episode import EpisodeError, Problem, VideoView
from xwam_ft.prepare.findings import episodes_text, grouped, problem_findings, shape_of
from xwam_ft.prepare.from_hub import is_partial, named_as_given, recordings_at
from xwam_ft.prepare.sources import open_source
from xwam_ft.prepare.sources.beside import unnamed
from xwam_ft.prepare.upside_down import upside_down

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.prepare.episode import Episode, Table
    from xwam_ft.prepare.sources import SourceInfo

TABLES_READ = 20  # episodes whose numbers are looked at
MOST_PROBLEMS = 8  # kinds of them that are shown


@dataclass(frozen=True)
class ColumnSummary:
    name: str
    low: float
    high: float
    missing: int
    guess: str


def inspect(raw: Path, write: Path | None, console: Console) -> None:
    """Print tables of what `raw` holds; with `write`, make a commented starter embodiment file there.

    Raises:
        UserError: not a dataset, or `write` exists already.
    """
    console = plain_console(console)
    if write is not None:
        require_local(write, "a starter file")
    if write is not None and write.exists():
        raise UserError("exists already", write, "choose another name for the starter file")
    named, raw = raw, recordings_at(raw, console)
    with named_as_given([named], [raw]):
        source = open_source(raw)
    info, episodes = source.info, source.episodes()
    lengths = np.array([max(episode.length, 0) for episode in episodes])
    proposal = propose_timing(info.fps or info.measured_fps, lengths)
    tables, problems = _read_tables(episodes)
    if is_partial(raw):  # the first films alone were fetched
        problems = {i: found if _whole(episodes[i]) else [] for i, found in problems.items()}
    columns = summarise(info, list(tables.values()))
    evidence = gather(info, episodes, tables)
    if write is not None:  # before anything is printed, so that a reader who stops reading still gets the file
        write_text_atomic(write, starter(info, evidence, proposal, named))
    _print_overview(info, episodes, lengths, console)
    _print_cameras(info, episodes, console)
    if (hint := upside_down(info)) is not None:
        console.print(hint, soft_wrap=True)
    _print_columns(columns, len(tables), console)
    _print_evidence(evidence, console)
    for sentence in said_of(known_embodiments(info)):
        console.print(sentence, soft_wrap=True)
    _print_problems(info, episodes, problems, console)
    console.print(
        f"proposed timing: frame_skip {proposal.frame_skip}, action_skip {proposal.action_skip}, "
        f"clip_frames {proposal.clip_frames} ({proposal.reason})",
        soft_wrap=True,
    )
    if write is not None:
        console.print(
            f"{write}: starter embodiment; check what was guessed, replace every TODO, then run `xwam-ft prepare`",
            soft_wrap=True,
        )


def summarise(info: SourceInfo, tables: list[Table]) -> list[ColumnSummary]:
    """Range and a guess of what each column is, over the tables that were read."""
    found: list[ColumnSummary] = []
    for name in info.columns:
        parts = [table.columns[name] for table in tables if name in table.columns]
        values = np.concatenate(parts) if parts else np.zeros(0)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
        found.append(ColumnSummary(name, low, high, len(values) - len(finite), guess_of(name, low, high)))
    return found


def guess_of(name: str, low: float, high: float) -> str:
    """A guess for people's eyes; nothing is decided by it."""
    size = max(abs(low), abs(high))
    element = re.split(r"[/.]", name)[-1].lower()
    if not np.isfinite(size):
        return "no numbers"
    if low == high:
        return "constant"
    if (low, high) == (0.0, 1.0):
        return "0..1"
    if re.fullmatch(r"(eef?_|ee_)?(pos_)?[xyz]", element):
        return "position, m?" if size < 5 else "position, mm?"
    if re.fullmatch(r"(eef?_|ee_|quat_?)?q?[wxyz]", element):
        return "quaternion?"
    if HAND.search(name.split("/")[-1]):
        return "gripper or hand"
    if size <= 3.5:
        return "rad?"
    return "deg, or -100..100?" if size <= 360 else "servo ticks?"


def _read_tables(episodes: list[Episode]) -> tuple[dict[int, Table], dict[int, list[str]]]:
    """Tables and what is wrong, both by place in `episodes`."""
    wanted = np.unique(np.linspace(0, len(episodes) - 1, min(len(episodes), TABLES_READ)).round().astype(int))
    tables: dict[int, Table] = {}
    problems: dict[int, list[str]] = {i: list(episode.problems) for i, episode in enumerate(episodes)}
    for i in wanted.tolist():
        if episodes[i].problems and not episodes[i].views:
            continue  # nothing was located, which is told
        try:
            tables[i] = episodes[i].table.read()
        except EpisodeError as error:
            known = any(str(error).startswith(problem) or str(problem) == str(error) for problem in problems[i])
            missing = not _table_there(episodes[i])
            problems[i] += [] if known or (missing and problems[i]) else [Problem.of(error)]
    return tables, problems


def _whole(episode: Episode) -> bool:
    """Whether every film of an episode is here."""
    return all(view.path.exists() for view in episode.views.values())


def _table_there(episode: Episode) -> bool:
    path = getattr(episode.table, "path", None)
    return path is None or path.exists()


def _print_problems(
    info: SourceInfo, episodes: list[Episode], problems: dict[int, list[str]], console: Console
) -> None:
    """Each different fault once, with its episodes and what to do; then what belongs to no episode."""
    names = {i: (name_of(info.path), episode.index) for i, episode in enumerate(episodes)}
    groups = grouped((i, finding) for i, texts in problems.items() for finding in problem_findings(texts))
    told: set[str] = set()
    for group in groups[:MOST_PROBLEMS]:
        texts = [text for text in group.texts if text not in told]  # of two cameras in one folder, once
        told |= set(texts)
        if not texts:
            continue
        for text in texts if not group.found[0][1].fix else texts[:1]:
            more = f" (and {len(texts) - 1} like it)" if len(texts) > 1 and group.found[0][1].fix else ""
            numbers = group.episodes if more else group.texts[text]
            where = episodes_text(numbers, names)
            console.print(marked("problem", f" {where}: {text}{more}"), soft_wrap=True)
        console.print(f"  what to do: {group.fix}", style="dim", soft_wrap=True)
    if len(groups) > MOST_PROBLEMS:
        console.print(f"and {len(groups) - MOST_PROBLEMS} further problems", style="yellow")
    said: dict[str, dict[str, list[int]]] = {}
    for i, episode in enumerate(episodes):
        for note in episode.notes:
            said.setdefault(shape_of(note), {}).setdefault(note, []).append(i)
    for notes in list(said.values())[:MOST_PROBLEMS]:
        where = episodes_text(sorted({i for of_it in notes.values() for i in of_it}), names)
        more = f" (and {len(notes) - 1} like it)" if len(notes) > 1 else ""
        console.print(marked("note", f" {where}: {next(iter(notes))}{more}"), soft_wrap=True)
    for note in (*info.notes, *unnamed(info, episodes)):
        console.print(marked("note", f" {note}"), soft_wrap=True)


def _print_overview(info: SourceInfo, episodes: list[Episode], lengths: np.ndarray, console: Console) -> None:
    seconds = lengths / (info.fps or 1.0)
    low, middle, high = np.quantile(seconds, [0.05, 0.5, 0.95])
    unit, rate = ("frames", "rate not recorded") if info.fps is None else ("s", f"{info.fps:g} fps")
    rate += f", {info.measured_fps:g} fps by its timestamps" if info.measured_fps is not None else ""
    whole = "" if info.fps is None else f", {seconds.sum() / 60:.1f} min"
    texts = sorted({text for episode in episodes for text in (episode.instructions or tuple(episode.tasks.values()))})
    table = RichTable(title=str(fetched_from(info.path) or info.path), show_header=False)
    table.add_row("format", info.format)
    table.add_row("robot", info.robot)
    table.add_row("episodes", str(len(episodes)))
    table.add_row("frames", f"{int(lengths.sum())} at {rate}{whole}")
    table.add_row("an episode", f"{middle:.1f} {unit} (5 %: {low:.1f}, 95 %: {high:.1f})")
    table.add_row(
        "instructions",
        ("\n".join(texts[:8]) or "none") + (f"\nand {len(texts) - 8} more" if len(texts) > 8 else ""),
    )
    table.add_row("calibration", ", ".join(info.calibration) or "none")
    console.print(table)


def _print_cameras(info: SourceInfo, episodes: list[Episode], console: Console) -> None:
    table = RichTable("camera", "size", "codec (probed)", "fps", "kind", title="cameras")
    for feature, camera in info.cameras.items():
        size, codec, rate = "-", "no readable file", "-"
        for episode in episodes:
            view = episode.views.get(feature)
            try:
                if view is not None and view.path.exists():
                    height, width = view.size()
                    size, codec = f"{width} x {height}", view.codec()
                    own = media.probe(view.path).fps if isinstance(view, VideoView) else info.fps
                    rate = "-" if own is None else f"{own:g}"
                    break
            except (UserError, EpisodeError):
                continue
        table.add_row(feature, size, codec, rate, "depth" if camera.depth else "RGB")
    console.print(table if info.cameras else "no camera was recorded")
    if not any(camera.depth for camera in info.cameras.values()):
        console.print("depth: none recorded; choose --depth transformers:ID, files:PATTERN or none")


def _print_columns(columns: list[ColumnSummary], read: int, console: Console) -> None:
    if not read:
        console.print(
            f"no table could be read, so nothing is known of the numbers ({len(columns)} columns are declared)"
        )
        return
    table = RichTable("column", "min", "max", "looks like", title=f"columns, in {read} episodes")
    for column in columns:
        note = f"{column.guess}" + (f", {column.missing} missing" if column.missing else "")
        ends = [f"{end:.4g}" if np.isfinite(end) else "-" for end in (column.low, column.high)]
        table.add_row(column.name, *ends, note)
    console.print(table)


def _print_evidence(evidence: Evidence, console: Console) -> None:
    table = RichTable("what", "guess", "how sure", "why", title="guesses from numbers and pictures")
    for camera, kind in evidence.kinds.items():
        mount = evidence.mounts.get(camera)
        table.add_row(camera, kind.kind + (f" on {mount}" if mount else ""), kind.sure, kind.why)
    for group in evidence.groups:
        unit = group.units
        table.add_row(f"{group.name}: units", unit.unit or "?", unit.sure, unit.why)
        if group.action is not None:
            word = {"target": f"targets, {group.action.lead} frames ahead", "delta": "changes of the state"}
            guess = word.get(group.action.kind, group.action.kind.replace("_", " "))
            table.add_row(f"{group.name}: action", guess, group.action.sure, group.action.why)
    console.print(table)
