"""What a preparation ended with, as a value and as lines on the console."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from xwam_ft.consoles import setting, typed
from xwam_ft.errors import spelled
from xwam_ft.prepare.findings import FindingGroup, Names, Severity, can_be_dropped, episodes_text

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.prepare.depth.outcome import DepthOutcome
    from xwam_ft.prepare.jobs import EpisodeResult

STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


@dataclass
class PrepareReport:
    """What became of the recordings."""

    out: Path
    episodes: int
    frames: int
    rejected: list[EpisodeResult] = field(default_factory=list)
    findings: list[FindingGroup] = field(default_factory=list[FindingGroup])
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # by stage, summed over processes
    already_prepared: bool = False
    depth: dict[str, DepthOutcome] = field(default_factory=dict)  # by camera
    names: Names = field(default_factory=dict[int, Any])

    def count(self, severity: Severity) -> int:
        """Different findings of a severity; one may concern many episodes."""
        return sum(group.severity == severity for group in self.findings)


def say(report: PrepareReport, console: Console) -> None:
    took = "  ".join(f"{stage} {value:.1f} s" for stage, value in report.seconds.items())
    rejected = f", {len(report.rejected)} rejected (rejected.jsonl)" if report.rejected else ""
    kept = set(report.names) - {result.number for result in report.rejected}
    for at, group in enumerate(report.findings):
        where = "" if group.of_dataset else f" [{episodes_text(group.episodes, report.names)}]"
        console.print(Text(group.severity, STYLES[group.severity]), end=" ")
        console.print(f"{group.check}: {group.summary}{where}", markup=False, soft_wrap=True)
        after = report.findings[at + 1] if at + 1 < len(report.findings) else None
        last = after is None or (after.check, after.severity, after.fix) != (group.check, group.severity, group.fix)
        if last and group.fix not in group.summary:
            console.print(f"  what to do: {group.fix}", style="dim", markup=False, soft_wrap=True)
        if (after is None or after.check != group.check) and can_be_dropped(group, report.findings, kept):
            fewer = report.out.with_name(f"{report.out.name}_kept")
            command = typed("xwam-ft", "shards", "drop", report.out, fewer, "--finding", group.check)
            console.print(f"  or without them: {command}", style="dim", markup=False, soft_wrap=True)
    console.print(
        f"{spelled(report.out)}: {report.episodes} episodes, {report.frames} frames{rejected}, "
        f"{report.count('warning')} warnings; see {spelled(report.out / 'report.html')}",
        markup=False,
        soft_wrap=True,
    )
    console.print(took)
    if report.episodes:
        place = setting("data.shards", report.out)
        console.print(f"next: xwam-ft plan wan22_5b_lora {place}", markup=False, soft_wrap=True)
