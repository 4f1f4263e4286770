"""From finished episodes to the shard set: the split, the contract, the tars, the records, the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft import quantiles
from xwam_ft.contract import Contract
from xwam_ft.files import write_bytes_atomic, write_json_atomic
from xwam_ft.hub import fetched_from, name_of
from xwam_ft.prepare.embodiment.cameras import contract_camera
from xwam_ft.prepare.embodiment.naming import aliases_of
from xwam_ft.prepare.fingerprint import RECORD
from xwam_ft.prepare.jobs import EpisodeJob, EpisodeResult, Motions, load_joints
from xwam_ft.prepare.recorded import recorded
from xwam_ft.prompts import canonical
from xwam_ft.shard_index import META, SegmentMeta, Split
from xwam_ft.shard_writer import ShardSetWriter, episode_entry

if TYPE_CHECKING:
    from xwam_ft.prepare.depth import DepthPlan
    from xwam_ft.prepare.depth.outcome import DepthOutcome
    from xwam_ft.prepare.embodiment.schema import Embodiment
    from xwam_ft.prepare.sources import Source

REJECTED = "rejected.jsonl"
FINDINGS = "findings.jsonl"
REPORT = "report.html"
DEPTH = "depth.json"


def held_out(numbers: Sequence[int], share: float) -> set[int]:
    """The held-out episodes: `share` of them, at least one and never all where there are two, chosen by hash."""
    if share <= 0 or len(numbers) < 2:
        return set()
    count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
    ranked = sorted(numbers, key=lambda number: hashlib.sha256(f"episode {number}".encode()).digest())
    return set(ranked[:count])


def contract_of(
    accepted: list[EpisodeJob],
    results: list[EpisodeResult],
    spec: Embodiment,
    plan: DepthPlan,
    sources: list[Source],
) -> tuple[Contract, set[int]]:
    """The contract with its quantiles over the training episodes, and the numbers of the held-out ones.

    Camera sizes are those of the first accepted episode.
    """
    chosen = held_out([job.number for job in accepted], spec.held_out)
    first = results[accepted[0].number]
    info = next(source.info for source in sources if source.info.path == accepted[0].episode.dataset)
    cameras = tuple(
        contract_camera(spec, camera, info, (first.sizes[camera.name][0], first.sizes[camera.name][1]))
        for camera in accepted[0].cameras
    )
    _write_alike([results[job.number] for job in accepted])
    prompts = sorted({text for job in accepted for text in results[job.number].instructions} - {""})
    draft = quantiles.placeholder(
        {
            "embodiment": spec.name,
            "cameras": cameras,
            "image": spec.image_rule,
            "timing": accepted[0].timing,
            "slots": tuple(plan_.slot for plan_ in accepted[0].slots),
            "depth": plan.code,
            "prompts": tuple(prompts),
            "prompt_form": "plain",
            "aliases": aliases_of(spec, info, accepted[0].slots, accepted[0].cameras),
            "action_scaling": spec.action_scaling,
        }
    )
    jobs = [job for job in accepted if job.number not in chosen]
    train = Motions(jobs)
    keep = [name for name, slot in spec.slots.items() if slot.quaternion == "w_positive"]
    known = recorded(draft, train, lambda place: load_joints(jobs[place]), keep)
    return draft.model_copy(update={"quantiles": quantiles.quantiles(draft, train), "recorded": known}), chosen


def _write_alike(results: list[EpisodeResult]) -> None:
    """Give instructions that are the same the one wording that is most usual."""
    usual = canonical(text for result in results for text in result.instructions)
    for result in results:
        result.instructions = list(dict.fromkeys(usual[" ".join(text.split())] for text in result.instructions))


def write_set(
    folder: Path, contract: Contract, accepted: list[EpisodeJob], results: list[EpisodeResult], chosen: set[int]
) -> None:
    """Tars, contract.json and index.json, in the order of episodes and frames."""
    with ShardSetWriter(folder) as writer:
        entries = []
        for job in accepted:
            result = results[job.number]
            split: Split = "held_out" if job.number in chosen else "train"
            for key in result.segments:
                members = {
                    path.name.removeprefix(f"{key}."): path.read_bytes() for path in sorted(job.folder.glob(f"{key}.*"))
                }
                meta = SegmentMeta.model_validate_json(members[META])
                meta = meta.model_copy(update={"split": split, "instruction": result.instruction})
                writer.add({**members, META: meta.model_dump_json().encode()})
            entries.append(
                episode_entry(
                    job.number,
                    result.segments,
                    frames=result.frames,
                    split=split,
                    instructions=result.instructions,
                    source=f"{result.dataset} episode {result.index}",
                    success=result.success,
                )
            )
        writer.finish(contract, entries)


def write_records(
    folder: Path,
    results: list[EpisodeResult],
    spec: Embodiment,
    plan: DepthPlan,
    fingerprint: str,
    sources: list[Source],
) -> None:
    """rejected.jsonl and findings.jsonl (empty where there is none), and what the set was made from."""
    rejected = [result for result in results if result.reason is not None]
    _write_lines(folder / REJECTED, [{**_name(result), "reason": result.reason} for result in rejected])
    _write_lines(folder / FINDINGS, [{**_name(r), **asdict(finding)} for r in results for finding in r.findings])
    record = {
        "fingerprint": fingerprint,
        "depth": plan.spec,
        "recordings": [_recordings(source) for source in sources],
        "embodiment": spec.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    }
    write_json_atomic(folder / RECORD, record)


def _recordings(source: Source) -> dict[str, str]:
    path = source.info.path
    record = {"name": name_of(path), "format": source.info.format}
    return record if (repo := fetched_from(path)) is None else {**record, "hub": str(repo)}


def write_depth(folder: Path, depth: Mapping[str, DepthOutcome], plan: DepthPlan) -> None:
    """depth.json: valid share, flicker and comparison with recorded depth of every camera; absent without depth."""
    if depth:
        cameras = {name: asdict(found) for name, found in depth.items()}
        write_json_atomic(folder / DEPTH, {"depth": plan.spec, "kind": plan.code.kind, "cameras": cameras})


def _name(result: EpisodeResult) -> dict[str, Any]:
    return {"episode": result.number, "dataset": result.dataset, "dataset_episode": result.index}


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_bytes_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def write_report(
    folder: Path,
    contract: Contract,
    accepted: list[EpisodeJob],
    results: list[EpisodeResult],
    chosen: set[int],
    plan: DepthPlan,
) -> None:
    from xwam_ft.prepare.report import render

    write_bytes_atomic(folder / REPORT, render(contract, accepted, results, chosen, plan).encode())
