"""The world model's figures, with imaginers whose knowledge is known: of everything, of nothing, of all but actions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.evaluate.actions_check import CANDIDATES, RIVALS, consistency, ranks_of_first, sentence
from xwam_ft.evaluate.calibration import calibration, error_and_spread
from xwam_ft.evaluate.fidelity import BEST_PSNR, moving_region, moving_scores
from xwam_ft.evaluate.intervals import chosen, difference_interval, drawn, mean_interval, spearman
from xwam_ft.evaluate.world import SAMPLES, commanded_states, whole_clips, world
from xwam_ft.policy.policy import Imagined
from xwam_ft.shards import Clip, ShardSet

from .fake_policy import FakePolicy


class Knowing(FakePolicy):
    """Imagines the recorded future under the recorded actions, and a grey one, that stands still, under any others.

    Its own actions are the recorded ones a centimetre off."""

    def under(self, clip: Clip, seed: int, given: np.ndarray | None) -> Imagined:
        right = self.recorded_action(clip)
        if given is not None and np.allclose(given, right):
            return self.recorded_future(clip)
        seen = self.recorded_future(clip)
        still = np.repeat(clip.proprio[:1], len(clip.proprio), axis=0)
        return dataclasses.replace(seen, rgb=np.full_like(seen.rgb, 128), states=still, action=right + 0.05)


def judged(policy: FakePolicy, shards: ShardSet, clips: int = 6) -> dict[str, Any]:
    return world(policy, shards, clips=clips).metrics  # pyright: ignore[reportArgumentType]


def test_a_perfect_imaginer_has_the_first_rank_everywhere(shard_set: ShardSet) -> None:
    found = judged(Knowing(shard_set), shard_set)
    for what in ("pictures", "states"):
        row = found["actions"][what]
        assert (row["first"], row["mean_rank"]) == (1.0, 1.0)
        assert row["beats"] == dict.fromkeys(RIVALS, 1.0)
        assert row["first_interval_95"][0] > row["chance"]
        assert "it follows the actions" in sentence(row, what)
    assert found["actions"]["pictures"]["psnr_moving"]["recorded"] == BEST_PSNR
    assert found["actions"]["pictures"]["closer_db"]["reversed"]["mean"] > 50
    errors = found["actions"]["state_errors"]["tool"]["position"]
    assert errors["unit"] == "mm"
    assert errors["recorded"] == pytest.approx(0, abs=1e-6)
    assert errors["own"] > 1


def test_the_recorded_future_scores_perfectly_at_every_horizon(shard_set: ShardSet) -> None:
    found = judged(FakePolicy(shard_set), shard_set)
    best = {"psnr": 100, "psnr_moving": 100, "ssim": 1, "ssim_moving": 1, "abs_rel": 0, "delta1": 1, "rmse": 0}
    assert found["by_horizon"].keys() == best.keys()
    for name, value in best.items():
        assert found["by_horizon"][name]["imagined"] == pytest.approx([value] * 4, abs=1e-4), name
        assert found["per_clip"][name] == pytest.approx([value] * 6, abs=1e-4), name
    assert found["horizon_seconds"] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    moving = found["by_horizon"]["psnr_moving"]["repeat_first_frame"]
    assert max(moving) < min(found["by_horizon"]["psnr"]["repeat_first_frame"])


def test_an_action_blind_imaginer_ranks_at_chance(shard_set: ShardSet) -> None:
    found = judged(FakePolicy(shard_set), shard_set)
    for what in ("pictures", "states"):
        row = found["actions"][what]
        assert row["first"] == pytest.approx(1 / 3)
        assert row["mean_rank"] == row["chance_rank"] == 2
        assert row["beats"] == dict.fromkeys(RIVALS, 0.5)
        assert "no proof that it follows" in sentence(row, what)
    assert found["actions"]["pictures"]["closer_db"]["other_clip"]["mean"] == 0


def test_repeating_the_first_picture_equals_the_baseline(shard_set: ShardSet) -> None:
    def still(clip: Clip) -> Imagined:
        seen = policy.recorded_future(clip)
        assert seen.depth is not None
        rgb, depth = (np.repeat(pictures[:, :1], pictures.shape[1], axis=1) for pictures in (seen.rgb, seen.depth))
        return dataclasses.replace(seen, rgb=rgb, depth=depth)

    policy = FakePolicy(shard_set, dream=still)
    for name, row in judged(policy, shard_set)["by_horizon"].items():
        assert row["imagined"] == pytest.approx(row["repeat_first_frame"], rel=1e-3, abs=1e-6), name


def test_one_noise_for_all_actions_and_another_for_every_sample(shard_set: ShardSet) -> None:
    policy = FakePolicy(shard_set)
    assert judged(policy, shard_set, clips=2)["clips"] == 2
    assert policy.seeds == [100, 102, 104, 106, 100, 100, 100, 101, 103, 105, 107, 101, 101, 101]
    assert SAMPLES == 4


def test_imagined_states_are_held_against_the_commands_before_them(shard_set: ShardSet) -> None:
    contract = shard_set.contract

    def obedient(clip: Clip) -> Imagined:
        seen = policy.recorded_future(clip)
        raw = conventions.denormalise_action(contract, seen.action)
        wanted, counted = commanded_states(contract, conventions.decode_actions(contract, raw, clip.proprio[0]))
        assert counted.min() == 1
        wanted[:, 0] += 0.007  # metres along x
        return dataclasses.replace(seen, states=np.concatenate([clip.proprio[:1], wanted]))

    policy = FakePolicy(shard_set, dream=obedient)
    row = judged(policy, shard_set)["follows"]["tool"]["position"]
    assert row["imagined"] == pytest.approx(7, abs=1e-3)
    clip = shard_set.read_clip(whole_clips(shard_set, "held_out")[0])
    np.testing.assert_array_equal(commanded_states(contract, clip.action)[0], clip.action[[1, 3, 5, 7]])
    assert row["recorded"] > 1


@pytest.mark.parametrize("biased", [False, True])
def test_spread_tells_error_where_samples_are_as_far_off_as_they_differ(biased: bool) -> None:
    rng = np.random.default_rng(0)
    widths = np.linspace(0.1, 2, 40)
    rows = []
    for width in widths:
        truth = rng.normal(0, 1.0 if biased else width, 300)
        samples = [rng.normal(0, 1e-3 * rng.uniform() if biased else width, 300) for _ in range(4)]
        rows.append(error_and_spread(samples, truth))
    found = calibration(*np.array(rows).T)
    if biased:  # all are as wrong, whatever they differ by: sure of itself, and no correlation
        assert found["interval_95"][0] < 0 < found["interval_95"][1]
        assert found["ratio"] > 100
    else:
        assert found["spearman"] > 0.95
        assert found["ratio"] == pytest.approx(1, abs=0.05)


def test_ties_share_the_first_place_and_what_does_not_move_does_not_count() -> None:
    rows = np.array([[1.0, 1, 2], [1, 1, 1], [3, 1, 2], [0, 1, 2]])
    ranks, first = ranks_of_first(rows)
    assert ranks.tolist() == [1.5, 2, 3, 1]
    np.testing.assert_allclose(first, [1 / 2, 1 / 3, 0, 1])
    nothing = consistency(dict.fromkeys(CANDIDATES, np.full(3, np.nan)))
    assert (nothing["clips"], nothing["first"], nothing["ranks"]) == (0, None, [None] * 3)
    assert "nothing can be said" in sentence(nothing, "video")
    wrong = consistency(dict.fromkeys(CANDIDATES, np.zeros(20)) | {"recorded": np.ones(20)})
    assert "below chance" in sentence(wrong, "video")


def test_moving_regions_are_those_that_change() -> None:
    still = np.full((3, 24, 24, 3), 100, np.uint8)
    moved = still.copy()
    moved[2, 5:9, 6:9] = 200
    region = moving_region(moved)
    assert region.sum() == 4 * 3 + 2 * (4 + 3)  # and their neighbours
    assert not moving_region(still).any()
    scores = moving_scores(still[1:], moved[1:], region)
    square = (100 / 255) ** 2 * 12 / region.sum()
    np.testing.assert_allclose(scores["psnr_moving"], [BEST_PSNR, -10 * np.log10(square)])
    assert np.isnan(moving_scores(still[1:], still[1:], moving_region(still))["ssim_moving"]).all()


def test_intervals_in_cases_that_are_known() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    values = rng.normal(3, 1, 200)
    low, high = mean_interval(values) or (0, 0)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.1)
    assert mean_interval(values[:1]) is None
    assert difference_interval(values, values + 2, paired=True) == pytest.approx((2, 2))
    low, high = difference_interval(values, values + 2, paired=False) or (0, 0)
    assert low < 2 < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() * np.sqrt(2 / 200), rel=0.1)
    other = values + rng.normal(0, 1, 200)
    found = spearman(values, other)
    assert found is not None
    expected: Any = spearmanr(values, other)
    assert found[0] == pytest.approx(expected.statistic)
    assert found[1][0] < found[0] < found[1][1]
    assert spearman(values, np.ones(200)) is None


def test_whole_episodes_are_drawn_where_clips_are_of_them() -> None:
    rng = np.random.default_rng(2)
    of = np.repeat(np.arange(10), 20)
    places = rng.normal(0, 1, 10)
    values = places[of]  # clips of an episode are equal: ten numbers, said twenty times each
    low, high = mean_interval(values, of.tolist()) or (0, 0)
    assert (low, high) == pytest.approx(mean_interval(places))  # pyright: ignore[reportUnknownMemberType]
    narrow = mean_interval(values) or (0, 0)
    assert high - low > 3 * (narrow[1] - narrow[0])
    alone = mean_interval(values, [0] * len(values))  # of one episode nothing is known of others
    assert alone == narrow
    assert (drawn(None), drawn([0, 0]), drawn([0, 1])) == ("clips", "clips", "episodes")
    unequal = mean_interval(np.array([0.0, 0.0, 0.0, 1.0]), [0, 0, 0, 1]) or (0, 0)
    assert unequal == (0, 1)  # sometimes one episode alone is drawn
    two = rng.normal(0, 1, 16)  # of two episodes that do not differ: no narrower than over clips
    low, high = mean_interval(two, [0] * 8 + [1] * 8) or (0, 0)
    narrowest = mean_interval(two) or (0, 0)
    assert high - low > 0.9 * (narrowest[1] - narrowest[0])
    other = values + rng.normal(0, 0.01, 200)
    by_clip, by_episode = spearman(values, other), spearman(values, other, of.tolist())
    assert by_clip is not None
    assert by_episode is not None
    assert by_episode[0] == by_clip[0]
    assert by_episode[1][1] - by_episode[1][0] > by_clip[1][1] - by_clip[1][0]
    paired = difference_interval(values, values + 2, paired=True, episodes=(of.tolist(), of.tolist()))
    assert paired == pytest.approx((2, 2))
    assert chosen([4, 5, 6], np.array([True, False, True])) == [4, 6]
    wide = difference_interval(values, values + 2, paired=False, episodes=(of.tolist(), of.tolist())) or (0, 0)
    assert wide[0] < 2 < wide[1]
    assert wide[1] - wide[0] > high - low


def test_a_split_with_one_whole_clip_is_refused(shard_set: ShardSet) -> None:
    segments = tuple(segment for segment in shard_set.index.segments if segment.split == "train")
    bare = dataclasses.replace(shard_set, index=shard_set.index.model_copy(update={"segments": segments}))
    with pytest.raises(UserError, match=r"set: has 0 held-out clips of full length.*Fix: leave --world out"):
        judged(FakePolicy(shard_set), bare)
