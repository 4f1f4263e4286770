"""`xwam-ft imagine`: the future a policy imagines beside the one that was recorded.

The episode is tiled by clips: each starts at the frame where the one before it ended, from its *recorded* picture and
state, and the policy imagines up to its end. So errors do not pile up over the episode, and every frame but the very
first is imagined. Pictures are what the model sees: the contract's size, centre-cropped.

    imagined.mp4       recorded and imagined, RGB and depth, a column a camera
    contact_sheet.png  a few of those frames
    imagined.ply, recorded.ply, pointcloud.png   last frame of the middle clip, where calibration and metric depth allow
    metrics.json       fidelity.py's scores and the clouds' Chamfer distance, beside "repeat the first frame"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.consoles import marked
from xwam_ft.depth_code import INVALID, code_to_picture, colour, is_exact, picture_to_code, to_metres
from xwam_ft.errors import UserError, spelled
from xwam_ft.evaluate.fidelity import Fidelity
from xwam_ft.evaluate.pictures import PictureRow, contact_sheet, pages
from xwam_ft.evaluate.pointcloud import chamfer, write_ply
from xwam_ft.evaluate.scene import left_out, preview, scene_cloud, why_no_cloud
from xwam_ft.files import atomic_path, write_json_atomic
from xwam_ft.locks import sole_folder
from xwam_ft.media import write_preview
from xwam_ft.pictures import centre_crop, centre_crop_nearest
from xwam_ft.policy.policy import clip_observation
from xwam_ft.policy.source import PolicySource
from xwam_ft.progress import progress_bar
from xwam_ft.shards import CONTRACT_FILE, ShardSet

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray
    from rich.console import Console

    from xwam_ft.contract import Contract
    from xwam_ft.policy.policy import Imagined, Policy
    from xwam_ft.progress import Advance
    from xwam_ft.shard_index import EpisodeEntry
    from xwam_ft.shards import Clip, ClipRef

UNTRAINED = "untrained backbone"
SHEET_COLUMNS = 6


@dataclass(frozen=True)
class Pair:
    """A recorded clip and the imagined one, as the model sees them; T recorded frames (held ones are cut off)."""

    start: int  # episode frame of the first picture
    rgb: UInt8[ndarray, "v t h w 3"]
    depth: UInt16[ndarray, "v t h w"] | None
    states: Float[ndarray, "t p"]
    imagined_rgb: UInt8[ndarray, "v t h w 3"]
    imagined_depth: UInt16[ndarray, "v t h w"] | None
    imagined_states: Float[ndarray, "t p"]


def imagine(bundle: Path | PolicySource, shards: Path, episode: int, out: Path, console: Console) -> dict[str, Any]:
    """Write the folder `out` (see the module's head); returns what metrics.json holds.

    Raises:
        UserError: `out` is not empty; not a bundle or shard set; they were made of different preparations; no such
            episode, or it is too short.
    """
    with sole_folder(out, "imagining into it") as folder:
        shard_set = ShardSet.open(shards)
        entry = shard_set.episode(episode)
        refs = tiles(shard_set, entry)
        source = PolicySource.of(bundle)
        policy = source.load()
        shard_set = shard_set.under(policy.contract, source.folder / CONTRACT_FILE)
        with progress_bar(console, "imagine", "clips", len(refs)) as advance:
            found = write_futures(policy, shard_set, refs, folder, joined=True, advance=advance)
        metrics: dict[str, Any] = {
            "bundle": source.name,
            "shards": spelled(shards),
            "episode": episode,
            "instruction": entry.instruction,
            "split": entry.split,
            "clips": len(refs),
            "trained_backbone": policy.trained,
            "with_future": policy.acts_with_future,
            **found,
        }
        write_json_atomic(folder / "metrics.json", metrics)
    _tell(metrics, out, console)
    return metrics


def write_futures(
    policy: Policy,
    shards: ShardSet,
    refs: Sequence[ClipRef],
    folder: Path,
    *,
    joined: bool,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Imagine clips and write video, contact sheet and clouds (see the module's head) into an existing folder.

    Args:
        joined: each clip starts where the one before it ended, so that its first frame is left out.

    Returns:
        {"scores", "point_cloud"} of metrics.json.
    """
    contract = shards.contract
    caption = None if policy.trained else UNTRAINED
    fidelity = Fidelity(contract.camera_names)
    kept: list[tuple[list[PictureRow], list[str]]] = []
    middle: list[Pair] = []

    def video() -> Iterator[np.ndarray]:
        for index, ref in enumerate(refs):
            clip = shards.read_clip(ref)
            pair = make_pair(
                contract, clip, policy.imagine(clip_observation(contract, clip), policy.settings.seed + index)
            )
            score(contract, pair, fidelity)
            if index == len(refs) // 2:
                middle.append(pair)
            rows, notes = pair_rows(contract, pair, caption), _times(contract, pair)
            kept.append(([_last(row) for row in rows], notes[-1:]))
            yield from pages(rows, contract.camera_names, notes, 1 if joined and index else 0)
            if advance is not None:
                advance(1)

    write_preview(folder / "imagined.mp4", video(), contract.timing.fps / contract.timing.frame_skip)
    _write_sheet(folder / "contact_sheet.png", contract, kept)
    return {"scores": fidelity.metrics(), "point_cloud": write_clouds(folder, contract, middle[0], caption)}


def tiles(shards: ShardSet, entry: EpisodeEntry) -> list[ClipRef]:
    """The clips of an episode that start a clip's length apart, each where the one before it ended.

    Raises:
        UserError: the episode ends before the second picture of a clip.
    """
    timing = shards.contract.timing
    refs = [ref for ref in shards.clips(None, timing.span - 1) if ref.entry.episode == entry.index]
    if not refs:
        raise UserError(
            f"episode {entry.index} has {entry.frames} frames, and a clip needs {timing.frame_skip + 1}",
            shards.folder,
            "choose a longer episode",
        )
    return refs


def make_pair(contract: Contract, clip: Clip, imagined: Imagined) -> Pair:
    """Crop what was recorded as the model's input is cropped, and cut both to the frames that were recorded."""
    crop, count = contract.image.crop, int(clip.frame_valid.sum())
    rgb = np.stack([centre_crop(view[:count], crop) for view in clip.rgb])
    depth = None
    if clip.depth is not None and imagined.depth is not None:
        depth = np.stack([centre_crop_nearest(view[:count], crop) for view in clip.depth])
    return Pair(
        start=clip.start,
        rgb=rgb,
        depth=depth,
        states=clip.proprio[:count],
        imagined_rgb=imagined.rgb[:, :count],
        imagined_depth=None if depth is None or imagined.depth is None else imagined.depth[:, :count],
        imagined_states=imagined.states[:count],
    )


def score(contract: Contract, pair: Pair, fidelity: Fidelity) -> None:
    """Add a pair's scores; depth only where it has metres."""
    for view, camera in enumerate(contract.cameras):
        fidelity.add_pictures(camera.name, pair.imagined_rgb[view], pair.rgb[view])
        if pair.depth is not None and pair.imagined_depth is not None and contract.depth.kind == "metric":
            code = contract.depth_of(camera)
            # Only recorded depth inside the coded range is a truth to compare with.
            recorded = np.where(is_exact(pair.depth[view]), pair.depth[view], INVALID).astype(np.uint16)
            metres = (to_metres(pair.imagined_depth[view], code), to_metres(recorded, code))
            fidelity.add_depth(camera.name, *metres)


def pair_rows(contract: Contract, pair: Pair, caption: str | None) -> list[PictureRow]:
    """The rows of the video; `caption` stands on everything imagined."""
    rows = [PictureRow("recorded", pair.rgb), PictureRow("imagined", pair.imagined_rgb, caption)]
    if pair.depth is not None and pair.imagined_depth is not None:
        # Where codes are stretched per clip, as for relative depth, the recorded ones are shown stretched as well.
        seen = np.stack([_as_seen(contract, view) for view in pair.depth])
        rows.append(PictureRow("recorded depth", colour(seen)))
        rows.append(PictureRow("imagined depth", colour(pair.imagined_depth), caption))
    return rows


def write_clouds(folder: Path, contract: Contract, pair: Pair, caption: str | None) -> dict[str, Any]:
    """Write both clouds of the pair's last frame and their preview; say what they are, or why there are none."""
    reason = why_no_cloud(contract, depth_branch=pair.imagined_depth is not None)
    if reason is not None or pair.depth is None or pair.imagined_depth is None:
        return {"made": False, "reason": reason or "no point cloud: this policy has no depth branch"}
    last = len(pair.states) - 1
    clouds = {
        "imagined": scene_cloud(
            contract, pair.imagined_rgb[:, last], pair.imagined_depth[:, last], pair.imagined_states[last]
        ),
        "recorded": scene_cloud(contract, pair.rgb[:, last], pair.depth[:, last], pair.states[last]),
    }
    # The cloud a policy that repeats the given frame would show: a scene that hardly moves makes it near as well.
    still = scene_cloud(contract, pair.rgb[:, 0], pair.depth[:, 0], pair.states[0])
    distances = {
        "imagined": chamfer(clouds["imagined"], clouds["recorded"]),
        "repeat_first_frame": chamfer(still, clouds["recorded"]),
    }
    for name, cloud in clouds.items():
        write_ply(folder / f"{name}.ply", cloud)
    preview(folder / "pointcloud.png", clouds, {"imagined": caption})
    return {
        "made": True,
        "episode_frame": pair.start + last * contract.timing.frame_skip,
        "chamfer_mm": {name: None if far is None else 1000 * far for name, far in distances.items()},
        "points": {name: len(cloud) for name, cloud in clouds.items()},
        "left_out": left_out(contract),
    }


def _as_seen(contract: Contract, codes: np.ndarray) -> np.ndarray:
    if not contract.depth.clip_normalised:
        return codes
    picture, valid = code_to_picture(codes, contract.depth)
    return np.where(valid, picture_to_code(picture), INVALID).astype(np.uint16)


def _times(contract: Contract, pair: Pair) -> list[str]:
    """Seconds since the episode began, and since the frame the clip was given."""
    timing = contract.timing
    step = timing.frame_skip / timing.fps
    return [f"{pair.start / timing.fps + i * step:.2f} s (+{i * step:.2f})" for i in range(len(pair.states))]


def _last(row: PictureRow) -> PictureRow:
    return PictureRow(row.label, row.frames[:, -1:], row.caption)


def _write_sheet(path: Path, contract: Contract, kept: list[tuple[list[PictureRow], list[str]]]) -> None:
    """The last frames of clips, evenly over the episode."""
    from PIL import Image

    rows = [
        PictureRow(row.label, np.concatenate([rows[index].frames for rows, _ in kept], axis=1), row.caption)
        for index, row in enumerate(kept[0][0])
    ]
    sheet = contact_sheet(rows, contract.camera_names, [note for _, notes in kept for note in notes], SHEET_COLUMNS)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)


def _tell(metrics: dict[str, Any], out: Path, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"episode {metrics['episode']}: {metrics['clips']} clips", title_justify="left")
    table.add_column("score")
    table.add_column("imagined", justify="right")
    table.add_column("repeat first frame", justify="right")
    for name, values in metrics["scores"]["all"].items():
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values.values()))
    cloud = metrics["point_cloud"]
    if cloud["made"]:
        far = ("–" if value is None else f"{value:.1f}" for value in cloud["chamfer_mm"].values())
        table.add_row("chamfer_mm", *far)
    console.print(table)
    if not cloud["made"]:
        console.print(cloud["reason"])
    for name, lack in cloud.get("left_out", {}).items():
        console.print(f"camera {name} is not in the point cloud: it lacks {lack}")
    if not metrics["trained_backbone"]:
        console.print(marked(UNTRAINED, ": the pictures show that the job runs, not what X-WAM imagines"))
    console.print(f"pictures: {out}", soft_wrap=True)
