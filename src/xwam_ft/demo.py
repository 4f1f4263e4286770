"""`xwam-ft demo`: the whole job on the bundled recordings, through the very functions the other verbs call.

Like cli.py this is a front door: it may import every room. Finished stages are kept, so a second call goes on
where the first stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from xwam_ft.bundled import bundled
from xwam_ft.consoles import marked

if TYPE_CHECKING:
    from rich.console import Console

RECORDINGS = "recordings/metaworld_demo"
EMBODIMENT = "recipes/embodiments/metaworld_sawyer.yaml"
RECIPE = "recipes/tiny_cpu.yaml"
TASKS = ("button-press-topdown", "drawer-close")  # of those recordings
EPISODES, MAX_STEPS, ACTION_STEPS = 5, 200, 4  # closed loop, each task
# The button takes precision, and the drawer hardly any, so it is shown twice as often; what that gives: docs/log.md.
EPISODE_WEIGHTS = [{"instruction": "press the button*", "weight": 2.0}]


def demo(out: Path, console: Console) -> None:
    """Prepare, train, export, evaluate and imagine under `out`; ends with a table of what to open.

    Where Meta-World is installed and renders, the bundle acts in it as well; where not, one line says what is lacking.

    Args:
        out: folder to make, or one a stopped demo left.
    """
    from xwam_ft import api
    from xwam_ft.errors import UserError
    from xwam_ft.shards import ShardSet

    shards, run, bundle = out / "shards", out / "run", out / "bundle"
    pictures, evaluation = out / "imagined", out / "evaluation"
    took: dict[str, float] = {}

    with _stage("prepare", console, took):
        embodiment = bundled(EMBODIMENT)
        api.prepare(bundled(RECORDINGS), shards, embodiment=embodiment, depth="tiny", strict=True, progress=console)
    with _stage("train", console, took):
        if not run.exists():
            own: dict[str, Any] = {"data.shards": str(shards), "data.episode_weights": EPISODE_WEIGHTS}
            api.train(bundled(RECIPE), run, progress=console, **own)
        elif not bundle.exists():
            api.train(resume=run, progress=console)
    with _stage("export", console, took):
        if not bundle.exists():
            api.export(run, bundle, progress=console)
    with _stage("evaluate", console, took):
        if not evaluation.exists():
            api.evaluate(bundle, shards, out=evaluation, latency=False, progress=console)
    held_out = next(entry.episode for entry in ShardSet.open(shards).segments("held_out"))
    with _stage("imagine", console, took):
        if not pictures.exists():
            api.imagine(bundle, shards, held_out, pictures, progress=console)
    with _stage("closed loop", console, took):
        try:
            for task in TASKS:
                place, env = out / "closed_loop" / task, f"metaworld:{task}"
                if not place.exists():
                    api.evaluate(
                        bundle,
                        env=env,
                        episodes=EPISODES,
                        max_steps=MAX_STEPS,
                        action_steps=ACTION_STEPS,
                        films=1,
                        out=place,
                        progress=console,
                    )
        except UserError as error:
            console.print(f"left out: {error}", soft_wrap=True, markup=False)
    _summary(out, console, took)


class _stage:
    """Announce a stage and take its time."""

    def __init__(self, name: str, console: Console, took: dict[str, float]) -> None:
        self.name, self.console, self.took = name, console, took

    def __enter__(self) -> None:
        self.console.rule(marked(self.name, style="bold"))
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.took[self.name] = time.perf_counter() - self.started


def _summary(out: Path, console: Console, took: dict[str, float]) -> None:
    from xwam_ft.evaluate.closed_loop_report import success_line
    from xwam_ft.evaluate.open_loop import summary_lines

    table = Table("what", "where", title="made by the demo", title_justify="left")
    for what, where in (
        ("shards, looked at", "shards/report.html"),
        ("run, as it learned", "run/report.html"),
        ("bundle", "bundle"),
        ("imagined beside recorded", "imagined/imagined.mp4"),
        ("the same as pictures", "imagined/contact_sheet.png"),
        ("open-loop action error", "evaluation/report.html"),
    ):
        table.add_row(what, str(out / where))
    rollouts = [task for task in TASKS if (out / "closed_loop" / task).exists()]
    for task in rollouts:
        table.add_row(f"closed loop, {task}", str(out / "closed_loop" / task / "report.html"))
    console.print(table)
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    console.print("Open-loop error on held-out episodes (policy, beside two baselines):")
    for line in summary_lines(metrics):
        console.print(f"  {line}", soft_wrap=True)
    for task in rollouts:
        console.print(success_line(json.loads((out / "closed_loop" / task / "metrics.json").read_text())))
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    console.print(f"Time: {stages}; {sum(took.values()):.0f} s in all", soft_wrap=True)
