"""`xwam-ft prepare`: all episodes of all datasets -> one shard set.

Episodes are done one a task, in any number of processes, into a staging folder beside OUT; then statistics, contract,
shards and report are made from it in order, and OUT appears complete. The staging folder of a killed run is taken up
by the next one with the same inputs (same fingerprint) and thrown away by any other; either way OUT's bytes are those
of an uninterrupted run.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from xwam_ft import remote
from xwam_ft.bundled import named_file
from xwam_ft.errors import UserError, listed, spelled
from xwam_ft.files import full_disk, move_folder, read_json, write_json_atomic
from xwam_ft.locks import sole_writer
from xwam_ft.prepare import assemble
from xwam_ft.prepare.checks.together import check_against_contract, check_together, check_unnamed
from xwam_ft.prepare.depth import DepthPlan, parse_depth, require_check
from xwam_ft.prepare.depth.outcome import depth_outcomes, say_depth
from xwam_ft.prepare.embodiment.cameras import calibrated, plan_cameras
from xwam_ft.prepare.embodiment.schema import Embodiment, load_embodiment
from xwam_ft.prepare.embodiment.slots import SlotPlan, frame_rate, plan_slots
from xwam_ft.prepare.episode_work import run
from xwam_ft.prepare.far import remove_parts, take_finished, with_urls
from xwam_ft.prepare.findings import episodes_text, grouped, names_of, shape_of
from xwam_ft.prepare.fingerprint import OTHER_INPUTS, RECORD, library_versions, preparation_fingerprint
from xwam_ft.prepare.from_hub import named_as_given, recorded_url, recordings_at
from xwam_ft.prepare.jobs import EpisodeJob, EpisodeResult, JobOutcome, finished, staging_of
from xwam_ft.prepare.prepared import STYLES, PrepareReport, say
from xwam_ft.prepare.recorded import say_limits
from xwam_ft.prepare.sources import Source, open_source
from xwam_ft.prepare.sources.beside import require_apart
from xwam_ft.prepare.upload import PARTS, made_before, upload
from xwam_ft.prepare.upside_down import upside_down
from xwam_ft.prepare.workers import outcomes
from xwam_ft.strict_yaml import Overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Task

    from xwam_ft.shards import ShardSet


# Pixels a side that one token covers (VAE by patch) with the built-in backbone and with Wan2.2-TI2V.
TOKEN_PIXELS = 32


def prepare(
    raws: list[Path],
    out: Path,
    *,
    embodiment: Path,
    depth: str | None,
    workers: int,
    strict: bool,
    urdf_dirs: list[Path],
    console: Console,
    depth_check: bool = False,
    ray: str | None = None,
    overrides: Overrides = (),
) -> PrepareReport:
    """Turn recordings into a shard set at `out`.

    Args:
        depth: as depth/__init__.py lists them; None is `sensor` where recorded.
        workers: processes; 0 does everything in this one. The bytes do not depend on it.
        depth_check: compare the chosen depth with recorded depth, where there is some.
        ray: address of a Ray cluster that does the episodes instead of `workers`.
        strict: a rejected episode ends it.
        overrides: values of the embodiment.

    Raises:
        UserError: everything wrong with the inputs; with `strict` the first rejected episode; no episode left;
            `out` holds something else.
    """
    started = time.perf_counter()
    embodiment = named_file(embodiment, "recipes/embodiments")  # URDFs and calibrations lie beside it
    require_apart(raws, out)
    if remote.url_of(out) is not None:
        remote.require_writable(out)
    spec = load_embodiment(embodiment, overrides)
    recorded = [found for raw in raws if (found := recorded_url(raw)) is not None]
    given, raws = raws, [recordings_at(raw, console, spec) for raw in raws]
    with console.status("looking through the recordings"):
        with named_as_given(given, raws):
            sources = [open_source(raw) for raw in raws]
        jobs, plan = plan_jobs(sources, spec, embodiment, depth, urdf_dirs, staging_of(out), check=depth_check)
        fingerprint = preparation_fingerprint(raws, jobs, spec, plan, {one.folder: one.sizes for one in recorded})
        if ray is not None and (url := remote.url_of(out)) is not None:
            jobs = with_urls(jobs, recorded, f"{url}/{PARTS}{fingerprint[:16]}")
    if (made := _made_before(out, fingerprint, console)) is not None:
        return made
    if plan.note:
        console.print(f"depth: {plan.spec} ({plan.note})", markup=False)
    if plan.cache is not None:
        text = f"estimates are kept in {plan.cache}; remove it when no other preparation needs them"
        console.print(text, markup=False)
    if all(not camera.rotate and not camera.mirror for camera in spec.cameras.values()):
        for hint in filter(None, dict.fromkeys(upside_down(source.info) for source in sources)):
            console.print(Text("note", STYLES["note"]), end=" ")
            console.print(hint, markup=False, soft_wrap=True)
    if (size := _odd_size(spec.image.height, spec.image.width)) is not None:
        console.print(Text("warning", STYLES["warning"]), end=" ")
        console.print(size, markup=False, soft_wrap=True)
    try:
        with sole_writer(out if remote.url_of(out) is None else staging_of(out).with_name("set"), "preparing it"):
            if (made := _made_before(out, fingerprint, console)) is not None:  # by another, since we looked
                return made
            _take_up(staging_of(out), fingerprint, console)
            take_finished(jobs, finished)
            results = run_all(jobs, workers, ray, strict, console)
            check_together(jobs, results, strict=strict)
            check_unnamed(jobs, results, sources)
            report = _finish(jobs, results, spec, plan, sources, out, fingerprint, console)
    except OSError as error:
        if (told := full_disk(error, staging_of(out))) is None:
            raise
        raise told from None
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it was")
        raise
    report.seconds["all"] = time.perf_counter() - started
    say(report, console)
    return report


def _odd_size(height: int, width: int) -> str | None:
    """What to say of pictures that the usual backbones refuse; others may take them, so it is no error."""
    if height % TOKEN_PIXELS == 0 and width % TOKEN_PIXELS == 0:
        return None
    near = [max(1, round(side / TOKEN_PIXELS)) * TOKEN_PIXELS for side in (height, width)]
    return (
        f"image: {height}x{width} is refused by the built-in backbone and by Wan2.2-TI2V, which want multiples of "
        f"{TOKEN_PIXELS}; write `image: {{height: {near[0]}, width: {near[1]}}}` in the embodiment file unless yours "
        "takes it"
    )


def depth_cache(staging: Path) -> Path:
    """Where estimates are kept: beside OUT, where there is room for depth anyway, or $XWAM_FT_DEPTH_CACHE."""
    named = os.environ.get("XWAM_FT_DEPTH_CACHE")
    return Path(named).absolute() if named else staging.parent / ".xwam-ft-depth"


def plan_jobs(
    sources: list[Source],
    spec: Embodiment,
    where: Path,
    depth: str | None,
    urdf_dirs: list[Path],
    staging: Path,
    *,
    check: bool = False,
) -> tuple[list[EpisodeJob], DepthPlan]:
    """The work on every episode of all sources, and what is done for depth.

    Args:
        where: the embodiment file, for messages.
        check: as `depth_check` of `prepare`.

    Raises:
        UserError: what does not fit together in recordings, embodiment and depth.
    """
    fps = frame_rate(spec, sources[0].info, where)
    for source in sources[1:]:
        if (other := frame_rate(spec, source.info, where)) != fps:
            raise UserError(
                f"was recorded at {other:g} fps, {sources[0].info.path} at {fps:g}",
                source.info.path,
                "prepare recordings of different rates apart",
            )
    jobs: list[EpisodeJob] = []
    plan: DepthPlan | None = None
    first: list[SlotPlan] | None = None
    for source in sources:
        cameras = calibrated(plan_cameras(spec, source.info, where), spec, source.info, where)
        slots = plan_slots(spec, source.info, where, urdf_dirs)
        first = first or slots
        for ours, theirs in zip(first, slots, strict=True):
            if ours.slot != theirs.slot:
                raise UserError(
                    f"has other columns for slot {ours.slot.name!r} ({listed(theirs.slot.columns)}) than "
                    f"{sources[0].info.path} ({listed(ours.slot.columns)})",
                    source.info.path,
                    "prepare them apart, or give the columns the same names",
                )
        recorded = [camera.feature for camera in source.info.cameras.values() if camera.depth]
        if plan is None:
            plan = parse_depth(depth, cameras, recorded, spec.depth)
            if check:
                require_check(plan, cameras)
            size = (spec.image_rule.height, spec.image_rule.width)
            ends = (spec.depth.near, spec.depth.far)
            plan = replace(plan, check=check, check_range=ends, size=size)
            plan = replace(plan, cache=depth_cache(staging) if plan.estimator else None)
        for episode in source.episodes():
            jobs.append(
                EpisodeJob(
                    number=len(jobs),
                    episode=episode,
                    fps=fps,
                    cameras=cameras,
                    slots=slots,
                    depth=plan,
                    image=spec.image_rule,
                    timing=spec.timing.timing(fps),
                    instruction=spec.instruction,
                    staging=staging,
                )
            )
    assert plan is not None
    return jobs, plan


def _take_up(staging: Path, fingerprint: str, console: Console) -> None:
    """Keep what a stopped run with the same inputs and library versions left; else start clean."""
    record = {"fingerprint": fingerprint, "versions": library_versions()}
    if (staging / RECORD).is_file() and read_json(staging / RECORD) == record:
        done = len(list(staging.glob("episode-*")))
        console.print(f"going on with a stopped run: {done} episodes are done")
        for remains in staging.glob(".episode-*.tmp"):
            shutil.rmtree(remains, ignore_errors=True)
        return
    if staging.exists():
        console.print("a stopped run with other inputs was found; starting anew")
        shutil.rmtree(staging)
    write_json_atomic(staging / RECORD, record)


def run_all(
    jobs: list[EpisodeJob],
    workers: int,
    ray: str | None,
    strict: bool,
    console: Console,
    work: Callable[[EpisodeJob], JobOutcome] | None = None,
) -> list[EpisodeResult]:
    """The results of all jobs, those of an earlier run included, with a bar.

    Args:
        work: what is done to each; None: all of `prepare` (`run`).

    Raises:
        UserError: what a job returned as one; with `strict` the first rejected episode; a worker died.
    """
    by_number = {job.number: job for job in jobs}
    results: dict[int, EpisodeResult] = {}
    refused: dict[str, list[int]] = {}  # by the shape of the reason
    waiting: list[EpisodeJob] = []
    for job in jobs:
        before = finished(job)
        if before is None:
            waiting.append(job)
        else:
            results[job.number] = before
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        total = sum(max(job.episode.length, 0) for job in jobs)
        bar = progress.add_task("prepare" if work is None else "depth", total=total)
        progress.advance(bar, sum(max(by_number[number].episode.length, 0) for number in results))
        for number, outcome in outcomes(run if work is None else work, waiting, workers, ray):
            progress.advance(bar, max(by_number[number].episode.length, 0))
            if isinstance(outcome, tuple):
                raise UserError(*outcome)
            results[number] = outcome
            if outcome.reason is not None:
                name = f"{outcome.dataset} episode {outcome.index}"
                if strict:
                    fix = next((finding.fix for finding in outcome.of("error") if finding.fix), "mend it")
                    raise UserError(outcome.reason, name, f"{fix}; or leave --strict out, which goes on without it")
                alike = refused.setdefault(shape_of(outcome.reason), [])
                if not alike:
                    progress.console.print(f"rejected {name}: {outcome.reason}", markup=False, soft_wrap=True)
                alike.append(number)
    for alike in refused.values():
        if len(alike) > 1:
            told = episodes_text(sorted(alike[1:]), names_of(results.values()))
            console.print(f"rejected for the like: {told}", markup=False, soft_wrap=True)
    return [results[job.number] for job in jobs]


def _finish(
    jobs: list[EpisodeJob],
    results: list[EpisodeResult],
    spec: Embodiment,
    plan: DepthPlan,
    sources: list[Source],
    out: Path,
    fingerprint: str,
    console: Console,
) -> PrepareReport:
    """Statistics, contract, shards and report out of the staging folder, then OUT in one piece."""
    accepted = [job for job, result in zip(jobs, results, strict=True) if result.reason is None]
    rejected = [result for result in results if result.reason is not None]
    if not accepted:
        shapes = {shape_of(result.reason or ""): result.reason or "" for result in reversed(rejected)}
        reasons = list(reversed(shapes.values()))
        groups = grouped((result.number, finding) for result in rejected for finding in result.of("error"))
        remedies = list(dict.fromkeys(group.fix for group in groups))[:3]
        raise UserError(
            f"all {len(rejected)} episodes are rejected ({listed(reasons, 3)})",
            listed([str(source.info.path) for source in sources]),
            "; ".join(remedies) or "mend the recordings or the embodiment file",
        )
    with console.status("statistics, shards, report"):
        clock = time.perf_counter()
        contract, chosen = assemble.contract_of(accepted, results, spec, plan, sources)
        check_against_contract(contract, accepted, results, chosen)
        staged_set = staging_of(out) / "set"
        shutil.rmtree(staged_set, ignore_errors=True)
        assemble.write_set(staged_set, contract, accepted, results, chosen)
        assemble.write_records(staged_set, results, spec, plan, fingerprint, sources)
        depth = depth_outcomes([results[job.number] for job in accepted])
        assemble.write_depth(staged_set, depth, plan)
        assemble.write_report(staged_set, contract, accepted, results, chosen, plan)
        if (url := remote.url_of(out)) is None:
            move_folder(staged_set, out)
    if url is not None:
        upload(staged_set, url, staging_of(out) / "uploaded.json", console)
        remove_parts(jobs)
    shutil.rmtree(staging_of(out))
    seconds: dict[str, float] = {}
    for result in results:
        for stage, value in result.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    seconds["assemble"] = time.perf_counter() - clock
    kept = [results[job.number] for job in accepted]
    say_depth(depth, plan, console)
    say_limits(contract, console)
    return PrepareReport(
        out=out,
        episodes=len(kept),
        frames=sum(result.frames for result in kept),
        rejected=rejected,
        findings=grouped((result.number, finding) for result in results for finding in result.findings),
        seconds=seconds,
        depth=depth,
        names=names_of(results),
    )


def _made_before(out: Path, fingerprint: str, console: Console) -> PrepareReport | None:
    """What is there already, where it is the same; a `UserError` where it is anything else."""
    if (url := remote.url_of(out)) is not None:
        from xwam_ft.shards import ShardSet

        return _already(out, ShardSet.open(out), console) if made_before(url, fingerprint) else None
    if (out / RECORD).is_file() and read_json(out / RECORD).get("fingerprint") == fingerprint:
        from xwam_ft.shards import ShardSet

        shutil.rmtree(staging_of(out), ignore_errors=True)  # of a run that was killed when all but this was done
        return _already(out, ShardSet.open(out), console)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        made = (out / RECORD).is_file()
        raise UserError(OTHER_INPUTS if made else "exists and is not an empty folder", out, "give another OUT")
    return None


def _already(out: Path, shards: ShardSet, console: Console) -> PrepareReport:
    console.print(f"{spelled(out)}: already prepared from these inputs; nothing to do", markup=False, soft_wrap=True)
    frames = sum(episode.frames for episode in shards.index.episodes)
    return PrepareReport(out, len(shards.index.episodes), frames, already_prepared=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} frames/s" if task.speed else "- frames/s")
