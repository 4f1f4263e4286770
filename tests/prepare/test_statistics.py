"""Quantiles in closed form: the rules stated at the head of quantiles.py, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from xwam_ft import conventions
from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Camera, DepthCode, Image, Slot, Timing
from xwam_ft.quantiles import Motion, chunk_actions, encoded_chunks, placeholder, quantiles, widen

TIMING = Timing(fps=10, frame_skip=2, action_skip=1, clip_frames=5)


def gripper(name: str, convention: str | None = "absolute", units: str = "1") -> Slot:
    return Slot(
        name=name,
        kind="gripper",
        columns=(name,),
        elements=(name,),
        units=(units,),
        convention=convention,  # pyright: ignore
    )


def joint(convention: str) -> Slot:
    return Slot(name="j", kind="joints", columns=("j",), elements=("j",), units=("rad",), convention=convention)  # pyright: ignore


def contract(*slots: Slot):
    return placeholder(
        {
            "embodiment": "toy",
            "cameras": (Camera(name="a", source_height=2, source_width=2),),
            "image": Image(),
            "timing": TIMING,
            "slots": slots,
            "depth": DepthCode(kind="none"),
            "prompts": (),
        }
    )


def one(state: np.ndarray, command: np.ndarray, mask: np.ndarray | None = None) -> Motion:
    return Motion(state, command, np.ones_like(command) if mask is None else mask)


def test_proprio_is_plain_quantiles_and_absolute_actions_too() -> None:
    ramp = np.linspace(0, 1, 101)[:, None]
    found = quantiles(contract(joint("absolute")), [one(ramp, np.full_like(ramp, 0.25))])
    assert found.proprio_low[0] == pytest.approx(0.01)
    assert found.proprio_high[0] == pytest.approx(0.99)
    assert (found.action_low[0], found.action_high[0]) == pytest.approx((0.2495, 0.2505))  # widened to the floor


def test_relative_actions_are_symmetric_and_cover_the_larger_side() -> None:
    # A constant speed of 0.1 a frame: action i of a chunk is 0.1 i + 0.05, for i = 0..7.
    state = np.arange(400)[:, None] * 0.1
    found = quantiles(contract(joint("relative_to_chunk_start")), [one(state, state + 0.05)])
    assert found.action_high[0] == pytest.approx(0.75)
    assert found.action_low[0] == -found.action_high[0]


def test_masked_steps_and_steps_past_the_end_do_not_count() -> None:
    state = np.zeros((20, 1))
    command = np.zeros((20, 1))
    command[10:] = 1000.0
    mask = np.ones((20, 1))
    mask[10:] = 0
    command[:10] = np.linspace(-1, 1, 10)[:, None]
    found = quantiles(contract(joint("absolute")), [one(state, command, mask)])
    assert found.action_high[0] <= 1.0


def test_grippers_of_both_arms_share_a_range() -> None:
    left, right = np.linspace(0, 1, 50), np.linspace(2, 3, 50)
    both = np.stack([left, right], axis=1)
    found = quantiles(contract(gripper("l"), gripper("r")), [one(both, both)])
    low, high = np.quantile(np.concatenate([left, right]), [0.01, 0.99])
    assert found.proprio_low == pytest.approx((low, low))
    assert found.proprio_high == pytest.approx((high, high))
    assert found.action_low[0] == found.action_low[1]
    apart = quantiles(contract(gripper("l"), gripper("r", units="m")), [one(both, both)])
    assert apart.proprio_high[0] < 1.1


def test_a_relative_gripper_counts_only_steps_that_move() -> None:
    # Still for 300 frames but for one closing of 1 in a frame: among all steps the 99 % quantile would be tiny.
    state = np.zeros((300, 1))
    state[150:] = 1.0
    rest = state + 0.001
    found = quantiles(contract(gripper("g", "delta_to_state")), [one(state, np.roll(rest, -1))])
    assert found.action_high[0] == pytest.approx(1.0, abs=0.01)


def test_quaternions_are_left_alone_and_poses_get_metres_and_radians() -> None:
    slot = Slot(
        name="p",
        kind="pose",
        columns=POSE_ELEMENTS,
        elements=POSE_ELEMENTS,
        units=POSE_UNITS,
        convention="relative_to_chunk_start",
    )
    state = np.zeros((40, 7))
    state[:, 3] = 1
    found = quantiles(contract(slot), [one(state, state)])
    assert found.proprio_low[3:] == (-1.0,) * 4
    assert found.proprio_high[3:] == (1.0,) * 4
    assert found.action_high == pytest.approx((0.5e-3,) * 6)  # nothing moves: the floors, not zero


def test_absent_slots_are_minus_one_to_one() -> None:
    absent = Slot(
        name="g", kind="gripper", columns=("g",), elements=("g",), units=("1",), convention="absolute", present=False
    )
    state = np.column_stack([np.linspace(0, 1, 30), np.zeros(30)])
    found = quantiles(contract(joint("absolute"), absent), [one(state, state)])
    assert (found.proprio_low[1], found.proprio_high[1]) == (-1, 1)
    assert (found.action_low[1], found.action_high[1]) == (-1, 1)


def test_floors() -> None:
    assert widen(1.0, 1.0, "m") == pytest.approx((0.9995, 1.0005))
    assert widen(1.0, 1.0, "1") == pytest.approx((0.995, 1.005))
    assert widen(0.0, 0.5, "1") == (0.0, 0.5)


def test_what_never_moves_normalises_to_zero() -> None:
    still = np.full((30, 1), 0.7)
    draft = contract(joint("absolute"))
    final = draft.model_copy(update={"quantiles": quantiles(draft, [one(still, still)])})
    np.testing.assert_allclose(conventions.normalise_proprio(final, still), 0, atol=1e-9)


@pytest.mark.parametrize("convention", ["relative_to_chunk_start", "step_delta", "delta_to_state", "absolute"])
def test_chunks_encoded_together_are_those_encoded_alone(convention: str) -> None:
    pose = Slot(
        name="hand",
        kind="pose",
        columns=POSE_ELEMENTS,
        elements=POSE_ELEMENTS,
        units=POSE_UNITS,
        frame="base",
        convention=None if convention == "absolute" else convention,  # pyright: ignore
    )
    absent = gripper("gone").model_copy(update={"present": False})
    draft = contract(*([] if convention == "absolute" else [pose]), joint(convention), absent)
    random = np.random.default_rng(0)
    widths = draft.state_dim, sum(slot.command_width for slot in draft.slots)
    episodes = [
        Motion(random.normal(size=(n, widths[0])), random.normal(size=(n, widths[1])), np.ones((n, widths[1])))
        for n in (3, 40, 11)
    ]
    values, masks = chunk_actions(draft, episodes, stride=2)
    alone: list[np.ndarray] = []
    alone_masks: list[np.ndarray] = []
    for episode in episodes:
        for start in range(0, max(1, len(episode.state) - TIMING.frame_skip), 2):
            rows = start + np.arange(TIMING.action_steps) * TIMING.action_skip
            rows = rows[rows < len(episode.state)]
            states = episode.state[rows]
            alone.append(conventions.encode_actions(draft, episode.command[rows], episode.state[start], states))
            alone_masks.append(conventions.command_to_action_mask(draft, episode.command_mask[rows]))
    np.testing.assert_array_equal(values, np.concatenate(alone))
    np.testing.assert_array_equal(masks, np.concatenate(alone_masks))


def test_by_step_every_number_has_mean_0_and_spread_1_at_every_step() -> None:
    rng = np.random.default_rng(0)
    state = np.cumsum(rng.normal(0, 0.1, (300, 2)), axis=0)
    slots = (joint("relative_to_chunk_start"), gripper("g"))
    plain = contract(*slots)
    by_step = placeholder({**plain.model_dump(), "slots": slots, "timing": TIMING, "action_scaling": "step"})
    mask = np.ones_like(state)
    mask[40:60, 1] = 0
    episodes = [one(state[:200], state[:200] + 0.01, mask[:200]), one(state[200:], state[200:] + 0.02, mask[200:])]
    found = quantiles(by_step, episodes)
    assert found.model_copy(update={"action_step_low": None, "action_step_high": None}) == quantiles(plain, episodes)
    scaled = by_step.model_copy(update={"quantiles": found})
    values: list[list[np.ndarray]] = [[] for _ in range(8)]
    for encoded, valid in encoded_chunks(scaled, episodes):
        normalised = conventions.normalise_action(scaled, encoded)
        for step in range(encoded.shape[1]):
            values[step].append(np.where(valid[:, step] > 0, normalised[:, step], np.nan))
    for step in range(8):
        column = np.concatenate(values[step])
        np.testing.assert_allclose(np.nanmean(column, axis=0), 0.0, atol=1e-9)
        np.testing.assert_allclose(np.nanstd(column, axis=0), 1.0, atol=1e-9)


def test_by_step_what_never_moves_gets_the_floor_and_grippers_share() -> None:
    slots = (joint("relative_to_chunk_start"), gripper("left"), gripper("right"))
    plain = contract(*slots)
    by_step = placeholder({**plain.model_dump(), "slots": slots, "timing": TIMING, "action_scaling": "step"})
    state = np.zeros((50, 3))
    command = np.zeros((50, 3))
    command[:, 2] = 1.0
    found = quantiles(by_step, [one(state, command)])
    assert found.action_step_low is not None
    assert found.action_step_high is not None
    for low, high in zip(found.action_step_low, found.action_step_high, strict=True):
        assert (low[0], high[0]) == pytest.approx((-0.5e-3, 0.5e-3))
        assert (low[1], high[1]) == (low[2], high[2]) == pytest.approx((0.0, 1.0))
