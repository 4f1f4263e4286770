"""Which clip comes when, and which random numbers belong to it: functions of (seed, position), of nothing else.

A *position* counts the samples of a run, 0, 1, 2, ... in the order they are consumed. With n training clips,
position p is in epoch p // n, and that epoch's permutation says which clip it is (`ClipOrder`). Optimizer step s
consumes the G = batch * accumulate * ranks positions s*G .. s*G + G-1; micro-batch m of rank r takes a run of `batch`
of them. So neither the worker count nor the history of the process matters, and micro-batch times accumulation times
ranks can be traded for one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from numpy import ndarray


class Stream(IntEnum):
    """What a random number is for; each purpose has its own stream, so that adding one moves no other."""

    ORDER = 0
    NOISE = 1
    LAYERS = 2  # dropout inside the network
    VALIDATION = 3
    COPY = 4  # which augmented copy of a clip
    PREFIX = 5  # how many actions are given clean
    WEIGHTS = 6  # which clips an epoch shows once more than others
    WORDING = 7  # which of an episode's instructions
    FUTURE = 8  # whether the future is hidden from the actions


@dataclass(frozen=True)
class StepGeometry:
    """How the positions of an optimizer step are dealt out.

    Args:
        batch_size: clips a micro-batch and rank.
        accumulate: micro-batches an optimizer step.
        ranks: processes that train together.
    """

    batch_size: int
    accumulate: int = 1
    ranks: int = 1

    @property
    def samples(self) -> int:
        """G, the clips one optimizer step consumes."""
        return self.batch_size * self.accumulate * self.ranks

    def positions(self, step: int) -> range:
        """All positions of optimizer step `step` (counted from 0)."""
        return range(step * self.samples, (step + 1) * self.samples)

    def micro_batch(self, step: int, index: int, rank: int = 0) -> list[int]:
        """The positions of micro-batch `index` of `step` on `rank`."""
        first = step * self.samples + (index * self.ranks + rank) * self.batch_size
        return list(range(first, first + self.batch_size))

    def micro_batches(self, first_step: int, last_step: int, rank: int = 0) -> Iterator[list[int]]:
        """Every micro-batch of `rank` in steps `first_step` .. `last_step` - 1, in order."""
        for step in range(first_step, last_step):
            for index in range(self.accumulate):
                yield self.micro_batch(step, index, rank)


class ClipOrder:
    """Which of n training clips is shown at a position; an epoch shows n.

    Without weights every clip is shown once an epoch. With them clip j is shown c_j = n * w_j / sum(w) times on
    average, and floor(c_j) or ceil(c_j) times in any epoch: systematic sampling, one uniform number an epoch.

    Args:
        weights: [n], at least 0, not all 0; None: all alike.
    """

    def __init__(self, seed: int, num_clips: int, weights: Float[ndarray, " n"] | None = None) -> None:
        self.seed, self.num_clips = seed, num_clips
        alike = weights is None or bool(np.all(weights == weights[0]))
        self._ends = None if weights is None or alike else np.cumsum(weights) * (num_clips / np.sum(weights))
        self._shown: tuple[int, Int[ndarray, " n"]] = (-1, np.zeros(0, dtype=np.int64))

    def at(self, position: int) -> int:
        """The index of the clip at `position`."""
        epoch, place = divmod(position, self.num_clips)
        if self._shown[0] != epoch:
            self._shown = (epoch, self.epoch(epoch))
        return int(self._shown[1][place])

    def epoch(self, epoch: int) -> Int[ndarray, " n"]:
        """The clips of an epoch in order."""
        order = _permutation(self.seed, epoch, self.num_clips)
        if self._ends is None:
            return order
        offset = random_bits(self.seed, Stream.WEIGHTS, epoch) / 2**63
        ends = np.floor(self._ends + offset).astype(np.int64)
        ends = np.minimum(ends, self.num_clips)
        ends[-1] = self.num_clips  # rounding of the sum must neither lose a clip nor add one
        return np.repeat(np.arange(self.num_clips), np.diff(ends, prepend=0))[order]


def wording_at(seed: int, position: int, wordings: int) -> int:
    """Which of an episode's instructions is told at `position`."""
    return random_bits(seed, Stream.WORDING, position) % wordings if wordings > 1 else 0


def copy_at(seed: int, position: int, copies: int) -> int:
    """Which of a clip's augmented copies is shown at `position`."""
    return random_bits(seed, Stream.COPY, position) % copies if copies > 1 else 0


def random_bits(seed: int, stream: Stream, *numbers: int) -> int:
    """63 bits, a hash of the arguments alone: a seed for any other generator."""
    word = np.random.SeedSequence((seed, int(stream), *numbers)).generate_state(1, np.uint64)[0]
    return int(word) >> 1


def generator_at(seed: int, stream: Stream, *numbers: int) -> torch.Generator:
    """A CPU generator that depends on the arguments alone."""
    import torch

    return torch.Generator().manual_seed(random_bits(seed, stream, *numbers))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_clips: int) -> Int[ndarray, " n"]:
    sequence = np.random.SeedSequence((seed, int(Stream.ORDER), epoch))
    return np.random.Generator(np.random.Philox(sequence)).permutation(num_clips)
