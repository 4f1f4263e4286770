"""Static or wrist camera, told from how pictures change while the arm moves.

Edges of the scene stay where they are in a static camera, but for those the arm covers; in a wrist camera all move.
Measured: of the pixels with an edge, the share that changes between two pictures, over pairs between which the robot
moves far; the median over pairs. Which arm carries a wrist camera: the one whose motion goes along with that share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from xwam_ft.prepare.action_semantics import Sure

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

SIDE = 96  # pictures are looked at about this wide
EDGE = 6.0  # of 255 a pixel: what counts as an edge, after smoothing
CHANGED = 10.0  # of 255
WRIST, STATIC = 0.5, 0.3  # of the edges, around which it is unsure
CLEAR = 0.15
LEAST_PAIRS = 6
WRISTS = ("wrist", "hand", "eih", "eef", "ee", "tool", "tcp", "palm", "finger", "flange")
STATICS = (
    *("front", "top", "high", "low", "side", "back", "rear", "corner", "overhead", "bird", "birdseye", "scene"),
    *(
        "external",
        "exterior",
        "exo",
        "third",
        "agent",
        "agentview",
        "static",
        "base",
        "table",
        "desk",
        "world",
        "global",
    ),
)
CARRIED = ("head", "ego", "egocentric", "chest", "torso")  # static where the body stands still


@dataclass(frozen=True)
class KindGuess:
    kind: Literal["static", "wrist"]
    sure: Sure
    changed: float  # share of edges that change while the robot moves
    pairs: int
    named: bool = False  # the camera's name says it

    @property
    def why(self) -> str:
        seen = f"{self.changed:.0%} of the edges change while the robot moves, over {self.pairs} pairs of pictures"
        shown = seen if self.pairs else "no pictures could be compared"
        return f"by its name; {shown}" if self.named else shown


def edge_change(first: UInt8[ndarray, "h w 3"], second: UInt8[ndarray, "h w 3"]) -> float:
    """Of the pixels of `first` with an edge, the share that differs in `second`; NaN where there is hardly an edge."""
    one, other = _smooth(first), _smooth(second)
    rows, columns = np.gradient(one)
    edges = np.hypot(rows, columns) > EDGE
    if edges.sum() < 20:
        return float("nan")
    return float((np.abs(one - other)[edges] > CHANGED).mean())


def named_kind(feature: str) -> Literal["static", "wrist", "carried"] | None:
    """What a camera's name says: a hand's word goes before a place's (`left_wrist_top`)."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", feature).lower())
    if any(word in WRISTS or word.startswith(("wrist", "gripper")) for word in words):
        return "wrist"
    return "static" if set(words) & set(STATICS) else "carried" if set(words) & set(CARRIED) else None


def guess_kind(changes: Sequence[float], name: str = "") -> KindGuess:
    """The kind of a camera from its name, and from the edge changes of pairs of pictures between which the robot moves.

    A name that says it decides; where the pictures say the other, that is not sure. A camera on a head or a chest is
    what the pictures say, static where they do not say it.
    """
    seen = _seen_kind(changes)
    said = named_kind(name)
    if said is None or (said == "carried" and seen.sure != "unsure"):
        return seen
    kind = "static" if said == "carried" else said
    agree = kind == seen.kind and seen.sure != "unsure"
    return replace(seen, kind=kind, sure="sure" if agree else "likely", named=True)


def _seen_kind(changes: Sequence[float]) -> KindGuess:
    known = np.array([value for value in changes if np.isfinite(value)])
    if len(known) < 2:
        return KindGuess("static", "unsure", 0.0, 0)
    share = float(np.median(known))
    middle = (WRIST + STATIC) / 2
    distance = abs(share - middle)
    sure: Sure = "unsure" if distance < (WRIST - STATIC) / 2 else "likely" if distance < CLEAR + 0.05 else "sure"
    sure = "likely" if sure == "sure" and len(known) < LEAST_PAIRS else sure
    return KindGuess("wrist" if share > middle else "static", sure, share, len(known))


def far_pairs(state: Float[ndarray, "f p"], count: int, span: int) -> list[tuple[int, int]]:
    """Frames at most `span` apart between which the robot moves most: at most `count`, none overlapping."""
    if len(state) < 3:
        return []
    scale = np.maximum(np.ptp(state, axis=0), 1e-6)
    alive = np.ptp(state, axis=0) > 1e-3
    span = min(span, len(state) - 1)
    moved = (np.abs(state[span:, alive] - state[:-span, alive]) / scale[alive]).sum(axis=1)
    pairs: list[tuple[int, int]] = []
    for first in np.argsort(-moved, kind="stable"):
        if moved[first] <= 0 or len(pairs) >= count:
            break
        if all(abs(int(first) - other) >= span for other, _ in pairs):
            pairs.append((int(first), int(first) + span))
    return pairs


def guess_mount(changes: Sequence[float], moved: Mapping[str, Sequence[float]]) -> str | None:
    """The slot whose motion over the pairs goes along with the changes best; None where none clearly does."""
    known = np.isfinite(np.array(changes))
    scores: dict[str, float] = {}
    for name, values in moved.items():
        one, other = np.array(changes)[known], np.array(values)[known]
        if len(one) >= LEAST_PAIRS and one.std() > 1e-6 and other.std() > 1e-9:
            scores[name] = float(np.corrcoef(one, other)[0, 1])
    best = sorted(scores, key=lambda name: -scores[name])
    if not best or scores[best[0]] < 0.3 or (len(best) > 1 and scores[best[0]] - scores[best[1]] < 0.2):
        return None
    return best[0]


def _smooth(picture: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    step = max(1, round(picture.shape[1] / SIDE))
    grey = picture[::step, ::step].astype(np.float32).mean(axis=2)
    return gaussian_filter(grey, 1.0)
