"""The grid goes on where it stopped and mixes nothing; the page in docs/ is what the kept files give."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import _ablations_page as page
import ablations
from xwam_ft.errors import UserError
from xwam_ft.evaluate.closed_loop import success_interval
from xwam_ft.policy.source import PolicySource
from xwam_ft.recipe import load_recipe

ROOT = Path(__file__).parents[2]
HELD_OUT = {"arm": {"position": {"unit": "mm", "policy": 9.5}, "rotation": {"unit": "deg", "policy": 0.4}}}


class Machine:
    """Stands in for recording, training and the simulator; remembers what it was asked for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.dies_at: str | None = None
        self.under: dict[str, Any] = {}  # (acts with the future, perturbations, (delay, way)) of each evaluation
        patch.setattr(ablations, "shards_of", lambda work, *_, **__: work / "shards")
        patch.setattr(ablations, "encode_shards", lambda *_: None)
        patch.setattr(ablations, "bundle_of", self.train)
        patch.setattr(ablations, "evaluate_in_environment", self.evaluate)
        patch.setattr(ablations, "told_of", lambda run: {"clips": json.loads((run / "steps.json").read_text()) * 16})
        policy = SimpleNamespace(settings=ablations_settings(), contract=None)
        shards = SimpleNamespace(under=lambda *_: None)
        patch.setattr(ablations.Policy, "load", lambda _: policy)
        patch.setattr(ablations.ShardSet, "open", lambda _: shards)
        found = SimpleNamespace(metrics=lambda: {"clips": 64, "slots": HELD_OUT})
        patch.setattr(ablations, "open_loop", lambda *_, **__: found)
        patch.setattr(ablations, "world", self.world)
        policy.show_future = lambda: self.ask("show the future")

    def ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self.dies_at:
            raise KeyboardInterrupt

    def train(self, recipe: Any, place: Path) -> Path:
        bundle = place / "bundle"
        if not bundle.exists():
            self.ask(f"train {place.name}")
            (place / "run").mkdir(parents=True)
            (place / "run/steps.json").write_text(json.dumps(recipe.trainer.max_steps))
            bundle.mkdir()
        return bundle

    def world(self, *_: Any, clips: int) -> Any:
        self.ask("judge pictures")
        score = 20.0 + len([asked for asked in self.asked if asked == "judge pictures"])
        return SimpleNamespace(metrics={"clips": clips, "scores": {"all": {"psnr_moving": {"imagined": score}}}})

    def evaluate(
        self, bundle: Path | PolicySource, env: str, *, episodes: int, out: Path, perturb: list[str], **given: Any
    ) -> None:
        assert env == "metaworld:push"
        self.ask(f"evaluate {out.parent.name}/{out.name}")
        late = given.get("answer_delay"), given.get("meanwhile")
        self.under[f"{out.parent.name}/{out.name}"] = isinstance(bundle, PolicySource), perturb, late
        draws = np.random.default_rng(len(self.asked)).integers(0, 2, episodes)
        kept = {key: given[key] for key in ("seed", "max_steps", "action_steps")}
        kept |= {"execute": 8, "seconds_a_chunk": 0.05, "perturb": perturb}
        out.mkdir()
        (out / "metrics.json").write_text(json.dumps(kept | {"runs": [{"success": bool(one)} for one in draws]}))


def ablations_settings() -> Any:
    from xwam_ft.policy.policy import Settings

    return Settings()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def run(work: Path, *questions: str, seeds: int = 1, episodes: int = 6, overrides: list[str] | None = None) -> None:
    ablations.run(work, list(questions), seeds, episodes, overrides)


def test_a_grid_goes_on_where_it_was_stopped_and_shares_cells(machine: Machine, tmp_path: Path) -> None:
    machine.dies_at = "evaluate no_video_seed0/push_4"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "video", seeds=2)
    whole = ["train base_seed0", "evaluate base_seed0/push_4", "train no_video_seed0", "evaluate no_video_seed0/push_4"]
    assert machine.asked == whole
    machine.dies_at, machine.asked = None, []
    run(tmp_path, "video", seeds=2)
    seed1 = ["train base_seed1", "evaluate base_seed1/push_4", "train no_video_seed1", "evaluate no_video_seed1/push_4"]
    assert machine.asked == ["evaluate no_video_seed0/push_4", *seed1]
    machine.asked = []
    run(tmp_path, "video", seeds=2)
    assert machine.asked == []
    run(tmp_path, "demonstrations")  # the base is there already
    assert machine.asked[0] == "train demonstrations_20_seed0"
    assert not any("base" in asked for asked in machine.asked)


