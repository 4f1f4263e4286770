"""Datasets of one robot against each other: units, the order of columns, colours and turns of pictures; the last of
episodes, too.

Each may be sound by itself, and what differs between them is learned as if the robot did both. One embodiment file
says what all of them mean, so that one of them contradicts it; which one, their numbers do not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from xwam_ft.errors import listed
from xwam_ft.prepare.checks.across import APART, SWAPPED, odd_ones
from xwam_ft.prepare.checks.pictures import SIGNATURE
from xwam_ft.prepare.checks.units import levels_and_spans, unit_factor
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Slot
    from xwam_ft.prepare.checks.across import Signatures

FAR = {"rad": 0.3, "m": 0.1}  # between what a column usually holds in two datasets, below which it may be another task
FAR_ELSE = 0.2  # of what all columns of the slot cover
GREYISH = 3.0  # of 255, from which red and blue exchanged are seen in a scene of little colour
SCENE = 10.0  # of 255, within which two datasets may be of one scene; of another nothing can be told
COLOURED, TURNED = 0.35, 0.5  # of the cells, that another reading brings nearer: not a red thing where a blue one was
FITS = 0.3  # of that distance: how near a column must be under the other name
SWAPPED_CHANNELS = "with red and blue exchanged"
Thing = TypeVar("Thing")
READINGS: dict[str, tuple[str, Callable[[ndarray], ndarray]]] = {
    SWAPPED_CHANNELS: ("is one of them BGR?", lambda picture: picture[..., ::-1]),
    "turned by 180 degrees": ("is the camera of one upside down?", lambda picture: picture[::-1, ::-1]),
    "with its rows from the bottom up": (
        "is one of them as a renderer gives it, upside down?",
        lambda picture: picture[::-1],
    ),
    "mirrored": ("are the pictures of one mirrored?", lambda picture: picture[:, ::-1]),
}
BGR = "write `channels: bgr` for the camera of that one in an embodiment file of its own, and prepare it again"
RED_BLUE = (
    "exchange the two in the wrong videos (ffmpeg -vf colorchannelmixer=rr=0:rb=1:br=1:bb=0), and prepare it again"
)
UNITS = "state the units of the two in an embodiment file each, and prepare them again; in SI they go together"


HALVES = "the earlier half", "the later half of the episodes"
SAMPLED = 50  # episodes of a dataset, spread over all, by which it is compared


def spread_evenly(things: Sequence[Thing], most: int) -> list[Thing]:
    """At most so many of them, first and last among them."""
    places = np.linspace(0, len(things) - 1, min(len(things), most)).round().astype(int)
    return [things[place] for place in np.unique(places)]


@dataclass(frozen=True)
class SampledDataset:
    """What is compared of a dataset.

    Args:
        name: for people.
        states: of some of its episodes, under the contract's slots.
        pictures: by camera, `signature` of each of some episodes.
    """

    name: str
    states: Sequence[Float[ndarray, "f p"]]
    pictures: Mapping[str, Sequence[Sequence[float]]]

    def usual(self, camera: str) -> Float[ndarray, "6 8 3"]:
        return np.median(np.array(self.pictures[camera]), axis=0).reshape(*SIGNATURE, 3)


def check_datasets(slots: Sequence[Slot], datasets: Sequence[SampledDataset]) -> list[tuple[int, Finding]]:
    """Findings about whole datasets, each with the place of the later of the two it is about."""
    found: dict[tuple[int, str, str], Finding] = {}
    for (_, one), (place, other) in combinations(enumerate(datasets), 2):
        findings: list[Finding] = []
        if one.states and other.states:
            findings += _numbers(slots, one, other)
        findings += _pictures(one, other)
        for finding in findings:  # of three datasets the odd one is told once
            found.setdefault((place, finding.check, finding.subject), finding)
    return [(place, finding) for (place, _, _), finding in found.items()]


def check_halves(slots: Sequence[Slot], states: Mapping[int, Float[ndarray, "f p"]]) -> dict[int, list[Finding]]:
    """Columns that one dataset's later episodes have in another order than its earlier ones, told of the later ones."""
    numbers = list(states)
    halves = [part for part in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]) if len(part) > 1]
    if len(halves) < 2:
        return {}
    named = [SampledDataset(name, [states[n] for n in part], {}) for name, part in zip(HALVES, halves, strict=True)]
    arms = {slot.name for slot in slots if slot.kind in ("pose", "joints")}  # fingers do as a task has it
    found = [one for one in _numbers(slots, *named) if one.check == "exchanged-columns" and one.subject in arms]
    return {number: found for number in halves[1] if found}


