"""`xwam-ft evaluate BUNDLE --env ...`: run episodes, tell how many succeeded, and film the first of them.

OUT/report.html   the rate with its interval, every episode, the films; opens from disk
OUT/metrics.json  the same for programs
OUT/rollouts/     NNN.mp4 and NNN.png: what the cameras saw beside what had been imagined for the same moments
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.consoles import marked
from xwam_ft.errors import UserError
from xwam_ft.evaluate.closed_loop import Rollout, Trial, closed_loop, episode_seeds, first_look
from xwam_ft.evaluate.doubts import doubts, side_by_side
from xwam_ft.evaluate.environment import Environment, require_fit
from xwam_ft.evaluate.environments import environment_maker
from xwam_ft.evaluate.imagine import UNTRAINED
from xwam_ft.evaluate.late import read_late
from xwam_ft.evaluate.perturb import as_words, read_perturbations
from xwam_ft.evaluate.pictures import PictureRow, contact_sheet, pages
from xwam_ft.files import atomic_path, write_json_atomic, write_text_atomic
from xwam_ft.locks import sole_folder
from xwam_ft.media import write_preview
from xwam_ft.policy.source import PolicySource
from xwam_ft.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from xwam_ft.policy.policy import Policy

TEMPLATE = Path(__file__).with_name("closed_loop.html.jinja")
SIDE_BY_SIDE = 8  # episodes at a time: more answers a forward pass, one renderer each
SHEET_COLUMNS = 6


def evaluate_in_environment(
    bundle: Path | PolicySource,
    env: str,
    *,
    episodes: int,
    seed: int,
    out: Path | None,
    execute: int | None = None,
    max_steps: int | None = None,
    action_steps: int | None = None,
    answer_delay: int = 0,
    meanwhile: str | None = None,
    films: int = 0,
    perturb: Sequence[str] = (),
    console: Console,
) -> dict[str, Any]:
    """Print the success rate; with `out`, write report, metrics and films there. Returns the metrics.

    Args:
        env: see environment.CHOICES.
        execute: commands carried out before the policy looks again; half a chunk where left out.
        max_steps: fewer than the environment's own limit.
        action_steps: denoising steps instead of the bundle's.
        answer_delay, meanwhile: commands that pass until an answer is there, and what the robot does until then, hold,
            switch or prefix (late.py).
        films: first episodes to film; only with `out`, and where answers come at once.
        perturb: what is made harder, as AXIS=STRENGTH (see perturb.py).

    Raises:
        UserError: `out` is not empty; not a bundle; an unknown perturbation; an environment that is unknown, not
            installed, cannot be rendered or does not fit the bundle's contract.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(sole_folder(out, "evaluating into it")) if out is not None else None
        perturbed = read_perturbations(perturb)
        make = environment_maker(env, perturbed)
        source = PolicySource.of(bundle)
        policy = source.load()
        if action_steps is not None:
            policy.settings = replace(policy.settings, action_steps=action_steps)
        timing = policy.contract.timing
        execute = execute or max(1, timing.action_steps // 2)
        if execute > timing.action_steps:
            raise UserError(
                f"is {execute}, and a chunk of this bundle has {timing.action_steps} commands",
                "--execute",
                f"give at most {timing.action_steps}",
            )
        late = read_late(answer_delay, meanwhile, policy, execute)
        seeds = episode_seeds(seed, episodes)

        def closing() -> Environment:
            made = make(policy.contract)
            stack.callback(made.close)
            return made

        environments = side_by_side(closing, min(SIDE_BY_SIDE, episodes), seeds, policy.contract)
        require_fit(policy.contract, environments[0], env, policy.prompts)
        strange = first_look(policy, environments[0])
        for sentence in strange:
            console.print(marked("first observation: ", sentence, "bold yellow"), soft_wrap=True)
        limit = environments[0].max_steps
        if max_steps is not None and max_steps > limit:
            raise UserError(f"is {max_steps}, and {env} ends after {limit}", "--max-steps", f"give at most {limit}")
        # What is imagined for a chunk does not stand beside what was done while its answer was waited for.
        films = min(films, episodes) if folder is not None and not answer_delay else 0
        kept: list[dict[str, Any]] = []

        def film(rollout: Rollout, result: Trial) -> None:
            assert folder is not None
            kept.append(_film(folder, seeds.index(rollout.seed), policy, rollout, result))

        started = time.perf_counter()
        with progress_bar(console, env, "episodes", episodes) as advance:
            result = closed_loop(
                policy,
                environments,
                seeds,
                execute=execute,
                late=late,
                max_steps=max_steps,
                filmed=films,
                on_rollout=film,
                progress=lambda _: advance(1),
            )
        metrics: dict[str, Any] = {
            "bundle": source.name,
            "env": env,
            "instruction": environments[0].instruction,
            "seed": seed,
            "execute": execute,
            "answer_delay": late.delay,
            "meanwhile": late.meanwhile if late.delay else None,
            "action_steps": policy.settings.action_steps,
            "with_future": policy.acts_with_future,
            "max_steps": max_steps or limit,
            "perturb": as_words(perturbed),
            "warnings": strange,
            "doubts": (doubtful := doubts(result.episodes)),
            "trained_backbone": policy.trained,
            "chunk_seconds": timing.action_steps * timing.action_period,
            "seconds": time.perf_counter() - started,
            **result.metrics(),
            "films": sorted(kept, key=lambda film: film["episode"]),
        }
        if folder is not None:
            write_json_atomic(folder / "metrics.json", metrics)
            write_text_atomic(folder / "report.html", _html(metrics))
    console.print(success_line(metrics), soft_wrap=True)
    for sentence in doubtful:
        console.print(marked("warning: ", sentence, "bold yellow"), soft_wrap=True)
    console.print(
        f"{metrics['seconds']:.0f} s; one chunk of {metrics['chunk_seconds']:.2f} s takes "
        f"{metrics['seconds_a_chunk']:.3f} s ({metrics['action_steps']} action steps, {execute} commands executed)",
        soft_wrap=True,
    )
    if not policy.trained:
        console.print(marked(UNTRAINED, ": what is imagined here is noise"))
    if out is not None:
        console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return metrics


def success_line(metrics: Mapping[str, Any]) -> str:
    """ "metaworld:push: 41 of 50 episodes succeed (82 %, 95 % interval 69 to 90 %)"."""
    low, high = metrics["interval_95"]
    harder = "".join(f", {words}" for words in metrics.get("perturb", []))
    if metrics.get("answer_delay"):
        harder += f", answers {metrics['answer_delay']} commands late ({metrics['meanwhile']} meanwhile)"
    return (
        f"{metrics['env']}{harder}: {metrics['successes']} of {metrics['of']} episodes succeed "
        f"({100 * metrics['rate']:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    )


def _film(folder: Path, index: int, policy: Policy, rollout: Rollout, result: Trial) -> dict[str, Any]:
    """Write one episode's video and sheet; returns its line of metrics.json."""
    contract = policy.contract
    caption = None if policy.trained else UNTRAINED
    rows = [
        PictureRow("rollout", np.stack(rollout.seen, axis=1)),
        PictureRow("imagined", np.stack(rollout.imagined, axis=1), caption),
    ]
    period = contract.timing.frame_skip / contract.timing.fps
    notes = [f"{frame * period:.2f} s" for frame in range(len(rollout.seen))]
    (folder / "rollouts").mkdir(exist_ok=True)
    name = f"rollouts/{index:03d}"
    write_preview(folder / f"{name}.mp4", pages(rows, contract.camera_names, notes), 1 / period)
    from PIL import Image

    with atomic_path(folder / f"{name}.png") as temporary:
        Image.fromarray(contact_sheet(rows, contract.camera_names, notes, SHEET_COLUMNS)).save(temporary)
    return {"episode": index, "seed": result.seed, "success": result.success, "name": name}


def _html(metrics: Mapping[str, Any]) -> str:
    from jinja2 import Environment as Jinja

    jinja = Jinja(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(metrics=metrics, line=success_line(metrics))