def test_what_a_kept_file_answers_is_not_made_again(machine: Machine, tmp_path: Path) -> None:
    """A grid may be carried on where nothing but the repository is left; files of other budgets count for nothing."""
    kept = tmp_path / "kept"
    run(tmp_path / "first", "video")
    ablations.keep(tmp_path / "first", kept)
    machine.asked = []
    ablations.run(tmp_path / "other", ["video"], 2, 6, None, kept)
    assert not any("seed0" in asked for asked in machine.asked)
    assert "train base_seed1" in machine.asked
    machine.asked = []
    ablations.run(tmp_path / "longer", ["video"], 1, 8, None, kept)
    ablations.run(tmp_path / "steps", ["noise"], 1, 6, None, kept)
    ablations.run(tmp_path / "set", ["video"], 1, 6, ["trainer.max_steps=9"], kept)
    assert machine.asked.count("train base_seed0") == 3


def test_a_cell_that_another_process_is_at_is_left_to_it(machine: Machine, tmp_path: Path) -> None:
    from xwam_ft.locks import sole_writer

    base = ablations.QUESTIONS["video"].cells[0]
    with sole_writer(ablations.place_of(tmp_path, base, 0), "making this cell"):
        run(tmp_path, "video")
    assert machine.asked == ["train no_video_seed0", "evaluate no_video_seed0/push_4"]


def test_another_number_of_episodes_is_refused(machine: Machine, tmp_path: Path) -> None:
    run(tmp_path, "video")
    with pytest.raises(UserError, match=r"is of 6 episodes, and 7 are asked for.*--episodes 6"):
        run(tmp_path, "video", episodes=7)


def test_an_unknown_question_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown question 'noize' \(did you mean 'noise'\?\)"):
        run(tmp_path, "noize")


def test_every_cell_is_a_recipe_of_its_own_and_of_the_same_budget(tmp_path: Path) -> None:
    recipes = {cell.name: ablations.recipe_of(cell, 0, tmp_path, []) for cell in ablations.cells()}
    names = list(recipes)
    for index, name in enumerate(names):
        trainer = recipes[name].trainer
        assert trainer.max_steps * trainer.batch_size * trainer.accumulate == 20_000
        depth = {cell.name: cell.depth for cell in ablations.cells()}
        assert all(recipes[name] != recipes[other] or depth[name] != depth[other] for other in names[:index])
    base = load_recipe(ROOT / "recipes/metaworld/full_prior.yaml", [f"data.shards={tmp_path}", *ablations.BUDGET])
    assert recipes["base"] == base
    assert ablations.recipe_of(ablations.cells()[0], 1, tmp_path, []).seed == 1


def made(machine: Machine, tmp_path: Path) -> Path:
    """Kept files of two questions."""
    run(tmp_path / "work", "noise", "robustness", seeds=2)
    ablations.keep(tmp_path / "work", tmp_path / "kept")
    return tmp_path / "kept"


