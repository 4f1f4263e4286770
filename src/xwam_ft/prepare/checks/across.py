"""Episodes together: swapped cameras, cameras that show the same, other sizes, duplicates, clips cut short."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.findings import Finding, Names, episodes_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Camera, Image
    from xwam_ft.quantiles import Motion

APART = 6.0  # mean difference of two cameras' usual pictures (0..255) below which they cannot be told apart
SWAPPED = 0.5  # of a distance, by which another is the smaller one
NEARER = 0.8
COMPARED = 60  # episodes, spread over all, that each is compared with
ASPECT = 0.02  # by which width to height may change without a word
PADDED = 0.5  # of all clip starts, above which most clips are cut short
SAME = 1.0  # mean difference below which pictures are the same

Signatures = Mapping[int, Mapping[str, Sequence[float]]]  # episode -> camera -> its usual picture


def check_swapped(signatures: Signatures) -> dict[int, list[Finding]]:
    """Episodes in which two cameras show what the other one shows in others; needs three episodes."""
    found: dict[int, list[Finding]] = {}
    numbers = list(signatures)
    for one, other in combinations(sorted(next(iter(signatures.values()), {})), 2):
        both = np.array([[signatures[number][name] for name in (one, other)] for number in numbers])  # [n, 2, s]
        if np.median(np.abs(both[:, 0] - both[:, 1]).mean(axis=1)) < APART:
            continue
        for row in odd_ones(both, lambda pair: pair[::-1], least=APART):
            text = f"cameras {one!r} and {other!r} are swapped: each shows what the other shows in other episodes"
            finding = Finding("swapped-camera", "warning", text, f"{one}, {other}", one, 0)
            found.setdefault(numbers[row], []).append(finding)
    return found


def odd_ones(
    seen: Float[ndarray, "n *cells c"],
    change: Callable[[ndarray], ndarray],
    *,
    least: float,
    scene: float = np.inf,
    spread: float = 0.0,
) -> list[int]:
    """Rows that show what others show once `change` is made to them: of the two kinds the fewer, or the later ones.

    Two rows are of one kind, or of two, where a change makes it twice as bad, or half as bad: most of scenes that
    differ say nothing. So the kinds need not be of one scene, nor one of them usual.

    Args:
        least: of 255, by which two rows of different kinds differ as they are.
        scene: what they may differ by once one is changed.
        spread: share of the cells that the change must bring nearer: more than one thing that lies elsewhere.
    """
    if len(seen) < 3:
        return []
    changed = np.stack([change(row) for row in seen])
    axes = tuple(range(1, seen.ndim))
    some = np.unique(np.linspace(0, len(seen) - 1, min(len(seen), COMPARED)).round().astype(int))
    asis, near, votes = np.zeros((3, len(seen), len(some)))  # a vote of 1: of one kind, -1: of two
    for at, place in enumerate(some):
        cells, others = (np.abs(rows - seen[place]).mean(axis=-1) for rows in (seen, changed))
        asis[:, at], near[:, at] = (each.mean(axis=axes[:-1]) for each in (cells, others))
        better = (cells > others + 1).mean(axis=axes[:-1]) >= spread
        two = (near[:, at] < np.minimum(SWAPPED * asis[:, at], scene)) & (asis[:, at] >= least) & better
        votes[:, at] = np.where(asis[:, at] < np.minimum(SWAPPED * near[:, at], scene), 1, np.where(two, -1, 0))
    kind = np.zeros(len(some))
    for start in range(len(some)):
        if kind[start]:
            continue
        kind[start], group, queue = 1, [start], [start]
        while queue:
            at = queue.pop()
            for other in np.flatnonzero(votes[some, at] * (kind == 0)).tolist():
                kind[other] = kind[at] * votes[some[other], at]
                group.append(other)
                queue.append(other)
        kind[group] *= 1 if kind[group].sum() >= 0 else -1
        if (kind[group] > 0).all():
            kind[group] = 2  # of one kind among themselves, whichever that is
    known = np.abs(kind) == 1
    if not known.any():
        return []
    # Where there are two kinds, what is less clear is of the one that it is nearer to.
    usual, odd = (np.where(kind == which, asis, near)[:, known].min(axis=1) for which in (1, -1))
    told = odd < np.minimum(NEARER * usual, 2 * scene)
    told[some[known]] = kind[known] < 0
    return np.flatnonzero(told).tolist()


def check_same(signatures: Signatures) -> dict[int, list[Finding]]:
    """Two cameras of one episode that show the same pictures."""
    found: dict[int, list[Finding]] = {}
    for number, views in signatures.items():
        for one, other in combinations(sorted(views), 2):
            if _distance(np.array(views[one]), np.array(views[other])) < SAME:
                text = f"cameras {one!r} and {other!r} show the same pictures"
                found.setdefault(number, []).append(
                    Finding("same-pictures", "warning", text, f"{one}, {other}", one, 0)
                )
    return found


def check_sizes(sizes: Mapping[int, Mapping[str, Sequence[int]]]) -> dict[int, list[Finding]]:
    """Cameras recorded at another size than in the first episode."""
    found: dict[int, list[Finding]] = {}
    first = next(iter(sizes.values()), {})
    for number, of_episode in sizes.items():
        for camera, size in of_episode.items():
            usual = first[camera]
            if list(size) != list(usual):
                text = f"camera {camera!r} is {size[0]}x{size[1]}, and {usual[0]}x{usual[1]} in the first episode"
                found.setdefault(number, []).append(Finding("other-size", "warning", text, camera, camera, 0))
    return found


def check_aspect(cameras: Sequence[Camera], image: Image) -> list[Finding]:
    """Cameras whose pictures are stretched to the image's aspect."""
    found: list[Finding] = []
    for camera in cameras:
        stretch = (image.width / image.height) / (camera.source_width / camera.source_height)
        if abs(np.log(stretch)) > ASPECT:
            more, axis = (stretch - 1, "wider") if stretch > 1 else (1 / stretch - 1, "taller")
            text = (
                f"camera {camera.name!r}: {camera.source_width}x{camera.source_height} becomes "
                f"{image.width}x{image.height}, and what it shows {more:.0%} {axis} than it is"
            )
            found.append(Finding("aspect-changed", "note", text, camera.name))
    return found


