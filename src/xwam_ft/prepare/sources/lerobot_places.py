"""Where each episode's pictures begin in an mp4 that several episodes share (LeRobot v3.0).

Two things say it: the lengths of the episodes before it, summed (integers), and `from_timestamp`. Where both agree and
the file holds as many pictures as its episodes have rows, nothing else is asked. Where it holds more or fewer:
    the stated time wins over the sum, where all stated times fit into the file
    the pictures win over both, where one of the places in question clearly shows another scene than the picture before
A stated time that is off by a float's drift, in a file of the right number of pictures, does not count. An episode
whose own pictures do not suffice is refused, and so is one of which neither says where it begins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xwam_ft import media
from xwam_ft.errors import UserError

DRIFT = 1  # frames that from_timestamp may be off by where the number of pictures proves the sum
REACH = 16  # frames within which a change of scene is looked for
AROUND = 3  # more pictures on both sides, to know how much two neighbours differ within a scene
CLEAR = 3.0  # times the next largest change: what is another scene
SEEN = 2.0  # times the usual change: what may be another scene
LEAST = 2.0  # of 255: the least that such a change measures
WIDTH = 64  # pictures are compared about this wide


@dataclass(frozen=True)
class Place:
    """The episode's first frame in the file. `problem` refuses the episode, `note` is worth knowing."""

    first: int
    problem: str = ""
    note: str = ""


def places(file: Path, lengths: list[int], stated: list[float | None], counted: int, fps: float) -> list[Place]:
    """The places of a file's episodes.

    Args:
        lengths: rows of each, in the order in which they follow each other in the file.
        stated: from_timestamp; None where it is not recorded.
        counted: pictures of the file.
    """
    sums = [int(first) for first in np.concatenate([[0], np.cumsum(lengths)[:-1]])]
    times = [first if time is None else round(time * fps) for time, first in zip(stated, sums, strict=True)]
    extra = counted - sum(lengths)
    apart = max(abs(time - first) for time, first in zip(times, sums, strict=True))
    if apart == 0 and extra == 0:
        return [Place(first) for first in sums]
    low, high = min(extra, 0), max(extra, 0)
    fits = all(low <= time - first <= high for time, first in zip(times, sums, strict=True))
    chosen = times if extra and fits else sums
    found = _by_pictures(file, sums, times, chosen, extra)
    if not (extra and fits):
        found = [
            replace(
                place,
                problem=f"{file}: from_timestamp {stated[i]:.6g} puts the episode at frame {times[i]}, "
                f"the lengths of the episodes before it at frame {sums[i]}",
            )
            if abs(times[i] - sums[i]) > DRIFT
            else place
            for i, place in enumerate(found)
        ]
    more = f"{file} holds {counted} frames, its episodes add up to {sum(lengths)}" if extra > 0 else ""
    found = [replace(place, note=place.note or more) for place in found]
    ends = [*(place.first for place in found[1:]), counted]
    return [
        _complete(file, place, end, length, counted) for place, end, length in zip(found, ends, lengths, strict=True)
    ]


def _by_pictures(file: Path, sums: list[int], times: list[int], chosen: list[int], extra: int) -> list[Place]:
    """The chosen places, mended where the pictures show another one."""
    found = [Place(chosen[0], note=_instead(file, chosen[0], sums[0]))]
    shift, proven = found[0].first - sums[0], False  # how far the pictures have run ahead of the rows
    for first, time, start in zip(sums[1:], times[1:], chosen[1:], strict=True):
        begin, end = sorted((first, time))
        if time == first and extra:
            begin, end = (first, first + min(extra, REACH)) if extra > 0 else (first + max(extra, -REACH), first)
        cut = _cut(file, begin, end, start) if end - begin <= REACH else _cut(file, time, time, start)
        if cut is not None and not (shift <= cut - first <= extra or extra <= cut - first <= shift):
            cut = None  # pictures that lay before an earlier episode cannot be gone again
        place = Place(start, note=_instead(file, start, first))
        if cut is not None and cut != start:
            note = f"{file}: the scene changes at frame {cut}, where the episode begins; meta says frame {start}"
            place = Place(cut, note=note)
        elif cut is None and proven and start - first != shift:
            if extra - shift == 0:  # nothing is left that could lie in between
                place = Place(first + shift, note=_instead(file, first + shift, first))
            else:
                text = (
                    f"{file}: meta places the episode before at a wrong frame, and where this one begins does not show"
                )
                place = Place(start, problem=text)
        proven = proven or place.first != start
        shift = place.first - first
        found.append(place)
    return found


def _instead(file: Path, start: int, first: int) -> str:
    if start == first:
        return ""
    more = "more pictures than rows" if start > first else "fewer pictures than rows"
    return (
        f"{file}: the episode begins at frame {start}, as from_timestamp says; the rows before it are {first}: "
        f"an episode before it has {more}"
    )


def _complete(file: Path, place: Place, end: int, length: int, counted: int) -> Place:
    last = place.first + length - 1
    if place.problem or end > last:
        return place
    text = f"{file} holds {counted} frames, the episode needs frames {place.first} to {last}"
    return replace(place, problem=text + ("" if end >= counted else f", and at frame {end} the next one begins"))


def _cut(file: Path, begin: int, end: int, meant: int) -> int | None:
    """The frame between `begin` and `end`, a frame more on both sides, at which the scene changes; None: not clear.

    Where it changes at frame `meant` too, that one counts: a lamp is switched on in the middle of an episode as well.
    """
    low = max(begin - AROUND, 1)
    try:
        pictures = media.read_rgb(file, range(low - 1, min(end + AROUND, media.count_frames(file) - 1) + 1))
    except UserError:  # told when the episode is read
        return None
    step = max(1, pictures.shape[2] // WIDTH)
    small = pictures[:, ::step, ::step].astype(np.float32)
    changes = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))  # [i]: at frame low + i
    if len(changes) < 2:
        return None
    at = int(np.argmax(changes))
    rest = float(np.delete(changes, at).max())
    if changes[at] < max(CLEAR * rest, LEAST) or not begin - 1 <= low + at <= end + 1:
        return None
    others = np.delete(changes, [at, meant - low] if 0 <= meant - low < len(changes) else at)
    if 0 <= meant - low < len(changes) and len(others) and changes[meant - low] > SEEN * float(np.median(others)):
        return meant
    return low + at
