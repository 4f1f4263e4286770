"""What a preparation depends on, in one hash: it tells a finished or stopped one from another's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xwam_ft.bundled import bundled
from xwam_ft.files import sha256
from xwam_ft.hub import fetched_from
from xwam_ft.machine import installed_versions

if TYPE_CHECKING:
    from xwam_ft.prepare.depth import DepthPlan
    from xwam_ft.prepare.embodiment.schema import Embodiment
    from xwam_ft.prepare.jobs import EpisodeJob

RECORD = "prepared.json"
OTHER_INPUTS = "was prepared from other inputs, or by an xwam-ft that makes other bytes of the same ones"
FORMAT = 4  # raise it when the bytes of a shard set change for equal inputs
TEXT = (".json", ".jsonl", ".csv", ".txt", ".yaml")  # edited by hand, perhaps to the same size
LIBRARIES = ("xwam-ft", "numpy", "scipy", "av", "torch", "transformers", "pillow")


def preparation_fingerprint(
    raws: list[Path],
    jobs: list[EpisodeJob],
    spec: Embodiment,
    plan: DepthPlan,
    listed: Mapping[Path, Mapping[Path, int]] = MappingProxyType({}),
) -> str:
    """Embodiment, depth, URDF chains, metadata and text by content, data and video files by name and size.

    Absolute paths and dates are left out, so that a copied dataset is the same one; one of the Hub is its commit.

    Args:
        listed: files and sizes of those of `raws` that are copies from a URL, those that were not copied too.
    """
    parts: list[Any] = [FORMAT, spec.model_dump(mode="json"), plan.spec, plan.code.model_dump(mode="json")]
    if jobs:
        parts.append([slot.slot.model_dump(mode="json") for slot in jobs[0].slots])
        if any(slot.calibration for slot in spec.slots.values()):  # what the calibration file said
            readings = [reading for slot in jobs[0].slots for reading in (slot.state, slot.command) if reading]
            parts.append([[reading.scale, reading.offset] for reading in readings])
    if any(len(job.episode.instructions) > 1 for job in jobs):
        parts.append("contract.prompts hold every wording")  # the first alone, when FORMAT became 2
    for raw in raws:
        if (repo := fetched_from(raw)) is not None:  # of which more or fewer files may lie here
            parts.append([repo.kind, repo.id, repo.revision])
            continue
        inside = sorted(path for path in raw.rglob("*") if path.is_file() and ".cache" not in path.parts)
        files = [raw] if raw.is_file() else inside  # one HDF5 file may be a dataset
        if (there := listed.get(raw)) is not None:  # likewise
            files = sorted(path for path in there if path.is_file())
            parts.append([[str(path.relative_to(raw)), size] for path, size in sorted(there.items())])
        else:
            parts.append([[str(path.relative_to(raw)), path.stat().st_size] for path in files])
        parts.append([sha256(path) for path in files if path.is_relative_to(raw / "meta") or path.suffix in TEXT])
    if plan.spec == "tiny":
        parts.append(sha256(bundled("tiny/depth.safetensors")))
    if plan.spec.startswith("files:"):
        parts.append(_depth_files(plan.spec))
    if plan.estimator is not None:
        parts.append(plan.estimator.fingerprint)
    if plan.check:
        parts.append("depth check")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """What the bytes of a video may depend on besides the inputs."""
    return installed_versions(LIBRARIES)


def _depth_files(spec: str) -> list[list[Any]]:
    """Names and sizes of the files a pattern can match: its placeholders become wildcards."""
    pattern = Path(re.sub(r"\{[^}]*\}", "*", spec.removeprefix("files:").partition("?")[0]))
    start = Path(pattern.anchor or ".")
    found = start.glob(str(pattern.relative_to(pattern.anchor)))
    return [[path.name, path.stat().st_size] for path in sorted(found) if path.is_file()]
