"""`xwam-ft evaluate` on recordings: the open-loop table, and what else is asked for; on a page."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import spelled
from xwam_ft.evaluate.baselines import mean_action
from xwam_ft.evaluate.blackout import blackout
from xwam_ft.evaluate.familiar import novelty_table, trained_on
from xwam_ft.evaluate.latency import MOST_CLIPS, STEPS, latency_table
from xwam_ft.evaluate.lpips import read_lpips
from xwam_ft.evaluate.open_loop import open_loop
from xwam_ft.evaluate.report import horizon_plot, html, print_table
from xwam_ft.evaluate.seams import MOST_PAIRS, seam_table
from xwam_ft.evaluate.train_split import train_split_table
from xwam_ft.evaluate.world import MOST_CLIPS as MOST_WORLD
from xwam_ft.evaluate.world import whole_clips
from xwam_ft.evaluate.world import world as judge
from xwam_ft.evaluate.world_report import sheet
from xwam_ft.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from xwam_ft.locks import sole_folder
from xwam_ft.policy.source import PolicySource
from xwam_ft.progress import progress_bar
from xwam_ft.shards import CONTRACT_FILE, ShardSet

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from xwam_ft.evaluate.open_loop import OpenLoopResult
    from xwam_ft.evaluate.world import World
    from xwam_ft.shard_index import Split


def evaluate_bundle(
    bundle: Path | PolicySource,
    shards: Path,
    out: Path | None,
    clips: int,
    console: Console,
    *,
    split: Split = "held_out",
    latency: bool = False,
    train_split: bool = False,
    camera_blackout: bool = False,
    seams: bool = False,
    world: bool = False,
    lpips: Path | None = None,
) -> tuple[OpenLoopResult, dict[str, Any]]:
    """`xwam-ft evaluate`: print the table; with `out`, write metrics.json, horizon.png and report.html there.

    Args:
        train_split: also errors on as many clips of the train split (train_split.py), where this is the set that the
            policy was trained on and `split` is held_out.
        latency: also error and time of a call for 1 to 10 action steps (latency.py).
        camera_blackout: also errors with each camera's pictures black (blackout.py).
        seams: also jerk where a chunk follows another (seams.py).
        world: also what is imagined: how good, whether it follows actions, whether its spread warns (world.py).
        lpips: with `world`: AlexNet's weights, for that score (lpips.py); default $XWAM_FT_LPIPS.

    Returns:
        The open-loop result, and all that metrics.json holds.

    Raises:
        UserError: `out` is not empty; not a bundle or shard set; they were made of different preparations; the split
            holds no clips, or for `world` fewer than two of full length.
    """
    judged: World | None = None
    with ExitStack() as stack:
        folder = stack.enter_context(sole_folder(out, "evaluating into it")) if out is not None else None
        seeing = read_lpips(lpips) if world else None
        opened = ShardSet.open(shards)
        source = PolicySource.of(bundle)
        policy = source.load()
        shard_set = opened.under(policy.contract, source.folder / CONTRACT_FILE)
        total = min(clips, len(shard_set.clips(split, 1)))
        work = total + (total * len(shard_set.contract.cameras) if camera_blackout else 0)
        seen = len(shard_set.clips("train", 1))
        # Under an equal contract this is the set it was trained on, or a part of that.
        beside = train_split and split == "held_out" and seen > 0 and opened.contract == policy.contract
        work += min(clips, seen) if beside else 0
        work += min(total, MOST_CLIPS) * len(STEPS) if latency else 0
        work += min(total, MOST_PAIRS) if seams else 0
        work += min(total, len(whole_clips(shard_set, split)), MOST_WORLD) if world else 0
        with progress_bar(console, "evaluate", "clips", work) as advance:
            mean = mean_action(shard_set)
            result = open_loop(policy, shard_set, split=split, clips=clips, advance=advance, mean=mean)
            metrics: dict[str, Any] = {
                "bundle": source.name,
                "shards": spelled(shards),
                "with_future": policy.acts_with_future,
                **result.metrics(),
            }
            if split == "held_out" and (known := trained_on(policy, shard_set, result.episodes)):
                metrics["trained_on"] = known
            if beside:
                metrics["train_split"] = train_split_table(
                    policy, shard_set, result, clips=clips, mean=mean, advance=advance
                )
            if latency:
                metrics["latency"] = latency_table(
                    policy, shard_set, split=split, clips=clips, mean=mean, advance=advance
                )
            if camera_blackout:
                metrics["blackout"] = blackout(policy, shard_set, result, clips=clips, mean=mean, advance=advance)
            if seams:
                metrics["seams"] = seam_table(policy, shard_set, split=split, clips=clips, advance=advance)
            if (familiar := novelty_table(policy, shard_set, split=split, clips=clips)) is not None:
                metrics["novelty"] = familiar
            if world:
                judged = judge(policy, shard_set, split=split, clips=clips, lpips=seeing, advance=advance)
                metrics["world"] = judged.metrics
        print_table(metrics, console)
        if folder is not None:
            plot = horizon_plot(metrics)
            pictures = None if judged is None else sheet(judged, policy.contract.camera_names)
            write_json_atomic(folder / "metrics.json", metrics)
            write_bytes_atomic(folder / "horizon.png", plot)
            write_text_atomic(folder / "report.html", html(metrics, policy.contract, plot, pictures))
    if out is not None:
        console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return result, metrics
