"""A shard set as the page sees it: episodes, numbers in units, videos, single pictures, depth, points, findings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xwam_ft.conventions import command_slices, state_slices
from xwam_ft.errors import UserError
from xwam_ft.evaluate.scene import camera_pose, left_out, stored_cloud, stored_intrinsics, why_no_cloud
from xwam_ft.media import probe, read_gray16, read_rgb
from xwam_ft.prepare.assemble import FINDINGS, REJECTED
from xwam_ft.prepare.findings import CHECKS
from xwam_ft.shard_index import SegmentEntry, depth_member, rgb_member
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.contract import Camera, Contract, Slot

BLOCK = 32  # pictures that are decoded at once, for the next ones are asked for next
BLOCKS = 24  # kept in memory
POINTS = 40_000  # a frame, at most about so many
DIGITS = 7
Rows = list[dict[str, Any]]
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class EpisodeNumbers:
    """A whole episode's numbers; F frames, P state and Q command numbers."""

    states: Float[ndarray, "f p"]
    state_mask: Float[ndarray, "f p"]
    commands: Float[ndarray, "f q"]
    command_mask: Float[ndarray, "f q"]


class WatchedSet:
    """A shard set that is being looked at; what it decodes is kept for a while."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self.token = shards.fingerprint[:16]
        """In every address, so that a browser never shows what it kept of another set."""
        self._opened = {shard.name: self._stamp(shard.name) for shard in shards.index.shards}
        self._rgb: Callable[[str, str, int], np.ndarray] = lru_cache(maxsize=BLOCKS)(self._rgb_block)
        self._codes: Callable[[str, str, int], np.ndarray] = lru_cache(maxsize=BLOCKS)(self._depth_block)

    @property
    def contract(self) -> Contract:
        return self.shards.contract

    def summary(self) -> dict[str, Any]:
        """What the page shows before an episode is chosen."""
        contract = self.contract
        lacking = left_out(contract)
        kind = contract.depth.kind
        depths = {camera.name: contract.depth_of(camera) for camera in contract.cameras}
        findings, why_no_findings = self._findings()
        return {
            "token": self.token,
            "folder": str(self.shards.folder),
            "name": self.shards.folder.absolute().name,
            "embodiment": contract.embodiment,
            "fps": contract.timing.fps,
            "clip": {"span": contract.timing.span, "skip": contract.timing.frame_skip},
            "size": [contract.image.height, contract.image.width],
            "cameras": [
                {"name": camera.name, "kind": camera.kind, "lacks": lacking.get(camera.name)}
                for camera in contract.cameras
            ],
            "depth": {
                "kind": kind,
                "source": contract.depth.source,
                "ranges": {name: [code.near, code.far] for name, code in depths.items()} if kind == "metric" else {},
            },
            "why_no_points": why_no_cloud(contract, depth_branch=True),
            "numbers": numbers(contract),
            "poses": poses(contract),
            "episodes": [self._row(index) for index in range(len(self.shards.index.episodes))],
            "findings": findings,
            "why_no_findings": why_no_findings,
            "rejected": _lines(self.shards.folder / REJECTED),
        }

    def _row(self, index: int) -> dict[str, Any]:
        episode = self.shards.index.episodes[index]
        return {
            "number": episode.index,
            "source": episode.source,
            "instruction": episode.instruction,
            "wordings": list(episode.instructions),
            "frames": episode.frames,
            "seconds": episode.frames / self.contract.timing.fps,
            "split": episode.split,
            "success": episode.success,
        }

    def _findings(self) -> tuple[Rows, str | None]:
        """Findings of episodes that are in the set, as `prepare` recorded them, and why there are none to show."""
        path = self.shards.folder / FINDINGS
        if not path.is_file():
            return [], f"{path.name} is not in the folder, so what prepare found is not known"
        rows = _lines(path)
        for row in rows:
            row["fix"] = row.get("fix") or CHECKS.get(row.get("check", ""), "")
        known = {episode.index for episode in self.shards.index.episodes}
        return [row for row in rows if row.get("episode") in known], None

    def episode(self, number: int) -> dict[str, Any]:
        """Numbers, and where to find the pictures, of one episode.

        Raises:
            UserError: there is no such episode, or its shard cannot be read.
        """
        entry = self.shards.episode(number)
        segments, motion = self._segments(number), self.motion(number)
        first = self.shards.read_motion(segments[0])
        films = {camera: self._why_no_film(segments[0], camera) for camera in self.contract.camera_names}
        return {
            "number": number,
            "frames": len(motion.states),
            "declared": entry.frames,
            "instruction": first.instruction,
            "segments": [{"key": e.key, "first": e.first_frame, "frames": e.num_frames} for e in segments],
            "why_no_film": {name: why for name, why in films.items() if why is not None},
            "depth": all(depth_member(camera) in e.members for e in segments for camera in self.contract.camera_names),
            "states": _columns(motion.states, motion.state_mask),
            "commands": _columns(motion.commands, motion.command_mask),
            "cameras": self._frusta(motion.states),
            "starts": [ref.start for ref in self.shards.clips(None, 1) if ref.entry.episode == number],
        }

    def motion(self, number: int) -> EpisodeNumbers:
        """An episode's numbers, each frame once where segments overlap."""
        parts: list[tuple[np.ndarray, ...]] = []
        done = 0
        for entry in self._segments(number):
            segment, new = self.shards.read_motion(entry), max(0, done - entry.first_frame)
            tables = (segment.proprio, segment.proprio_mask, segment.action, segment.action_mask)
            parts.append(tuple(table[new:] for table in tables))
            done = max(done, entry.first_frame + entry.num_frames)
        return EpisodeNumbers(*(np.concatenate(tables) for tables in zip(*parts, strict=True)))

    def film(self, key: str, camera: str) -> tuple[Path, int, int] | None:
        """Where a segment's video stands: file, offset and size in bytes."""
        entry = self._by_key.get(key)
        member = None if entry is None else entry.members.get(rgb_member(camera))
        return None if entry is None or member is None else (self._as_opened(entry), *member)

    def picture(self, number: int, frame: int, camera: str) -> bytes:
        """One picture as PNG."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.rgb(number, frame, camera)).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    def rgb(self, number: int, frame: int, camera: str) -> UInt8[ndarray, "h w 3"]:
        entry, row = self._place(number, frame)
        return self._rgb(entry.key, camera, row // BLOCK)[row % BLOCK]

    def codes(self, number: int, frame: int, camera: str) -> UInt16[ndarray, "h w"]:
        entry, row = self._place(number, frame)
        return self._codes(entry.key, camera, row // BLOCK)[row % BLOCK]

    def points(self, number: int, frame: int) -> bytes:
        """What all calibrated cameras see at a frame, as points: for each x, y, z (float32, metres) and R, G, B, 255.

        Raises:
            UserError: there are no points of this set; says why.
        """
        if (why := why_no_cloud(self.contract, depth_branch=True)) is not None:
            raise UserError(why, self.shards.folder, "prepare with metric depth and calibrated cameras")
        entry, row = self._place(number, frame)
        state = self.shards.read_motion(entry).proprio[row]
        lacking = left_out(self.contract)
        cameras = [camera for camera in self.contract.cameras if camera.name not in lacking]
        pixels = len(cameras) * self.contract.image.height * self.contract.image.width
        stride = max(1, int(np.ceil(np.sqrt(pixels / POINTS))))
        table: list[np.ndarray] = []
        for camera in cameras:
            rgb, codes = self.rgb(number, frame, camera.name), self.codes(number, frame, camera.name)
            cloud = stored_cloud(self.contract, camera, rgb, codes, state, stride)
            points = np.empty(len(cloud), dtype=[("xyz", "<f4", 3), ("rgba", "u1", 4)])
            points["xyz"], points["rgba"] = cloud.points, np.pad(cloud.colours, ((0, 0), (0, 1)), constant_values=255)
            table.append(points)
        return np.concatenate(table).tobytes()

    @cached_property
    def _by_key(self) -> dict[str, SegmentEntry]:
        return {entry.key: entry for entry in self.shards.index.segments}

    def _segments(self, number: int) -> list[SegmentEntry]:
        entries = [self._by_key[key] for key in self.shards.episode(number).segments]
        for entry in entries:
            self._as_opened(entry)
        return entries

    def _as_opened(self, entry: SegmentEntry) -> Path:
        """A segment's shard. At the offsets of a set that was prepared anew stands something else.

        Raises:
            UserError: it is not there any more, or was written again since the set was opened.
        """
        path, now = self.shards.folder / entry.shard, self._stamp(entry.shard)
        if now is None:
            raise UserError("the shard is not there any more", path, "copy the whole folder again, or prepare again")
        if now != self._opened[entry.shard]:
            raise UserError("the shard was written again since", path, "end `xwam-ft view` and start it again")
        return path

    def _stamp(self, shard: str) -> tuple[int, int] | None:
        """Size and time of a shard; None: it is not there."""
        try:
            found = (self.shards.folder / shard).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def _place(self, number: int, frame: int) -> tuple[SegmentEntry, int]:
        """The first segment that holds a frame, as the page chooses it too, and the frame's row in it."""
        for entry in self._segments(number):
            if entry.first_frame <= frame < entry.first_frame + entry.num_frames:
                return entry, frame - entry.first_frame
        raise UserError(f"episode {number} has no frame {frame}", self.shards.folder, "ask for one that it has")

    def _member(self, key: str, name: str) -> bytes:
        entry = self._by_key[key]
        if name not in entry.members:
            raise UserError(f"segment {key} holds no {name}", self.shards.folder / entry.shard, "prepare again")
        offset, size = entry.members[name]
        try:
            with (self.shards.folder / entry.shard).open("rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        except OSError as error:
            raise self.shards.files.unreadable(entry, str(error)) from None

    def _rgb_block(self, key: str, camera: str, number: int) -> np.ndarray:
        return self._decoded(key, rgb_member(camera), lambda data: read_rgb(data, self._rows(key, number)))

    def _depth_block(self, key: str, camera: str, number: int) -> np.ndarray:
        return self._decoded(key, depth_member(camera), lambda data: read_gray16(data, self._rows(key, number)))

    def _decoded(self, key: str, name: str, decode: Callable[[bytes], Decoded]) -> Decoded:
        """What a video of a segment holds; a damaged one is told with its shard."""
        data = self._member(key, name)
        try:
            return decode(data)
        except UserError as error:
            raise self.shards.files.unreadable(self._by_key[key], f"{name}: {error.what}") from None

    def _rows(self, key: str, number: int) -> range:
        return range(number * BLOCK, min((number + 1) * BLOCK, self._by_key[key].num_frames))

    def _why_no_film(self, entry: SegmentEntry, camera: str) -> str | None:
        """Why browsers do not play a segment's video; None: they do."""
        info = self._decoded(entry.key, rgb_member(camera), probe)
        plays = info.codec == "h264" and info.pixel_format in ("yuv420p", "yuvj420p")
        return None if plays else f"browsers do not play {info.codec} {info.pixel_format}: single pictures instead"

    def _frusta(self, states: np.ndarray) -> dict[str, Any]:
        """Calibrated cameras: what their picture's corners look at, one metre ahead, and where they are at each frame
        (a static one: one pose), as rows of 3 x 4."""
        found: dict[str, Any] = {}
        size = (self.contract.image.height, self.contract.image.width)
        for camera in self.contract.cameras:
            if camera.name not in left_out(self.contract):
                moments = states[:1] if camera.kind == "static" else states
                found[camera.name] = {"corners": _corners(camera, size), "poses": self._poses(camera, moments)}
        return found

    def _poses(self, camera: Camera, states: np.ndarray) -> list[list[float]]:
        return [_rounded(camera_pose(self.contract, camera, state)[:3].ravel()) for state in states]


def numbers(contract: Contract) -> Rows:
    """Every number that is plotted, in order: slot, name, unit, and its column among states and among commands.

    A command stands beside its state where both are one quantity. Where it is another (an effort, a controller's
    input), it is a row of its own, with its own unit: one axis never holds two units.
    """
    rows: Rows = []
    told, known = command_slices(contract), state_slices(contract)
    for slot in contract.slots:
        if not slot.present:
            continue
        alike = slot.commanded and slot.command_units is None and not slot.for_controller
        for i, (name, unit) in enumerate(zip(slot.elements, slot.units, strict=True)):
            command = told[slot.name].start + i if alike else None
            rows.append(_number(slot, name, unit, known[slot.name].start + i, command))
        if slot.commanded and not alike:
            names = slot.action_elements if slot.for_controller else slot.elements
            units = slot.command_units or slot.units
            for i, (name, unit) in enumerate(zip(names, units, strict=True)):
                rows.append(_number(slot, f"{name}, commanded", unit, None, told[slot.name].start + i))
    return rows


def _number(slot: Slot, name: str, unit: str, state: int | None, command: int | None) -> dict[str, Any]:
    note = "" if command is None else {"next_state": "commands are the next state"}.get(slot.command_from, "")
    return {
        "slot": slot.name,
        "name": name,
        "unit": "" if unit == "1" else unit,
        "state": state,
        "command": command,
        "note": note,
    }


def poses(contract: Contract) -> Rows:
    """Pose slots: where x, y, z, w, x, y, z stand among states, and among commands where those are poses too."""
    told, known = command_slices(contract), state_slices(contract)
    return [
        {
            "slot": slot.name,
            "frame": slot.frame,
            "state": known[slot.name].start,
            "command": told[slot.name].start if slot.commanded and not slot.for_controller else None,
        }
        for slot in contract.slots
        if slot.kind == "pose" and slot.present
    ]


def _corners(camera: Camera, size: tuple[int, int]) -> list[list[float]]:
    height, width = size
    fx, fy, cx, cy = stored_intrinsics(camera, size)
    edges = [(-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)]
    return [[(u - cx) / fx, (v - cy) / fy, 1.0] for u, v in edges]


def _columns(table: np.ndarray, mask: np.ndarray) -> list[list[float | None]]:
    """A list a column, with nothing where a number is masked or not finite."""
    known = (mask > 0) & np.isfinite(table)
    columns = [_rounded(column) for column in np.where(known, table, 0.0).T]
    return [
        [value if there else None for value, there in zip(column, rows, strict=True)]
        for column, rows in zip(columns, known.T.tolist(), strict=True)
    ]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _lines(path: Path) -> Rows:
    """A file of JSON lines; nothing where there is none."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(
            f"is no file of JSON lines ({error})", path, "restore it, or run `xwam-ft prepare` again"
        ) from None
