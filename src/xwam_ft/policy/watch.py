"""What one robot's observations show over time, and its first one by itself: told once, so that a person looks.

frozen      a camera that gives the same picture while the robot moves, a state that stays to the last digit while
            commands ask for movement
strange     pictures farther from the training pictures than any of these (`NoveltyWatch`)
exchanged   pictures that would be nearer to the training pictures with red and blue exchanged, turned or mirrored, or
            under another camera's name; looked at in the first observation, and where pictures turn strange
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.policy.novelty import NoveltyWatch

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.observation import EncodedObservation
    from xwam_ft.policy.novelty import Novelty
    from xwam_ft.policy.request import PolicyOutput

    Condition = Callable[[UInt8[ndarray, "b v h w 3"]], Float[Tensor, "b c v h w"]]

STILL = 5
"""Observations after the first of which a camera or the state gives nothing new."""
MOVED = 0.2
"""Of a normalised number of the state: what counts as movement, a tenth of what the recordings went through."""
NEARER = 0.7
"""Of the distance as it was sent: how near another reading of a picture must be to be told."""
READINGS: dict[str, tuple[str, Callable[[ndarray], ndarray]]] = {
    "with red and blue exchanged": ("does it send BGR?", lambda pictures: pictures[..., ::-1]),
    "turned by 180 degrees": ("is the camera, or its picture, upside down?", lambda p: p[..., ::-1, ::-1, :]),
    "mirrored": ("is its picture mirrored?", lambda pictures: pictures[..., ::-1, :]),
}


class ObservationWatch:
    """Watches the observations of one robot.

    Args:
        novelty, condition: of the policy, where it has them: statistics of the training pictures, and the way from
            pictures to the latents that these are of.
    """

    def __init__(self, contract: Contract, novelty: Novelty | None = None, condition: Condition | None = None) -> None:
        self.contract, self.novelty, self.condition = contract, novelty, condition
        self._strange = NoveltyWatch(novelty)
        self.looked = False  # whether there was a first observation
        self._known: set[str] = set()
        self._pictures: dict[str, tuple[EncodedObservation, int]] = {}  # the first with this picture, how many after it
        self._state: tuple[ndarray, int] | None = None

    def sentences(self, output: PolicyOutput) -> list[str]:
        """What an answered observation adds to what was said before; its own warnings are not in it."""
        said = self._strange.sentences(output.novelty)
        if output.seen is None:
            return said
        if said or not self.looked:
            said += self._exchanged(output.seen)
        self.looked = True
        return [*said, *self._frozen_cameras(output.seen), *self._frozen_state(output.seen, output)]

    def first_of(self, warnings: tuple[str, ...]) -> list[str]:
        """Those of an answer's own warnings that were not there before, whatever the numbers in them."""
        fresh: list[str] = []
        for warning in warnings:
            kind = re.sub(r"-?\d[\d.e+-]*", "#", warning)
            if kind not in self._known:
                self._known.add(kind)
                fresh.append(warning)
        return fresh

    def _exchanged(self, seen: EncodedObservation) -> list[str]:
        if self.novelty is None or self.condition is None:
            return []
        variants = [seen.pictures, *(np.ascontiguousarray(change(seen.pictures)) for _, change in READINGS.values())]
        latents = self.condition(np.stack(variants))
        scores, said = self.novelty.scores(latents), []
        for view, name in enumerate(self.novelty.cameras):
            sent, best = scores[0, view], int(scores[1:, view].argmin())
            if (score := scores[1 + best, view]) <= min(1.0, NEARER * sent):
                how, (asked, _) = list(READINGS.items())[best]
                said.append(
                    f"camera {name!r} is nearer to its training pictures {how} ({score:.2f}) than as it comes "
                    f"({sent:.2f}): {asked}"
                )
        return said or self._swapped(self.novelty, latents[:1])

    def _swapped(self, novelty: Novelty, latents: Float[Tensor, "1 c v h w"]) -> list[str]:
        """Cameras whose pictures fit better under each other's names."""
        if len(novelty.cameras) < 2:
            return []
        from scipy.optimize import linear_sum_assignment

        scores = novelty.crossed(latents)
        places = linear_sum_assignment(scores)[1]
        moved = [view for view, place in enumerate(places) if view != place]
        if not moved or any(scores[v, places[v]] > min(1.0, NEARER * scores[v, v]) for v in moved):
            return []
        fits = "; ".join(f"{novelty.cameras[v]!r} looks like {novelty.cameras[places[v]]!r}" for v in moved)
        return [f"cameras fit the training pictures better under other names: {fits}. Are they exchanged?"]

    def _frozen_cameras(self, seen: EncodedObservation) -> list[str]:
        said: list[str] = []
        for view, name in enumerate(self.contract.camera_names):
            first, count = self._pictures.get(name, (None, 0))
            if first is None or not np.array_equal(first.pictures[view], seen.pictures[view]):
                self._pictures[name] = seen, 0
                continue
            self._pictures[name] = first, count + 1
            moved = np.abs(seen.proprio - first.proprio)[conventions.state_mask(self.contract) > 0].max(initial=0.0)
            if count + 1 >= STILL and moved > MOVED and first.pictures[view].min() < first.pictures[view].max():
                self._pictures[name] = first, -(2**31)  # said once, until it changes
                times = f"{count + 2} times while the robot moved"
                said.append(f"camera {name!r} gave the very same picture {times}: has it frozen?")
        return said

    def _frozen_state(self, seen: EncodedObservation, output: PolicyOutput) -> list[str]:
        before, count = self._state or (None, 0)
        asked = _asked(self.contract, seen, output.commands.table) > MOVED
        if before is None or not asked or not np.array_equal(before, seen.state):
            self._state = seen.state, 0
            return []
        self._state = before, count + 1
        if count + 1 != STILL:
            return []
        return [
            f"the state was the very same {STILL + 1} times, to the last digit, while commands asked for movement: is "
            "it read anew, and are commands carried out?"
        ]


def _asked(contract: Contract, seen: EncodedObservation, commands: Float[ndarray, "ta q"]) -> float:
    """How far the end of a chunk is from the state, in normalised numbers; of slots commanded in the state's units."""
    places, most = conventions.state_slices(contract), 0.0
    half = (np.array(contract.quantiles.proprio_high) - np.array(contract.quantiles.proprio_low)) / 2
    for name, place in conventions.command_slices(contract).items():
        slot, own = contract.slot(name), places[name]
        if not slot.present or slot.for_controller or slot.command_units not in (None, slot.units):
            continue
        width = 3 if slot.kind == "pose" else slot.state_width
        gap = commands[-1, place][:width] - seen.state[own][:width]
        most = max(most, float(np.abs(gap / half[own][:width]).max(initial=0.0)))
    return most


def watch_of(policy: object) -> ObservationWatch:
    """A watch for one robot of a policy, or of anything that is served as one."""
    contract: Contract = getattr(policy, "contract")  # noqa: B009
    return ObservationWatch(contract, getattr(policy, "novelty", None), getattr(policy, "condition", None))
