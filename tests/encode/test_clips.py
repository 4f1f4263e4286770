"""The order of clips is a function of (seed, position): permutations, partition, independence of the geometry."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from xwam_ft.encode.clips import ClipOrder, StepGeometry, Stream, copy_at, generator_at, wording_at


@given(seed=st.integers(0, 2**32), clips=st.integers(1, 40), epoch=st.integers(0, 5))
def test_every_epoch_shows_every_clip_once(seed: int, clips: int, epoch: int) -> None:
    order = ClipOrder(seed, clips)
    shown = [order.at(position) for position in range(epoch * clips, (epoch + 1) * clips)]
    assert sorted(shown) == list(range(clips))


def test_epochs_and_seeds_have_other_orders() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        whole = ClipOrder(seed, 50)
        return [whole.at(epoch * 50 + place) for place in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(
    seed=st.integers(0, 2**32),
    weights=st.lists(st.floats(0, 10), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3),
    epoch=st.integers(0, 5),
)
def test_weighted_clips_are_shown_as_often_as_their_weight_says(seed: int, weights: list[float], epoch: int) -> None:
    order = ClipOrder(seed, len(weights), np.array(weights))
    shown = np.bincount(order.epoch(epoch), minlength=len(weights))
    expected = len(weights) * np.array(weights) / sum(weights)
    assert shown.sum() == len(weights)  # an epoch is as long as ever
    assert np.all((shown >= np.floor(expected - 1e-9)) & (shown <= np.ceil(expected + 1e-9)))


def test_over_epochs_weights_are_met_and_equal_ones_change_nothing() -> None:
    weights = np.array([1.0, 2.5, 0.0, 0.5, 4.0])
    order = ClipOrder(3, 5, weights)
    shown = np.bincount(np.concatenate([order.epoch(epoch) for epoch in range(400)]), minlength=5) / 2000
    np.testing.assert_allclose(shown, weights / weights.sum(), atol=0.01)
    assert len({tuple(order.epoch(epoch)) for epoch in range(20)}) > 10
    alike = ClipOrder(3, 7, np.full(7, 0.3))
    assert [alike.at(p) for p in range(30)] == [ClipOrder(3, 7).at(p) for p in range(30)]
    # Any position by itself, in any order, is what it is in sequence.
    assert [order.at(p) for p in (17, 3, 17, 9)] == [list(order.epoch(p // 5))[p % 5] for p in (17, 3, 17, 9)]


def test_wordings_are_drawn_evenly_and_by_position() -> None:
    drawn = np.bincount([wording_at(0, position, 3) for position in range(3000)], minlength=3)
    assert drawn.min() > 900
    assert {wording_at(0, position, 1) for position in range(5)} == {0}


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


def test_which_copy_is_shown_says_nothing_about_which_wording_is_told() -> None:
    pairs = [(copy_at(0, position, 3), wording_at(0, position, 3)) for position in range(900)]
    counts = np.array([[pairs.count((copy, wording)) for wording in range(3)] for copy in range(3)])
    assert counts.min() > 60, counts  # 100 each, were they exactly even
    assert counts.max() < 140, counts