def check_padding(starts: Mapping[int, tuple[int, int]]) -> dict[int, list[Finding]]:
    """Clips that mostly reach past the end of their episode, over all episodes; told of those that are too short.

    Args:
        starts: padded clip starts, and all of them, by episode.
    """
    padded, total = (sum(pair[i] for pair in starts.values()) for i in (0, 1))
    if padded <= PADDED * total:
        return {}
    text = f"{padded} of {total} clip starts reach past the end of their episode, where nothing is learned"
    finding = Finding("mostly-padded", "warning", text)
    return {number: [finding] for number, (of_it, count) in starts.items() if of_it > PADDED * count}


def content_hash(motion: Motion) -> str:
    """The numbers of an episode; "" where nothing moves, so that it is nobody's duplicate."""
    if len(motion.state) < 2 or np.ptp(motion.state, axis=0).max() < 1e-6:
        return ""
    return hashlib.sha256(motion.state.tobytes() + motion.command.tobytes()).hexdigest()


def check_duplicates(
    hashes: Mapping[int, str],
    signatures: Signatures,
    pictures: Mapping[int, str],
    held_out: set[int],
    names: Names | None = None,
) -> dict[int, list[Finding]]:
    """Episodes with the numbers of an earlier one, and episodes with the pictures of one and the numbers of another.

    Args:
        hashes: `content_hash` of each episode.
        pictures: a hash of sampled pictures of each episode.
        names: what people know the episodes by; default their numbers in the set.
    """
    names = {number: ("", number) for number in hashes} if names is None else names
    found: dict[int, list[Finding]] = {}
    numbers_of: dict[str, int] = {}
    pictures_of: dict[str, int] = {}
    for number, digest in hashes.items():
        twin = numbers_of.setdefault(digest, number) if digest else number
        film = pictures_of.setdefault(pictures[number], number)
        if twin != number:
            views = signatures[number]
            alike = all(_distance(np.array(views[name]), np.array(signatures[twin][name])) < SAME for name in views)
            apart = (twin in held_out) != (number in held_out)
            shown = "the same" if alike else "other"
            text = f"holds exactly the numbers of {episodes_text([twin], names)}, and {shown} pictures"
            text += "; one of them is held out and the other trained on" if apart else ""
            found.setdefault(number, []).append(Finding("duplicate-episode", "warning", text, frame=0))
        elif film != number:
            text = f"holds exactly the pictures of {episodes_text([film], names)}, and other numbers"
            found.setdefault(number, []).append(Finding("duplicate-pictures", "warning", text, frame=0))
    return found


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean()) if one.shape == other.shape else np.inf