def test_the_page_is_made_of_the_kept_files_alone(machine: Machine, tmp_path: Path) -> None:
    kept = made(machine, tmp_path)
    shutil.rmtree(tmp_path / "work")
    ablations.page(kept, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    found = json.loads((kept / "base_seed0.json").read_text())
    other = json.loads((kept / "base_seed1.json").read_text())
    assert found["clips"] == 20_000
    won = [one["closed_loop"]["10"]["successes"].count("1") for one in (found, other)]
    low, high = success_interval(sum(won), 12)
    each = ", ".join(f"{100 * one / 6:.0f} %" for one in won)
    row = f"| {sum(won)} of 12 ({100 * low:.0f} to {100 * high:.0f} %) | {each} | – | 50 | 9.50 mm, 0.40 deg |"
    assert f"| asynchronous, 10 % of clips with clean actions | 10 {row}" in text
    assert "Here: 20,000 clips a model, 6 episodes of at most 200 steps" in text
    assert "trained without, light=0.25" in text
    assert "Not run yet: `python benchmarks/ablations.py run WORK --question adapters`." in text
    plot = (kept / "noise.svg").read_text()
    assert plot.count("<circle") == 6 * 4
    ablations.page(kept, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == text


def test_under_difficulties_a_model_is_held_against_itself(machine: Machine, tmp_path: Path) -> None:
    kept = made(machine, tmp_path)
    for path in kept.glob("augment_none*.json"):
        found = json.loads(path.read_text())
        found["closed_loop"]["4"]["successes"] = "111111"
        found["closed_loop"]["4_light=0.25"]["successes"] = "111000"
        path.write_text(json.dumps(found))
    ablations.page(kept, tmp_path / "page.md")
    row = next(
        line for line in (tmp_path / "page.md").read_text().splitlines() if "trained without, light=0.25" in line
    )
    assert "| -50 (" in row


def test_an_optional_future_is_asked_both_ways_and_held_against_the_joint_one(machine: Machine, tmp_path: Path) -> None:
    run(tmp_path / "work", "future")
    assert machine.under["base_seed0/push_4_light=0.5"] == (False, ["light=0.5"], (None, None))
    assert machine.under["future_optional_seed0/push_4"] == (False, [], (None, None))
    assert machine.under["future_optional_seed0/push_4_future,light=0.5"] == (True, ["light=0.5"], (None, None))
    assert machine.asked.count("train future_optional_seed0") == 1
    assert (machine.asked.count("judge pictures"), machine.asked.count("show the future")) == (3, 1)
    kept = tmp_path / "kept"
    ablations.keep(tmp_path / "work", kept)
    found = json.loads((kept / "future_optional_seed0.json").read_text())
    assert found["imagined"].keys() == {"", "future"}
    machine.asked = []
    ablations.run(tmp_path / "other", ["future"], 1, 6, None, kept)
    assert machine.asked == []
    for path, wins in ((kept / "base_seed0.json", "111111"), (kept / "future_optional_seed0.json", "111000")):
        tree = json.loads(path.read_text())
        for key in tree["closed_loop"]:
            if key.endswith("light=0.5"):
                tree["closed_loop"][key]["successes"] = wins
        path.write_text(json.dumps(tree))
    ablations.page(kept, tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text().splitlines()
    section = lines.index("## Can it act without imagining, and what does that cost?")
    rows = [line for line in lines[section:] if "light=0.5 |" in line][:3]
    assert [row.split("|")[1].strip() for row in rows] == [
        "joint, light=0.5",
        "optional, the future left out, light=0.5",
        "optional, acting with it, light=0.5",
    ]
    assert "| – |" in rows[0]
    assert all("| -50 (" in row for row in rows[1:])
    (joint,) = [line for line in lines if line.startswith("| joint |")]
    assert joint.endswith("| 21.0 dB |")
    (acting,) = [line for line in lines if line.startswith("| optional, acting with it |")]
    assert acting.endswith("| 23.0 dB |")


def test_late_answers_are_asked_of_every_way(machine: Machine, tmp_path: Path) -> None:
    run(tmp_path / "work", "chunking")
    assert machine.under["base_seed0/push_4_late=8,hold"] == (False, [], (8, "hold"))
    assert machine.under["prefixes_seed0/push_4_late=2,prefix"] == (False, [], (2, "prefix"))
    assert len(machine.under) == 4 + 4 + 3 + 3
    ablations.keep(tmp_path / "work", tmp_path / "kept")
    ablations.page(tmp_path / "kept", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| with prefixes, goes on from one, late=8 | 4 |" in text
    first = next(line for line in text.splitlines() if line.startswith("| trained without prefixes, waits | 4 |"))
    assert "| – |" in first
    for cell in ablations.QUESTIONS["chunking"].cells:
        chosen = ablations.recipe_of(cell, 0, tmp_path, [])
        assert chosen.noise.action_prefix.max == (8 if cell.name == "prefixes" else 0)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_files_that_do_not_belong_together_are_refused(machine: Machine, tmp_path: Path) -> None:
    kept, out = made(machine, tmp_path), tmp_path / "page.md"
    path = kept / "clean_0_seed0.json"
    before = path.read_text()
    change(path, clips=40_000)
    with pytest.raises(UserError, match=r"clean_0_seed0.json: has clips 40000, and augment_none_seed0.json has 20000"):
        ablations.page(kept, out)
    path.write_text(before)
    change(path, sets=["noise.clean_action_probability=0.75"])
    with pytest.raises(UserError, match="is of a recipe that no question asks for"):
        ablations.page(kept, out)
    path.write_text(before.replace('"max_steps": 200', '"max_steps": 100', 1))
    with pytest.raises(UserError, match="has max_steps"):
        ablations.page(kept, out)
    assert not out.exists()


def test_a_paired_difference_is_of_episodes_that_both_met() -> None:
    first = {0: np.array([1, 1, 0, 0]), 1: np.array([1, 1, 1, 1])}
    same = page.paired(first, first)
    assert same == (0.0, (0.0, 0.0))
    # Always one success of two more, whatever is drawn: no spread, though the rates vary between episodes.
    second = {0: np.array([1, 1, 1, 1]), 2: np.array([0, 0, 0, 0])}
    found = page.paired({0: np.array([0, 0, 0, 0])}, second)
    assert found == (100.0, (100.0, 100.0))
    mean, (low, high) = page.paired(first, second) or (0, (0, 0))  # seed 0 alone is of both
    assert mean == 50.0
    assert low <= 50.0 <= high
    assert page.paired({0: first[0]}, {1: first[1]}) is None


def test_the_committed_page_is_what_the_committed_files_give() -> None:
    text, plots = page.page_of(ablations.KEPT, ablations.QUESTIONS, ablations.PAGE)
    assert ablations.PAGE.read_text() == text
    assert {path.name: path.read_text() for path in ablations.KEPT.glob("*.svg")} == {
        path.name: plot for path, plot in plots.items()
    }
