"""The shard format: what `prepare` writes and everything after it reads.

A shard set is a folder with `contract.json`, `index.json` and `shard-NNNNNN.tar`. One WebDataset sample is one
*segment*: a run of frames of one episode at the source's frame rate and the contract's resolution:

    <key>.meta.json              SegmentMeta
    <key>.rgb.<camera>.mp4       H.264, 8 bit
    <key>.depth.<camera>.mkv     FFV1, 16-bit inverse-depth codes, 0 = invalid (see depth_code.py); absent without depth
    <key>.motion.npz             proprio [F, P] state, action [F, Q] command, absolute, SI units, and their masks

Clip starts are partitioned between the segments of an episode: a segment owns the starts `first_start ..
first_start + num_starts - 1` (episode frames) and holds every frame those clips touch, so neighbours overlap by a
clip less a frame and each start belongs to exactly one segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.contract import Timing

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Segment:
    """A decoded segment. F frames, V views (the contract's order), P state and Q command numbers."""

    key: str
    episode: int
    split: Split
    first_frame: int  # episode frame of row 0
    first_start: int  # the clip starts this segment owns, in episode frames
    num_starts: int
    instruction: str
    rgb: UInt8[ndarray, "v f h w 3"]
    depth: UInt16[ndarray, "v f h w"] | None  # inverse-depth codes, 0 = invalid
    proprio: Float[ndarray, "f p"]
    proprio_mask: Float[ndarray, "f p"]
    action: Float[ndarray, "f q"]  # absolute commands
    action_mask: Float[ndarray, "f q"]

    @property
    def num_frames(self) -> int:
        return len(self.proprio)


@dataclass(frozen=True)
class Clip:
    """What one training sample shows. T frames, Ta actions; past the recording's end everything is held and masked."""

    key: str  # "<segment key>-<start, 6 digits>"
    start: int  # episode frame of the first picture
    instruction: str
    rgb: UInt8[ndarray, "v t h w 3"]
    depth: UInt16[ndarray, "v t h w"] | None
    frame_valid: Float[ndarray, " t"]  # 0 where the picture is the held last one
    proprio: Float[ndarray, "t p"]  # absolute states at the pictures' times (Tp = T)
    proprio_mask: Float[ndarray, "t p"]
    action: Float[ndarray, "ta q"]  # absolute commands at start + i * action_skip
    action_mask: Float[ndarray, "ta q"]
    action_states: Float[ndarray, "ta p"]  # the states at the actions' times (delta_to_state needs them)


def cut_clip(segment: Segment, start: int, timing: Timing) -> Clip:
    """Cut the clip that starts at episode frame `start` out of a decoded segment.

    Raises:
        ValueError: the segment does not own that start (an error of ours: ask the index).
    """
    if not segment.first_start <= start < segment.first_start + segment.num_starts:
        raise ValueError(f"segment {segment.key} does not own clip start {start}")
    rows = start - segment.first_frame
    last = segment.num_frames - 1
    frames_wanted = rows + np.arange(timing.clip_frames) * timing.frame_skip
    actions_wanted = rows + np.arange(timing.action_steps) * timing.action_skip
    frames, actions = np.minimum(frames_wanted, last), np.minimum(actions_wanted, last)
    frame_valid = (frames_wanted <= last).astype(np.float64)
    action_valid = (actions_wanted <= last).astype(np.float64)
    return Clip(
        key=f"{segment.key}-{start:06d}",
        start=start,
        instruction=segment.instruction,
        rgb=segment.rgb[:, frames],
        depth=None if segment.depth is None else segment.depth[:, frames],
        frame_valid=frame_valid,
        proprio=segment.proprio[frames],
        proprio_mask=segment.proprio_mask[frames] * frame_valid[:, None],
        action=segment.action[actions],
        action_mask=segment.action_mask[actions] * action_valid[:, None],
        action_states=segment.proprio[actions],
    )
