"""Open-loop evaluation against policies whose answers are known."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xwam_ft import conventions
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.evaluate.baselines import hold_still, mean_action
from xwam_ft.evaluate.evaluate import evaluate_bundle
from xwam_ft.evaluate.open_loop import METHODS, figure, open_loop, spread, summary_lines
from xwam_ft.evaluate.report import table_rows
from xwam_ft.policy.policy import Policy
from xwam_ft.shards import ShardSet

from .fake_policy import FakePolicy

CONVENTIONS = ("relative_to_chunk_start", "step_delta", "delta_to_state")


@pytest.fixture(scope="module")
def fake(shard_set: ShardSet) -> FakePolicy:
    return FakePolicy(shard_set)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_policy_that_answers_the_recording_has_no_error(
    convention: str,
    contract_with: Callable[..., Contract],
    make_shard_set: Callable[[Path, Contract], ShardSet],
    tmp_path: Path,
) -> None:
    shards = make_shard_set(tmp_path / "set", contract_with(convention))
    policy = FakePolicy(shards)
    result = open_loop(policy, shards, clips=100)  # pyright: ignore[reportArgumentType]
    assert result.clips == len(shards.clips("held_out", 1))
    np.testing.assert_allclose(result.mean("policy"), 0.0, atol=1e-5)
    assert np.all(result.mean("hold_still") > 1e-4)
    # The last clips reach past the end: their late steps do not count, and the first step always does.
    assert np.all(result.weights[:, 0] == 1)
    assert np.all(result.weights[-1, -1] == 0)


def test_the_mean_baseline_is_the_mean_of_the_training_clips(shard_set: ShardSet) -> None:
    contract = shard_set.contract
    rows, masks = [], []
    for ref in shard_set.clips("train", 1):
        clip = shard_set.read_clip(ref)
        rows.append(conventions.encode_actions(contract, clip.action, clip.proprio[0], clip.action_states))
        masks.append(conventions.command_to_action_mask(contract, clip.action_mask))
    expected = np.average(np.stack(rows), axis=0, weights=np.stack(masks))
    mean = conventions.denormalise_action(contract, mean_action(shard_set))
    np.testing.assert_allclose(mean, expected, atol=1e-12)


def test_a_policy_that_answers_the_mean_is_no_better_than_the_mean(shard_set: ShardSet) -> None:
    mean = mean_action(shard_set)
    result = open_loop(FakePolicy(shard_set, act=lambda _: mean), shard_set, clips=5)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(result.errors["policy"], result.errors["mean_action"])
    assert all(not row["better"] for table in result.metrics()["slots"].values() for row in table.values())


def test_a_command_that_never_changes_is_no_test(shard_set: ShardSet, fake: FakePolicy) -> None:
    result = open_loop(fake, shard_set, clips=3)  # pyright: ignore[reportArgumentType]
    opening = [measure.name == "opening" for measure in result.measures]
    errors = {
        method: np.where(opening, 0.25 * (method == "policy"), values) for method, values in result.errors.items()
    }
    rows = {row["name"]: row for row in table_rows(dataclasses.replace(result, errors=errors).metrics()["slots"])}
    assert (rows["opening"]["better"], rows["opening"]["verdict"]) == (None, "untested: never changes")
    assert (rows["position"]["better"], rows["position"]["verdict"]) == (True, "better than both")


def test_holding_still_errs_by_how_far_the_command_is_from_the_state(shard_set: ShardSet, fake: FakePolicy) -> None:
    result = open_loop(fake, shard_set, clips=3)  # pyright: ignore[reportArgumentType]
    position = next(i for i, m in enumerate(result.measures) if m.name == "position")
    opening = next(i for i, m in enumerate(result.measures) if m.name == "opening")
    for row, ref in enumerate(spread(shard_set.clips("held_out", 1), 3)):
        clip = shard_set.read_clip(ref)
        valid = clip.action_mask[:, 0] > 0
        far = np.linalg.norm(clip.action[:, :3] - clip.proprio[0, :3], axis=1) * 1000
        np.testing.assert_allclose(result.errors["hold_still"][row, valid, position], far[valid], rtol=1e-9)
        wide = np.abs(clip.action[:, 7] - clip.proprio[0, 7])
        np.testing.assert_allclose(result.errors["hold_still"][row, valid, opening], wide[valid], atol=1e-12)


def test_holding_still_takes_the_mean_where_the_state_says_nothing_of_the_command(contract: Contract) -> None:
    gripper = contract.slot("gripper").model_copy(update={"command_units": ("1",)})
    changed = contract.model_copy(update={"slots": (contract.slot("tool"), gripper)})
    mean = np.random.default_rng(0).uniform(-1, 1, (8, 7))
    state = np.array([0.1, 0.2, 0.3, 1.0, 0.0, 0.0, 0.0, 0.05])
    still = hold_still(changed, state, mean)
    np.testing.assert_allclose(still[:, 6], mean[:, 6])
    np.testing.assert_allclose(conventions.denormalise_action(changed, still)[:, :6], 0.0, atol=1e-15)
    np.testing.assert_allclose(conventions.denormalise_action(contract, hold_still(contract, state, mean))[:, 6], 0.05)


def test_clips_are_spread_evenly_and_each_has_its_own_seed(shard_set: ShardSet) -> None:
    refs = shard_set.clips("held_out", 1)
    assert [ref.start for ref in spread(refs, 3)] == [0, len(refs) // 2, len(refs) - 1]
    assert spread(refs, 10_000) == refs
    policy, done = FakePolicy(shard_set), []
    open_loop(policy, shard_set, clips=11, advance=done.append)  # pyright: ignore[reportArgumentType]
    assert policy.seeds == list(range(100, 111))
    assert sum(done) == 11


def test_a_set_without_held_out_clips_is_refused(shard_set: ShardSet, fake: FakePolicy) -> None:
    segments = tuple(segment for segment in shard_set.index.segments if segment.split == "train")
    bare = dataclasses.replace(shard_set, index=shard_set.index.model_copy(update={"segments": segments}))
    with pytest.raises(
        UserError,
        match=r"set: holds no held-out clips\. Fix: .*--split train; .*shards resplit \S+ NEW --held-out 0.5`",
    ):
        open_loop(fake, bare, clips=3)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def bundle(shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that loads as an untrained policy which errs by 3 mm along x."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shard_set.contract.save(folder / "contract.json")

    def act(clip: Any) -> np.ndarray:
        off = dataclasses.replace(clip, action=clip.action + np.array([0.003, 0, 0, 0, 0, 0, 0, 0]))
        return policy.recorded_action(off)

    policy = FakePolicy(shard_set, act=act, trained=False)
    monkeypatch.setattr(Policy, "load", classmethod(lambda cls, path: policy))
    return folder


def test_evaluate_writes_numbers_plot_and_page(bundle: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    out, said = tmp_path / "out", io.StringIO()
    result, _ = evaluate_bundle(bundle, shard_set.folder, out, 6, Console(file=said, width=120))
    metrics = json.loads((out / "metrics.json").read_text())
    told = {"bundle": str(bundle), "shards": str(shard_set.folder), "with_future": True}
    assert metrics == told | result.metrics()
    assert metrics["slots"]["tool"]["position"]["policy"] == pytest.approx(3.0, abs=1e-3)
    assert metrics["dimensions"]["tool"]["x"]["policy"] == pytest.approx(3.0, abs=1e-3)
    assert metrics["dimensions"]["tool"]["y"]["policy"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["slots"]["tool"]["position"]["better"] is True
    horizon = metrics["by_horizon"]["tool"]["position"]
    assert all(horizon[method][0] is not None and len(horizon[method]) == 8 for method in METHODS)
    assert metrics["horizon_seconds"] == pytest.approx([index / 10 for index in range(8)])
    assert {path.name for path in out.iterdir()} == {"metrics.json", "horizon.png", "report.html"}
    page = (out / "report.html").read_text()
    assert "http" not in page
    assert 'src="data:image/png;base64,' in page
    assert "Untrained backbone" in page
    assert figure(metrics["slots"]["tool"]["position"]["hold_still"]) in page
    assert "better than both" in said.getvalue()
    assert "untrained backbone" in said.getvalue()


def test_evaluate_without_a_folder_only_prints(bundle: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    evaluate_bundle(bundle, shard_set.folder, None, 2, Console(file=io.StringIO()))
    assert sorted(tmp_path.iterdir()) == before


def test_evaluate_leaves_a_full_folder_alone(bundle: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match=r"out: exists already and is not an empty folder"):
        evaluate_bundle(bundle, shard_set.folder, tmp_path / "out", 2, Console(file=io.StringIO()))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_bundle_and_shards_of_two_preparations_are_refused_and_leave_nothing(
    bundle: Path,
    contract_with: Callable[..., Contract],
    make_shard_set: Callable[[Path, Contract], ShardSet],
    tmp_path: Path,
) -> None:
    other = make_shard_set(tmp_path / "other", contract_with(embodiment="another-arm"))
    with pytest.raises(
        UserError, match=r"bundle/contract\.json: does not hold the contract of .*other/contract\.json: emb"
    ):
        evaluate_bundle(bundle, other.folder, tmp_path / "out", 2, Console(file=io.StringIO()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]


def test_summary_lines_say_what_the_demo_shows() -> None:
    row = {"unit": "mm", "policy": 12.34, "mean_action": 20.06, "hold_still": 35.0, "better": True}
    turn = {"unit": "deg", "policy": 0.4567, "mean_action": 1.0, "hold_still": None, "better": None}
    grip = {"unit": "1", "policy": 0.25, "mean_action": 0.5, "hold_still": 0.5, "better": True}
    metrics = {"slots": {"arm": {"position": row, "rotation": turn}, "gripper": {"command": grip}}}
    assert summary_lines(metrics) == [
        "arm position: 12.3 mm (mean action 20.1, hold still 35.0)",
        "arm rotation: 0.457 deg (mean action 1, hold still –)",
    ]
    assert summary_lines({"slots": {"gripper": {"command": grip}}}) == [
        "gripper command: 0.25 (mean action 0.5, hold still 0.5)"
    ]
