"""Two evaluations beside each other: the same one, one that is better by a known amount, others that do not fit."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xwam_ft.errors import UserError
from xwam_ft.evaluate.compare import cells, compare
from xwam_ft.evaluate.evaluate import evaluate_bundle
from xwam_ft.policy.policy import Policy
from xwam_ft.shards import ShardSet

from .fake_policy import FakePolicy


@pytest.fixture(scope="module")
def evaluated(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the recordings' own policy, world and all; tests read it."""
    place = tmp_path_factory.mktemp("evaluated")
    policy = FakePolicy(shard_set, act=lambda clip: policy.recorded_action(clip) + 0.01 * (clip.start % 3))
    policy.contract.save(place / "bundle" / "contract.json")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "load", classmethod(lambda cls, path: policy))
        screen = Console(file=said, width=160, markup=False)
        result, metrics = evaluate_bundle(
            place / "bundle", shard_set.folder, place / "out", 6, screen, split="held_out", world=True
        )
    assert json.loads((place / "out" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["slots"] == result.metrics()["slots"]
    page = (place / "out" / "report.html").read_text()
    for text in (
        "Does the future follow the actions?",
        "Does it know when it does not know?",
        "Is what it imagines one scene?",
        "Does it flicker?",
        "PSNR, what moves",
    ):
        assert text in page
        assert text[1:] in said.getvalue()
    assert page.count("data:image/png;base64,") == 3  # both plots, and a clip under other actions
    assert "no proof that it follows the actions" in page
    return place / "out"


@pytest.fixture
def changed(evaluated: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of that evaluation with other numbers."""

    def make(name: str, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Path:
        metrics = copy.deepcopy(json.loads((evaluated / "metrics.json").read_text()))
        change(metrics)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return make


def beside(first: Path, second: Path, out: Path | None = None) -> tuple[dict[str, Any], str]:
    said = io.StringIO()
    found = compare(first, second, out, Console(file=said, width=160, markup=False))
    return found, said.getvalue()


def test_an_evaluation_does_not_differ_from_itself(evaluated: Path, changed: Callable[..., Path]) -> None:
    found, _ = beside(evaluated, changed("again"))
    assert {row["section"] for row in found["rows"]} >= {"error of commands", "imagined", "action -> video"}
    for row in found["rows"]:
        assert row["difference"] == 0, row
        if row["interval_95"] is not None:
            assert (row["interval_95"], row["paired"], row["better"]) == ((0, 0), True, None)
    assert found["unlike"] == {}


def test_what_is_better_in_every_clip_is_told(evaluated: Path, changed: Callable[..., Path], tmp_path: Path) -> None:
    def worse(metrics: dict[str, Any]) -> None:
        metrics["slots"]["tool"]["position"]["policy"] += 2
        errors = metrics["per_clip"]["slots"]["tool"]["position"]
        errors[:] = [value + 2 for value in errors]
        metrics["world"]["scores"]["all"]["ssim"]["imagined"] -= 0.1
        metrics["world"]["per_clip"]["ssim"] = [value - 0.1 for value in metrics["world"]["per_clip"]["ssim"]]

    found, said = beside(evaluated, changed("worse", worse), tmp_path / "page")
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["tool position"]["interval_95"] == pytest.approx((2, 2))
    assert rows["tool position"]["better"] == rows["SSIM"]["better"] == "first"
    assert rows["tool rotation"]["better"] is None
    page = (tmp_path / "page" / "compare.html").read_text()
    assert page.count('<tr class="told">') == 2
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"compare.html", "compare.json"}
    assert "tool position" in said
    assert "no difference seen" in said


def test_other_clips_are_not_paired_and_what_one_lacks_is_said(evaluated: Path, changed: Callable[..., Path]) -> None:
    def other(metrics: dict[str, Any]) -> None:
        metrics["per_clip"]["keys"] = [f"other-{key}" for key in metrics["per_clip"]["keys"]]
        metrics["split"] = "train"
        del metrics["world"]

    found, said = beside(evaluated, changed("other", other))
    rows = {row["name"]: row for row in found["rows"]}
    low, high = rows["tool position"]["interval_95"]
    assert not rows["tool position"]["paired"]
    assert low < 0 < high
    assert found["unlike"] == {"split": ["held_out", "train"]}
    assert "unlike: split is held_out in A and train in B" in said
    assert "measured on other clips" in said
    assert [line[-1] for line in cells(found) if line[1] == "PSNR"] == ["measured in one alone"]


def test_success_rates_are_compared_by_episode(tmp_path: Path) -> None:
    def closed(name: str, wins: list[bool]) -> Path:
        runs = [{"seed": seed, "success": win} for seed, win in enumerate(wins)]
        metrics = {
            "bundle": name,
            "env": "e",
            "of": len(wins),
            "rate": np.mean(wins),
            "seconds_a_chunk": 0.1,
            "runs": runs,
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        return tmp_path / name

    found, _ = beside(closed("a", [False] * 10), closed("b", [True] * 8 + [False] * 2))
    row = found["rows"][0]
    assert (row["difference"], row["paired"], row["better"]) == (pytest.approx(0.8), True, "second")


def test_mistakes_are_one_sentence(evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: holds no metrics\.json\. Fix: give the OUT folder"):
        beside(evaluated, tmp_path / "absent")
    (tmp_path / "imagined").mkdir()
    (tmp_path / "imagined" / "metrics.json").write_text('{"bundle": "x", "scores": {}}')
    with pytest.raises(UserError, match=r"metrics\.json: is not an evaluation's"):
        beside(evaluated, tmp_path / "imagined")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "metrics.json").write_text('{"bundle": "x", "env": "e", "rate": 1}')
    with pytest.raises(
        UserError, match=r"closed: was evaluated in closed loop, and .*out in open loop\. Fix: give two"
    ):
        beside(evaluated, tmp_path / "closed", tmp_path / "page")
    assert not (tmp_path / "page").exists()
