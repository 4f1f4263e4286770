"""The clock of an episode whose topics have clocks of their own, and what of each topic does not fit it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.episode import EpisodeError
from xwam_ft.prepare.sources.resampling import nearest, rate

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

MAX_SKEW = 0.1  # seconds from a tick to the nearest sample: beyond it, something was not recorded
COVERS = 0.5  # share of the clock's camera a topic must cover


@dataclass(frozen=True)
class EpisodeClock:
    """The ticks of an episode: the times of its slowest camera's pictures, from the moment all topics are there."""

    camera: str
    origin: int  # time of tick 0, ns
    seconds: Float[ndarray, " f"]  # from the origin
    rate: float  # of the camera, pictures a second
    faults: dict[str, str] = field(default_factory=dict[str, str])  # topic -> why it cannot be used
    notes: tuple[str, ...] = ()

    def relative(self, times: Int[ndarray, " n"]) -> Float[ndarray, " n"]:
        """Times of messages -> seconds from the origin."""
        return (times - self.origin) * 1e-9

    @staticmethod
    def empty() -> EpisodeClock:
        return EpisodeClock("", 0, np.zeros(0), 0.0)


def clock_of(
    where: str, pictures: dict[str, np.ndarray], numbers: dict[str, np.ndarray], commands: set[str]
) -> EpisodeClock:
    """The clock of one episode from the times (ns) of its topics' messages.

    Args:
        commands: topics of `numbers` that hold until the next message, so that only their first one matters.

    Raises:
        EpisodeError: no camera with two pictures, or none at the times that all topics share.
    """
    cameras = {name: times for name, times in pictures.items() if len(times) > 1 and times[-1] > times[0]}
    if not cameras:
        raise EpisodeError(f"{where} has no topic with two pictures (sensor_msgs Image or CompressedImage)")
    longest = max(int(times[-1] - times[0]) for times in cameras.values())
    lasting = {name: times for name, times in cameras.items() if times[-1] - times[0] >= COVERS * longest}
    # Of cameras that are equally slow, one that shows colours.
    camera = min(lasting, key=lambda name: (round(rate(lasting[name] * 1e-9), 1), "depth" in name.lower(), name))
    ticks = cameras[camera]
    first, last = int(ticks[0]), int(ticks[-1])
    start, end, late, early = first, last, camera, camera
    half_step = round(0.5e9 / rate(ticks * 1e-9))
    faults: dict[str, str] = {}
    for name, times in {**pictures, **numbers}.items():
        # A picture half a step late is the nearest all the same; numbers are not continued beyond what was recorded.
        slack = half_step if name in pictures else 0
        begins, ends = int(times[0]) - slack, last if name in commands else int(times[-1]) + slack
        share = (min(ends, last) - max(begins, first)) / (last - first)
        if share < COVERS:
            faults[name] = f"{where}: topic {name} covers {max(share, 0.0):.0%} of camera {camera}"
            continue
        start, late = max((start, late), (begins, name))
        end, early = min((end, early), (ends, name))
    inside = ticks[(ticks >= start) & (ticks <= end)]
    if len(inside) < 2:
        raise EpisodeError(
            f"{where} has fewer than two pictures of {camera} between the first of {late} and the last of {early}"
        )
    notes: list[str] = []
    if cut := int(np.count_nonzero(ticks < start)):
        notes.append(
            f"the first {cut} pictures of {camera} are left out: {late} begins {(start - first) * 1e-9:.2f} s later"
        )
    if cut := int(np.count_nonzero(ticks > end)):
        notes.append(
            f"the last {cut} pictures of {camera} are left out: {early} ends {(last - end) * 1e-9:.2f} s earlier"
        )
    clock = EpisodeClock(camera, int(inside[0]), (inside - inside[0]) * 1e-9, rate(ticks * 1e-9))
    offsets: list[str] = []
    for name, times in {**pictures, **numbers}.items():
        if name == camera or name in commands or name in faults:
            continue
        off = nearest(clock.seconds, clock.relative(times))[1]
        offsets.append(f"{name} {off.max() * 1e3:.0f} ms")
        if off.max() > MAX_SKEW:
            at = int(np.argmax(off))
            faults[name] = (
                f"{where}: topic {name} has nothing within {off.max():.2f} s of frame {at}; {MAX_SKEW:g} s is the bound"
            )
    if offsets:
        notes.append(f"the clock is {camera}; the nearest sample is off by at most: {', '.join(offsets)}")
    return EpisodeClock(clock.camera, clock.origin, clock.seconds, clock.rate, faults, tuple(notes))
