"""All finished episodes together: the checks that compare them, put into each episode's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.prepare.checks.across import (
    check_aspect,
    check_duplicates,
    check_padding,
    check_same,
    check_sizes,
    check_swapped,
    content_hash,
)
from xwam_ft.prepare.checks.calibration import check_calibration
from xwam_ft.prepare.checks.changes import check_changes
from xwam_ft.prepare.checks.commands import check_commands, check_mixed_commands
from xwam_ft.prepare.checks.datasets import (
    SAMPLED,
    SampledDataset,
    check_datasets,
    check_halves,
    check_turned,
    spread_evenly,
)
from xwam_ft.prepare.checks.depth import check_drift
from xwam_ft.prepare.checks.followed import check_followed
from xwam_ft.prepare.checks.grippers import check_grippers
from xwam_ft.prepare.checks.idle import check_idle_starts
from xwam_ft.prepare.checks.leads import check_leads
from xwam_ft.prepare.checks.quaternions import check_quaternions
from xwam_ft.prepare.checks.ranges import check_ranges
from xwam_ft.prepare.checks.units import check_episode_ranges
from xwam_ft.prepare.findings import Finding, names_of
from xwam_ft.prepare.jobs import Motions, MotionsByNumber, load_motion
from xwam_ft.prepare.sources.beside import unnamed

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.prepare.jobs import EpisodeJob, EpisodeResult
    from xwam_ft.prepare.sources import Source
    from xwam_ft.quantiles import Motion

JUDGED = 200  # episodes, spread over all, from which is told what recorded commands are
Told = dict[int, list[Finding]]


def check_together(jobs: list[EpisodeJob], results: list[EpisodeResult], *, strict: bool) -> None:
    """Checks that may reject: ranges of episodes against each other, grippers, and what recorded commands are.

    Raises:
        UserError: with `strict`, the first error.
    """
    sound = [job for job in jobs if results[job.number].reason is None]
    if not sound:
        return
    motions = {job.number: load_motion(job) for job in spread_evenly(sound, JUDGED)}
    plans = sound[0].slots
    slots = [plan.slot for plan in plans]
    changes = {plan.slot.name for plan in plans if plan.delta is not None}  # judged as such (changes.py)

    def add(number: int, finding: Finding) -> None:
        result = results[number]
        result.findings.append(finding)
        if finding.severity == "error":
            result.reason = f"{result.reason}; {finding.text}" if result.reason else finding.text
            if strict:
                name = f"{result.dataset} episode {result.index}"
                raise UserError(finding.text, name, "mend the embodiment file, or leave --strict out")

    for told in (
        _of_all(lambda some: check_episode_ranges(slots, some), sound, motions),
        _of_all(lambda some: check_mixed_commands(plans, some), sound, motions),
    ):
        for number, findings in told.items():
            for finding in findings:
                add(number, finding)
        motions = {n: motion for n, motion in motions.items() if results[n].reason is None} or motions
    for told in (
        check_grippers(slots, motions),
        check_followed(slots, motions, changes),
        check_leads(plans, motions),
        check_changes(plans, motions, sound[0].fps),
    ):
        for number, findings in told.items():
            for finding in findings:
                add(number, finding)
    left = [job for job in sound if results[job.number].reason is None]
    for finding in check_commands(slots, list(motions.values()), changes):
        for job in left:
            add(job.number, finding)


def _of_all(
    check: Callable[[Mapping[int, Motion]], Told], jobs: Sequence[EpisodeJob], sample: Mapping[int, Motion]
) -> Told:
    """What rejects is told of every episode: those that are not of the sample are laid beside half of it, in parts."""
    told, half = dict(check(sample)), dict(list(sample.items())[::2])
    rest = [job for job in jobs if job.number not in sample]
    for first in range(0, len(rest), JUDGED // 2):
        part = {job.number: load_motion(job) for job in rest[first : first + JUDGED // 2]}
        told |= {number: findings for number, findings in check(half | part).items() if number in part}
    return told


def check_unnamed(jobs: list[EpisodeJob], results: list[EpisodeResult], sources: list[Source]) -> None:
    """What lies in a dataset and belongs to none of its episodes, told with the first of them."""
    for source in sources:
        of_it = [job for job in jobs if job.episode.dataset == source.info.path]
        for text in unnamed(source.info, [job.episode for job in of_it]) if of_it else []:
            results[of_it[0].number].findings.append(Finding("not-read", "warning", text, text))


def check_against_contract(
    contract: Contract, accepted: list[EpisodeJob], results: list[EpisodeResult], held_out: set[int]
) -> None:
    """Checks of what stays: cameras and episodes against each other, calibration, ranges. None rejects."""
    kept = {job.number: results[job.number] for job in accepted}
    motions = MotionsByNumber(accepted)
    signatures = {number: result.signatures for number, result in kept.items()}

    def add(found: Mapping[int, list[Finding]]) -> None:
        for number, findings in found.items():
            results[number].findings += findings

    skip = contract.timing.frame_skip
    add(check_padding({n: (result.padded_starts, max(0, result.frames - skip)) for n, result in kept.items()}))
    add(check_sizes({number: result.sizes for number, result in kept.items()}))
    add(dict.fromkeys(kept, check_aspect(contract.cameras, contract.image)))
    add(check_swapped(signatures))
    for dataset in {result.dataset: None for result in kept.values()}:  # against each other they are compared below
        add(check_turned({n: seen for n, seen in signatures.items() if kept[n].dataset == dataset}))
    add(check_same(signatures))
    hashes = {number: content_hash(motion) for number, motion in motions.items()}
    pictures = {number: result.pictures_hash for number, result in kept.items()}
    add(check_duplicates(hashes, signatures, pictures, held_out, names_of(kept.values())))
    for camera in contract.cameras:
        grids = {n: result.depth_grids[camera.name] for n, result in kept.items() if camera.name in result.depth_grids}
        if camera.kind == "static":
            add({number: [finding] for number, finding in check_drift(camera.name, grids).items()})
    add(check_quaternions(contract, motions))
    add(check_idle_starts(contract, motions))
    for number, motion in motions.items():
        results[number].findings += check_calibration(contract, motion)
    add(_datasets_apart(contract, accepted, kept))
    train = [job for job in accepted if job.number not in held_out]
    for finding in check_ranges(contract, Motions(train)):
        for job in train:
            results[job.number].findings.append(finding)


def _datasets_apart(
    contract: Contract, accepted: list[EpisodeJob], results: Mapping[int, EpisodeResult]
) -> dict[int, list[Finding]]:
    """What is found between datasets, told of every episode of the later one."""
    names = list(dict.fromkeys(results[job.number].dataset for job in accepted))
    jobs = [[job for job in accepted if results[job.number].dataset == name] for name in names]
    if len(names) < 2:
        return check_halves(
            contract.slots, {j.number: load_motion(j).state for j in spread_evenly(jobs[0], 2 * SAMPLED)}
        )
    sampled: list[SampledDataset] = []
    for name, of_it in zip(names, jobs, strict=True):
        some = spread_evenly(of_it, SAMPLED)
        pictures = {
            camera.name: [results[job.number].signatures[camera.name] for job in some] for camera in contract.cameras
        }
        sampled.append(SampledDataset(name, [load_motion(job).state for job in some], pictures))
    found: dict[int, list[Finding]] = {}
    for place, finding in check_datasets(contract.slots, sampled):
        for job in jobs[place]:
            found.setdefault(job.number, []).append(finding)
    return found
