"""What is remembered of recordings shows: a policy that errs 1 mm on its training clips and 4 mm on others."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xwam_ft.evaluate import train_split
from xwam_ft.evaluate.evaluate import evaluate_bundle
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.seen import digests
from xwam_ft.shards import Clip, ShardSet

from .fake_policy import FakePolicy


class Remembering(FakePolicy):
    def __init__(self, shards: ShardSet, unseen: float) -> None:
        held_out = {ref.key for ref in shards.clips("held_out", 1)}

        def act(clip: Clip) -> np.ndarray:
            off = np.array([unseen if clip.key in held_out else 0.001, 0, 0, 0, 0, 0, 0, 0])
            return self.recorded_action(dataclasses.replace(clip, action=clip.action + off))

        super().__init__(shards, act)


def evaluated(
    policy: Any, shards: ShardSet, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[dict[str, Any], str, str]:
    bundle, out, said = folder / "bundle", folder / "out", io.StringIO()
    bundle.mkdir()
    policy.contract.save(bundle / "contract.json")
    monkeypatch.setattr(Policy, "load", classmethod(lambda cls, path: policy))
    options = {"train_split": True, **options}
    _, metrics = evaluate_bundle(bundle, shards.folder, out, 64, Console(file=said, width=160), **options)
    return metrics, said.getvalue(), (out / "report.html").read_text()


@pytest.mark.parametrize(("unseen", "told"), [(0.004, True), (0.0021, True), (0.0019, False)])
def test_a_wide_gap_is_said(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unseen: float, told: bool
) -> None:
    monkeypatch.setattr(train_split, "FEW", 2)  # the fixture is small
    metrics, said, page = evaluated(Remembering(shard_set, unseen), shard_set, tmp_path, monkeypatch)
    cell = metrics["train_split"]["slots"]["tool"]["position"]
    assert cell == {
        "unit": "mm",
        "train": pytest.approx(1, abs=1e-3),
        "held_out": pytest.approx(1000 * unseen, abs=1e-3),
    }
    assert metrics["train_split"]["clips"] == min(64, len(shard_set.clips("train", 1)))
    assert "tool" in said
    sentence = f"tool position errs {1000 * unseen:.1f} times as much on held-out clips"
    assert (sentence in said, sentence[5:] in page) == (told, told)


def test_few_clips_say_nothing(shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_split, "FEW", 10_000)
    metrics, said, _ = evaluated(Remembering(shard_set, 0.004), shard_set, tmp_path, monkeypatch)
    assert "train_split" in metrics
    assert "times as much" not in said


def test_of_a_set_that_it_was_not_trained_on_nothing_is_claimed(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Remembering(shard_set, 0.004)
    quantiles = policy.contract.quantiles
    wider = quantiles.model_copy(update={"action_high": tuple(1.5 * high for high in quantiles.action_high)})
    policy.contract = policy.contract.model_copy(update={"quantiles": wider})
    metrics, said, page = evaluated(policy, shard_set, tmp_path, monkeypatch)
    assert "train_split" not in metrics
    assert "trained on" not in said
    assert "trained on" not in page


def test_the_train_split_itself_is_not_laid_beside_itself(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _, _ = evaluated(Remembering(shard_set, 0.004), shard_set, tmp_path, monkeypatch, split="train")
    assert "train_split" not in metrics


def test_held_out_episodes_that_it_was_trained_on_are_told(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings that were split anew: what is held out now may be what a bundle learned from."""
    policy = FakePolicy(shard_set, lambda clip: np.zeros((8, 7)))
    of = digests(shard_set, "train") | digests(shard_set, "held_out")
    assert len(set(of.values())) == len(shard_set.index.episodes)
    assert digests(shard_set, "held_out", [-1]) == {}
    held_out = {entry.index for entry in shard_set.index.episodes if entry.split == "held_out"}
    for number, (seen, told) in enumerate([(held_out, True), (set(of) - held_out, False), (set(), False)]):
        policy.seen = frozenset(of[episode] for episode in seen)
        folder = tmp_path / str(number)
        folder.mkdir()
        metrics, said, page = evaluated(policy, shard_set, folder, monkeypatch, train_split=False)
        assert metrics.get("trained_on") == ({"episodes": sorted(held_out), "of": len(held_out)} if told else None)
        for text in (" ".join(said.split()), page):
            assert ("held-out episodes are among those this policy was trained on" in text) == told
    policy.seen = frozenset(of.values())
    folder = tmp_path / "train"
    folder.mkdir()
    metrics, _, _ = evaluated(policy, shard_set, folder, monkeypatch, train_split=False, split="train")
    assert "trained_on" not in metrics  # that is what was asked for


def test_a_bundle_knows_its_training_episodes_in_another_set(bundle: Path, trained_run: Path) -> None:
    shards = ShardSet.open(trained_run.parent / "shards")
    policy = Policy.load(bundle, selfcheck=False)
    assert policy.seen == frozenset(digests(shards, "train").values())
    assert policy.seen.isdisjoint(digests(shards, "held_out").values())
