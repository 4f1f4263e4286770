"""Any checkpoint of a run, without exporting it and by its number: the same policy to the bit, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import xwam_ft
from xwam_ft.errors import UserError
from xwam_ft.export.checkpoint import chosen_checkpoint, policy_source
from xwam_ft.locks import sole_writer
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.runs.best import best_checkpoint
from xwam_ft.shards import ShardSet

QUIET = Console(quiet=True)


@pytest.fixture
def history(trained_run: Path, tmp_path: Path) -> Path:
    """A run folder with checkpoints of three steps, and numbers of four."""
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    for name in ("recipe.yaml", "contract.json"):
        shutil.copy(trained_run / name, run / name)
    for step in (10, 20, 30):
        (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    rows = [(5, 0.1, 3.0), (10, 0.4, 5.0), (20, 0.2, 7.0), (30, 0.3, 5.0)]
    lines = [
        {"step": step, "held_out/total": total, "held_out/tool_position": off, "held_out_dim/tool_x": off}
        for step, total, off in rows
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"step": 1, "train/loss_total": 2.0}, *lines])
    (run / "metrics.jsonl").write_text(text)
    return run


@pytest.mark.slow
def test_a_checkpoint_asked_without_exporting_is_the_bundle_to_the_bit(
    trained_run: Path, bundle: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    exported, source = Policy.load(bundle, "cpu"), policy_source(Path(f"{trained_run}@2"), QUIET)
    live = source.load()
    inputs = [clip_observation(exported.contract, shard_set.read_clip(ref)) for ref in shard_set.clips(None, 20)]
    np.testing.assert_array_equal(
        live.infer_batch(inputs, [0] * len(inputs)), exported.infer_batch(inputs, [0] * len(inputs))
    )
    ours, theirs = live.imagine(inputs[0], 1), exported.imagine(inputs[0], 1)
    np.testing.assert_array_equal(ours.rgb, theirs.rgb)
    np.testing.assert_array_equal(ours.depth, theirs.depth)
    assert live.action_prefix == exported.action_prefix
    of_run = xwam_ft.evaluate(trained_run, shard_set.folder, clips=2, latency=False, out=tmp_path / "e")  # pyright: ignore[reportCallIssue]
    of_bundle = xwam_ft.evaluate(bundle, shard_set.folder, clips=2, latency=False)  # pyright: ignore[reportCallIssue]
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["bundle"] == f"{trained_run}@2"
    assert of_run.metrics["slots"] == of_bundle.metrics["slots"]
    episode = shard_set.clips("held_out", 1)[0].entry.episode
    seen = xwam_ft.imagine(f"{trained_run}@2", shard_set.folder, episode, tmp_path / "run")
    again = xwam_ft.imagine(bundle, shard_set.folder, episode, tmp_path / "bundle")
    assert seen.metrics["scores"] == again.metrics["scores"]


def test_a_checkpoint_that_is_not_there_is_told(trained_run: Path) -> None:
    with pytest.raises(UserError, match=r"has no checkpoint of step 7.*that it kept: 2"):
        policy_source(Path(f"{trained_run}@7"), QUIET)
    with pytest.raises(UserError, match=r"names a step of .*nothing, which is not a run folder"):
        policy_source(trained_run / "nothing@3", QUIET)


def test_the_best_is_where_a_number_was_lowest(history: Path) -> None:
    found = best_checkpoint(history, "total")
    assert (found.step, found.value, found.gone) == (20, 0.2, (5, 0.1))
    assert str(found) == (
        "best by held_out/total: step 20 with 0.2, of the checkpoints that are kept; step 5 had 0.1, and its "
        "checkpoint is gone"
    )
    assert best_checkpoint(history, "held_out_dim/tool_x").step == 30, "of equal ones the latest"
    assert chosen_checkpoint(history, None, "total")[:2] == (history, 20)
    with (history / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 30, "held_out/total": float("nan")}) + "\n")
    assert best_checkpoint(history, "total").step == 20, "what is no number is never the lowest"


def test_a_number_that_was_not_logged_lists_those_that_were(history: Path) -> None:
    with pytest.raises(UserError, match=r"did not log \(did you mean 'held_out/tool_position'\?\).*held_out/total"):
        best_checkpoint(history, "held_out/tool_positon")
    with pytest.raises(UserError, match="says twice which checkpoint is meant"):
        chosen_checkpoint(Path(f"{history}@10"), None, "total")
    for step in (10, 20, 30):
        shutil.rmtree(history / "checkpoints" / f"step-{step:06d}")
    (history / "checkpoints" / "step-000040").mkdir()
    with pytest.raises(UserError, match=r"keeps checkpoints of steps 40, and held_out/total was measured at 5, 10"):
        best_checkpoint(history, "total")
    (history / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="was never validated"):
        best_checkpoint(history, "total")


def test_runs_are_listed_with_step_state_and_numbers(history: Path, trained_run: Path) -> None:
    damaged = history.parent / "b [bold]"
    shutil.copytree(history, damaged)
    (damaged / "recipe.yaml").write_text("nonsense: 1")
    shutil.copytree(trained_run, history.parent / "group" / "c")
    said = io.StringIO()
    with sole_writer(history, "training"):
        found = xwam_ft.runs(history.parent, progress=Console(file=said, width=200)).runs
    rows = {run.name: run for run in found}
    assert {name: run.state for name, run in rows.items()} == {
        "a": "running",
        "b [bold]": "damaged",
        "group/c": "finished",
    }
    assert (rows["a"].step, rows["a"].kept, rows["a"].measured_at) == (30, (10, 20, 30), 30)
    assert rows["a"].held_out == {"total": 0.3, "tool_position": 5.0}
    assert "total 0.3, tool_position 5" in said.getvalue()
    assert "b [bold]" in said.getvalue()
    assert "unknown key 'nonsense'" in said.getvalue()
    assert xwam_ft.runs(history).runs[0].state == "finished"  # of two steps, and it has done thirty


def test_two_runs_are_compared_by_their_recipes(history: Path) -> None:
    other = history.parent / "other"
    shutil.copytree(history, other)
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("lr_lora: 0.01", "lr_lora: 0.02"))
    found = xwam_ft.runs(history.parent, diff=("a", other))
    assert found.differences == {"optim.lr_lora": (0.01, 0.02)}
    assert xwam_ft.runs(history.parent, diff=("a", "a")).differences == {}
    assert xwam_ft.runs(history.parent, diff=("tiny_cpu", "tiny_cpu.yaml")).differences == {}
    assert "trainer.max_steps" in xwam_ft.runs(history.parent, diff=("a", "tiny_cpu")).differences
    said = r"othr: is neither a run nor a recipe \(did you mean 'other'\?\).* a run of .* \(a, other\).*tiny_cpu"
    with pytest.raises(UserError, match=said):
        xwam_ft.runs(history.parent, diff=("a", "othr"))


def test_names_are_whole_however_narrow_the_console(history: Path) -> None:
    long = "push the red cube, second try with forty demonstrations"
    shutil.copytree(history, history.parent / long)
    for width, header in ((200, "written"), (100, "held out"), (80, "state"), (70, "step"), (40, "")):
        said = io.StringIO()
        xwam_ft.runs(history.parent, progress=Console(file=said, width=width))
        lines = said.getvalue().splitlines()
        assert any(long in line for line in lines)
        assert any("30 of 2" in line for line in lines)
        table = [line for line in lines if line[:1] in "┏┃┡│└"]
        assert all(cell_len(line) <= width for line in table)
        assert bool(table) == bool(header)
        assert not table or header in table[1]
    said = io.StringIO()
    xwam_ft.runs(history.parent, diff=(long, "tiny_cpu"), progress=Console(file=said, width=60))
    assert f"    {long}: 2\n" in said.getvalue()


@pytest.mark.parametrize(("name", "said"), [("nowhere", "is not there"), ("empty", "is neither a run nor a bundle")])
def test_what_is_neither_run_nor_bundle_is_told_with_both_ways(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as told:
        policy_source(tmp_path / name, QUIET)
    assert (told.value.what, Path(told.value.where)) == (said, tmp_path / name)
    assert "give RUN, RUN@STEP or BUNDLE" in told.value.fix
