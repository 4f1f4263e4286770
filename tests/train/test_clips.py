"""The order of clips is a function of (seed, position): permutations, partition, independence of the geometry."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from xwam_ft.train.clips import StepGeometry, Stream, clip_at, generator_at


@given(seed=st.integers(0, 2**32), clips=st.integers(1, 40), epoch=st.integers(0, 5))
def test_every_epoch_shows_every_clip_once(seed: int, clips: int, epoch: int) -> None:
    shown = [clip_at(seed, position, clips) for position in range(epoch * clips, (epoch + 1) * clips)]
    assert sorted(shown) == list(range(clips))


def test_epochs_and_seeds_have_other_orders() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [clip_at(seed, epoch * 50 + place, 50) for place in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(batch=st.integers(1, 4), accumulate=st.integers(1, 4), ranks=st.integers(1, 4), step=st.integers(0, 9))
def test_ranks_and_micro_batches_partition_a_step(batch: int, accumulate: int, ranks: int, step: int) -> None:
    geometry = StepGeometry(batch, accumulate, ranks)
    dealt = [p for r in range(ranks) for m in range(accumulate) for p in geometry.micro_batch(step, m, r)]
    assert sorted(dealt) == list(geometry.positions(step))
    assert geometry.positions(step) == StepGeometry(batch * accumulate * ranks).positions(step)


def test_a_resumed_order_is_the_tail_of_the_whole_one() -> None:
    geometry = StepGeometry(2, 3, 2)
    whole = list(geometry.micro_batches(0, 5, rank=1))
    assert list(geometry.micro_batches(2, 5, rank=1)) == whole[2 * 3 :]


def test_generators_differ_by_every_argument() -> None:
    keys = [(0, Stream.NOISE, 7), (1, Stream.NOISE, 7), (0, Stream.LAYERS, 7), (0, Stream.NOISE, 8)]
    draws = [float(torch.rand((), generator=generator_at(*key))) for key in keys]
    assert len(set(draws)) == 4
    assert draws[0] == float(torch.rand((), generator=generator_at(*keys[0])))
