"""How far apart a clip's pictures and actions are best, of recordings of a rate and lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xwam_ft.contract import Timing

PRETRAINED_RATE = 3.75  # pictures a second X-WAM saw in pretraining
PRETRAINED_CLIP = 9
ACTIONS_PER_FRAME = 4
CLIPS = 2  # an episode should be so many times as long as a clip


@dataclass(frozen=True)
class TimingProposal:
    frame_skip: int
    action_skip: int
    clip_frames: int
    reason: str


def propose_timing(fps: float | None, lengths: np.ndarray) -> TimingProposal:
    """Pictures near 3.75 a second, 4 actions a picture where that divides, and clips of which most episodes give many:
    three of four are at least twice as long as one."""
    if fps is None:
        reason = (
            f"frame_skip is fps / {PRETRAINED_RATE}, rounded to a multiple of {ACTIONS_PER_FRAME}; this is for 15 fps"
        )
        return TimingProposal(ACTIONS_PER_FRAME, 1, PRETRAINED_CLIP, reason)
    frame_skip = max(1, round(fps / PRETRAINED_RATE))
    if frame_skip > ACTIONS_PER_FRAME:
        frame_skip = max(ACTIONS_PER_FRAME, ACTIONS_PER_FRAME * round(fps / PRETRAINED_RATE / ACTIONS_PER_FRAME))
    action_skip = frame_skip // ACTIONS_PER_FRAME if frame_skip % ACTIONS_PER_FRAME == 0 else 1
    reason = f"{fps / frame_skip:.3g} pictures a second, X-WAM was pretrained at {PRETRAINED_RATE}"
    known = lengths[lengths > 0]
    clip, usual = PRETRAINED_CLIP, float(np.quantile(known, 0.25)) if len(known) else np.inf
    span = Timing(fps=fps, frame_skip=frame_skip, action_skip=action_skip, clip_frames=clip).span
    if CLIPS * span > usual:
        clip = 5
        while frame_skip > 1 and CLIPS * ((clip - 1) * frame_skip + 1) > usual:
            frame_skip -= ACTIONS_PER_FRAME if frame_skip > ACTIONS_PER_FRAME else 1
        action_skip = max(1, frame_skip // ACTIONS_PER_FRAME)
        reason = (
            f"{fps / frame_skip:.3g} pictures a second; a clip of {PRETRAINED_CLIP} at X-WAM's {PRETRAINED_RATE} spans "
            f"{span} frames, and a quarter of the episodes has no more than {usual:.0f}"
        )
    return TimingProposal(frame_skip, action_skip, clip, reason)