def check_turned(signatures: Signatures) -> dict[int, list[Finding]]:
    """Episodes of which a camera shows what it shows in others, but mirrored, turned or in BGR."""
    found: dict[int, list[Finding]] = {}
    numbers = list(signatures)
    for name in sorted(next(iter(signatures.values()), {})):
        seen = np.array([signatures[number][name] for number in numbers]).reshape(-1, *SIGNATURE, 3)
        for how, (_, change) in READINGS.items():
            colours = how == SWAPPED_CHANNELS
            for row in odd_ones(seen, change, least=APART, scene=SCENE, spread=COLOURED if colours else TURNED):
                text = f"camera {name!r} shows what it shows in other episodes {how}: one of the two is wrong"
                finding = Finding("other-pictures", "warning", text, name, name, 0, RED_BLUE if colours else "")
                found.setdefault(numbers[row], []).append(finding)
    return found


def _numbers(slots: Sequence[Slot], one: SampledDataset, other: SampledDataset) -> list[Finding]:
    found: list[Finding] = []
    reach = [[np.median(rows, axis=0) for rows in levels_and_spans(part.states)] for part in (one, other)]
    columns = [np.concatenate(part.states) for part in (one, other)]
    at = 0
    for slot in slots:
        width = 3 if slot.kind == "pose" else slot.state_width
        place = slice(at, at + width)
        at += slot.state_width
        if not slot.present:
            continue
        theirs, ours = ((level[place], span[place]) for level, span in reach)
        if (told := unit_factor(ours, theirs)) is not None:
            many, what = told
            text = f"the state of {slot.name!r} in {other.name} is {many} what it is in {one.name}: {what}?"
            found.append(Finding("other-range", "warning", text, slot.name, fix=UNITS))
        elif moved := _exchanged(slot, columns[0][:, place], columns[1][:, place]):
            text = f"columns of {slot.name!r} fit under other names: in {other.name} {listed(moved, 4)} of {one.name}"
            found.append(Finding("exchanged-columns", "warning", text, slot.name))
    return found


def _exchanged(slot: Slot, one: np.ndarray, other: np.ndarray) -> list[str]:
    """Columns that hold what others hold in the first dataset, by what they usually hold; nothing where it is less
    than clear: another task moves columns, but does not give one what another had."""
    from scipy.optimize import linear_sum_assignment

    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    ours, theirs = (np.quantile(part, shares, axis=0) for part in (other, one))
    apart = np.abs(ours[:, :, None] - theirs[:, None, :]).mean(axis=0)  # [its column, the other's]
    span = max(float(np.ptp(theirs)), 1e-9)
    far = np.array([FAR.get(unit, FAR_ELSE * span) for unit in slot.units[: len(apart)]])
    alike = np.array([[a == b for b in slot.units[: len(apart)]] for a in slot.units[: len(apart)]])
    own = np.diagonal(apart)
    cost = np.where(alike, apart + 0.1 * far[:, None], 1e6)  # of two that are alike each keeps its name
    np.fill_diagonal(cost, own)
    places = linear_sum_assignment(cost)[1]
    moved = [i for i, place in enumerate(places) if i != place]
    if not all(own[i] > far[i] and apart[i, places[i]] < FITS * own[i] for i in moved):
        return []
    return [f"{slot.elements[i]!r} looks like {slot.elements[places[i]]!r}" for i in moved]


def _pictures(one: SampledDataset, other: SampledDataset) -> list[Finding]:
    found: list[Finding] = []
    cameras = [name for name in one.pictures if one.pictures[name] and other.pictures.get(name)]
    theirs, ours = ({name: part.usual(name) for name in cameras} for part in (one, other))

    def apart(mine: np.ndarray, camera: str) -> float:
        return float(np.abs(mine - theirs[camera]).mean())

    for name in cameras:
        own = apart(ours[name], name)
        nearest = min(READINGS, key=lambda how: apart(READINGS[how][1](ours[name]), name))
        question, change = READINGS[nearest]
        near = apart(change(ours[name]), name)
        # Colours come from no other task; a thing that lies left once and right once may be as far as mirrored.
        if own >= (GREYISH if nearest == SWAPPED_CHANNELS else APART) and near < min(SWAPPED * own, SCENE):
            text = (
                f"camera {name!r} of {other.name} shows what it shows in {one.name} {nearest} "
                f"({near:.0f} of 255 apart, and {own:.0f} as it is): {question}"
            )
            fix = BGR if nearest == SWAPPED_CHANNELS else ""
            found.append(Finding("other-pictures", "warning", text, name, name, 0, fix))
    for first, second in combinations(cameras, 2):
        if np.abs(theirs[first] - theirs[second]).mean() < APART:
            continue
        own = apart(ours[first], first) + apart(ours[second], second)
        if apart(ours[first], second) + apart(ours[second], first) < min(SWAPPED * own, 2 * SCENE):
            text = f"cameras {first!r} and {second!r} of {other.name} show each what the other shows in {one.name}"
            found.append(Finding("swapped-camera", "warning", text, f"{first}, {second}", first, 0))
    return found
