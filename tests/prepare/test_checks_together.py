"""The linter over episodes, through `prepare`: what rejects, what goes on, and that sound recordings are left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.spatial.transform import Rotation

from shared import QUIET
from xwam_ft.bundled import bundled
from xwam_ft.errors import UserError
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.action_semantics import guess_actions
from xwam_ft.prepare.checks import together
from xwam_ft.prepare.checks.commands import check_commands
from xwam_ft.prepare.checks.numbers import check_numbers
from xwam_ft.prepare.checks.ranges import check_ranges
from xwam_ft.prepare.checks.table import check_table
from xwam_ft.prepare.checks.timing import check_time
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.embodiment.slots import motion, plan_slots
from xwam_ft.prepare.findings import Finding
from xwam_ft.prepare.sources import open_source
from xwam_ft.quantiles import Motion, placeholder, quantiles

EMBODIMENTS = Path(__file__).parents[2] / "recipes" / "embodiments"


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a small preparation is matplotlib; test_report.py looks at the plots."""
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def wave(frames: int = 300, columns: int = 3, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(frames)[:, None]
    return np.sin(time * random.uniform(0.02, 0.05, columns) + random.uniform(0, 6, columns))


def ahead(state: np.ndarray, frames: int) -> np.ndarray:
    return state[np.minimum(np.arange(len(state)) + frames, len(state) - 1)]


def test_what_an_action_is_told_from_the_numbers() -> None:
    states = [wave(seed=seed) for seed in range(2)]
    noise = np.random.default_rng(5).normal(0, 0.01, states[0].shape)
    target = guess_actions(states, [ahead(s, 4) + noise for s in states])
    assert (target.kind, target.sure, target.lead) == ("target", "sure", 4)
    assert guess_actions(states, [ahead(s, 1) for s in states]).kind == "next_state"
    assert guess_actions(states, states).kind == "copy"
    change = [np.diff(s, axis=0, append=s[-1:]) * 7.0 + noise / 10 for s in states]  # in units of its own
    found = guess_actions(states, change)
    assert (found.kind, found.sure) == ("delta", "sure")
    assert guess_actions(states, [np.random.default_rng(1).normal(size=s.shape) for s in states]).kind == "unknown"
    assert guess_actions([states[0][:20]], [ahead(states[0][:20], 1)]).sure == "unsure"
    assert guess_actions([], []).kind == "unknown"


def judged(contract: Any, command: Any) -> list[tuple[str, str, str]]:
    """The findings about a pose slot whose position follows waves."""
    motions = []
    for seed in range(2):
        state = np.zeros((300, 8))
        state[:, :3], state[:, 3] = 0.2 * wave(seed=seed), 1.0
        told = state.copy()
        told[:, :3] = command(state[:, :3])
        motions.append(Motion(state, told, np.ones_like(told)))
    return [(f.check, f.severity, f.subject) for f in check_commands(contract.slots, motions)]


def test_commands_against_the_declaration(contract: Any) -> None:
    assert judged(contract, lambda s: ahead(s, 3) + 1e-3) == []
    assert judged(contract, lambda s: np.diff(s, axis=0, append=s[-1:])) == [("delta-commands", "error", "tool")]
    assert judged(contract, lambda s: ahead(s, 1)) == [("next-state-commands", "note", "tool")]
    assert judged(contract, lambda s: s) == [("copied-commands", "warning", "tool")]
    random = np.random.default_rng(0)
    assert judged(contract, lambda s: random.normal(size=s.shape)) == [("unrelated-commands", "warning", "tool")]
    assert judged(contract, lambda s: 0 * s + 0.3) == []  # a command that holds still follows nothing


def ranged(contract: Any, change: Any) -> dict[str, tuple[str, str]]:
    state = np.zeros((400, 8))
    turn = Rotation.from_rotvec(0.3 * wave(400, seed=1)).as_quat(scalar_first=True)
    state[:, :3], state[:, 3:7], state[:, 7] = 0.2 * wave(400), turn, 0.04 + 0.03 * wave(400)[:, 0]
    change(state)
    motions = [Motion(state, ahead(state, 1), np.ones_like(state))]
    fields = {name: getattr(contract, name) for name in ("embodiment", "cameras", "image", "timing", "slots", "depth")}
    draft = placeholder({**fields, "prompts": ()})
    made = draft.model_copy(update={"quantiles": quantiles(draft, motions)})
    return {f"{f.subject}: {f.check}": (f.severity, f.text) for f in check_ranges(made, motions)}


def test_quantiles_against_extremes(contract: Any) -> None:
    def outlier(state: np.ndarray) -> None:
        state[200, 0] = 9.0

    def within(state: np.ndarray) -> None:
        state[200, 0] = 0.6  # three times what 98 % stay within

    def beyond(state: np.ndarray) -> None:
        state[200, 0] = 1.0

    def constant(state: np.ndarray) -> None:
        state[:, 7] = 0.04

    def trembling(state: np.ndarray) -> None:
        state[:, :3] *= 0.01

    assert ranged(contract, lambda state: None) == {}
    found = ranged(contract, outlier)
    assert found["tool state: heavy-tails"][0] == "warning"
    assert "x reaches 9 m" in found["tool state: heavy-tails"][1]
    assert "tool state: heavy-tails" not in ranged(contract, within)
    assert "x reaches 1 m (5)" in ranged(contract, beyond)["tool state: heavy-tails"][1]
    found = ranged(contract, constant)
    assert found["gripper state: near-constant"][0] == "note"
    assert "hardly moves in width" in found["gripper state: near-constant"][1]
    found = ranged(contract, trembling)
    assert found["tool state: near-constant"][0] == "warning"
    assert "stretches its noise" in found["tool state: near-constant"][1]


def prepared(raw: Path, out: Path, embodiment: Path, **more: Any) -> Any:
    options = {"depth": None, "workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET, **more}
    return pipeline.prepare([raw], out, embodiment=embodiment, **options)


def deltas(lerobot: Any) -> Any:
    """Three recordings whose actions are changes of the state."""
    made = lerobot.recording([80, 80, 80])
    for number in range(3):
        smooth = wave(80, seed=number).astype(np.float32)
        made.states[number] = smooth
        made.actions[number] = np.diff(smooth, axis=0, append=smooth[-1:])
    return made


@pytest.mark.slow
def test_changes_read_as_targets_reject_and_strict_stops(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    raw = lerobot.v21(tmp_path / "raw", deltas(lerobot))
    with pytest.raises(
        UserError, match=r"all 3 episodes are rejected .*'arm' are changes of the state, and are read as"
    ):
        prepared(raw, tmp_path / "out", toy)
    with pytest.raises(UserError, match="raw episode 0: the recorded commands of 'arm' are changes"):
        prepared(raw, tmp_path / "strict", toy, strict=True)
    declared = tmp_path / "declared.yaml"
    declared.write_text(toy.read_text().replace("units: rad}", "units: rad, command: next_state}"))
    outcome = prepared(raw, tmp_path / "declared", declared)
    assert (outcome.episodes, outcome.rejected) == (3, [])


def test_every_episode_of_changes_among_targets_is_rejected_not_those_of_a_sample(
    tmp_path: Path, toy: Path, lerobot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "JUDGED", 4)
    made = lerobot.recording([80] * 9)
    for number in range(9):
        smooth = wave(80, seed=number).astype(np.float32)
        ahead = np.concatenate([smooth[3:], smooth[-1:].repeat(3, axis=0)])
        made.states[number] = smooth
        made.actions[number] = ahead if number not in (1, 4, 7) else np.diff(smooth, axis=0, append=smooth[-1:])
    outcome = prepared(lerobot.v21(tmp_path / "raw", made), tmp_path / "out", toy)
    assert sorted(result.index for result in outcome.rejected) == [1, 4, 7]


def test_findings_are_kept_grouped_and_printed(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    made = lerobot.recording([40, 40, 40])
    made.pictures[1][:] = 0
    for number in (0, 2):
        made.states[number][:, 2] = 0.5  # the gripper
    raw = lerobot.v21(tmp_path / "raw", made)
    with (tmp_path / "log").open("w") as log:
        outcome = prepared(raw, tmp_path / "out", toy, console=Console(width=200, file=log))
    assert [(g.severity, g.check, g.subject, g.episodes) for g in outcome.findings][:2] == [
        ("error", "black-camera", "front", [1]),
        ("warning", "still-gripper", "hand", [0, 2]),
    ]
    log_text = (tmp_path / "log").read_text()
    assert "error black-camera: camera 'front' is black [episode 1]" in log_text
    assert "warning still-gripper: gripper 'hand' never moves [episodes 0, 2]" in log_text
    assert (
        "  what to do: look at the camera's cable and exposure; leave the camera out where it stays black\n" in log_text
    )
    assert log_text.count("what to do: leave the gripper out where the task needs none") == 1
    (rejected,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert (rejected["episode"], rejected["reason"]) == (1, "camera 'front' is black")
    lines = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    assert {"episode": 1, "check": "black-camera", "severity": "error"}.items() <= next(
        line for line in lines if line["episode"] == 1 and line["severity"] == "error"
    ).items()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "gripper &#39;hand&#39; never moves" in page
    assert "episode 1, front, frame 0" in page  # with its picture, though the episode is rejected


def of_numbers(raw: Path, embodiment: Path, urdfs: list[Path]) -> list[tuple[int, Finding]]:
    """What the checks that need no pictures say of whole recordings."""
    source, spec = open_source(raw), load_embodiment(embodiment)
    slots = plan_slots(spec, source.info, embodiment, urdfs)
    found: list[tuple[int, Finding]] = []
    motions = []
    for episode in source.episodes():
        table = episode.table.read()
        state, _, command, mask = motion(slots, table, spec.timing.action_skip)
        of_it = check_table(table, slots) + check_time(table.timestamps, source.info.fps)
        of_it += check_numbers(table, slots, state, command, source.info.fps)
        found += [(episode.index, finding) for finding in of_it]
        motions.append(Motion(state, command, mask))
    return found + [(0, finding) for finding in check_commands([plan.slot for plan in slots], motions)]


def test_the_bundled_recordings_are_sound_by_their_numbers(tmp_path: Path) -> None:
    raw = bundled("recordings/metaworld_demo")
    assert of_numbers(raw, EMBODIMENTS / "metaworld_sawyer.yaml", []) == []
    # Its controller's own changes, declared as targets, are found out.
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        "name: wrong\ncameras: {corner: {source: corner}}\ntiming: {frame_skip: 4, action_skip: 1, clip_frames: 5}\n"
        'slots:\n  arm: {kind: joints, columns: [x, "y", z], units: m, '
        "command_columns: [action.raw/dx, action.raw/dy, action.raw/dz]}\n"
    )
    assert [finding.check for _, finding in of_numbers(raw, wrong, [])] == ["delta-commands"]


@pytest.mark.parametrize("space", ["poses", "joints"])
@pytest.mark.parametrize("version", ["v21", "v30"])
def test_the_g1_recordings_are_sound_by_their_numbers(real_data: Path, space: str, version: str) -> None:
    embodiment = EMBODIMENTS / f"unitree_g1_inspire_{space}.yaml"
    assert of_numbers(real_data / f"lerobot_{version}_g1", embodiment, [real_data / "urdf"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("which", ["bundled", "g1"])
def test_what_is_found_in_whole_recordings(which: str, tmp_path: Path) -> None:
    """The bundled recordings: nothing. The G1's: its left arm holds still, which is so."""
    if which == "bundled":
        raw, embodiment, urdfs = bundled("recordings/metaworld_demo"), "metaworld_sawyer", []
    else:
        data = os.environ.get("XWAM_FT_TEST_DATA")
        if not data:
            pytest.skip("XWAM_FT_TEST_DATA is not set: no real recordings here")
        raw, embodiment, urdfs = Path(data) / "lerobot_v21_g1", "unitree_g1_inspire_poses", [Path(data) / "urdf"]
    depth = "sensor" if which == "bundled" else "none"
    outcome = prepared(raw, tmp_path / "out", EMBODIMENTS / f"{embodiment}.yaml", depth=depth, urdf_dirs=urdfs)
    loud = {(g.check, g.subject) for g in outcome.findings if g.severity != "note"}
    still = {("near-constant", "left_arm state"), ("near-constant", "left_arm action")}
    assert loud <= (set() if which == "bundled" else still)
    assert which == "bundled" or ("near-constant", "left_arm state") in loud


def test_a_warning_tells_the_command_that_drops_its_episodes(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    """Said where it leaves some, and it does what it says."""
    from xwam_ft import sets

    made = lerobot.recording([40, 40, 40, 40])
    for number in (0, 2):
        made.states[number][:, 2] = 0.5  # the gripper
    raw = lerobot.v21(tmp_path / "raw", made)
    with (tmp_path / "log").open("w") as log:
        outcome = prepared(raw, tmp_path / "out", toy, console=Console(width=200, file=log))
    said = [line.strip() for line in (tmp_path / "log").read_text().splitlines() if "shards drop" in line]
    command = f"xwam-ft shards drop {tmp_path}/out {tmp_path}/out_kept --finding still-gripper"
    assert f"or without them: {command}" in said
    assert len(said) == len(set(said))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<code>xwam-ft shards drop SHARDS KEPT --finding still-gripper</code>" in page
    everywhere = {group.check for group in outcome.findings if group.episodes == [0, 1, 2, 3]}
    everywhere.add("near-constant")  # told of every training episode: without them there is nothing to learn from
    assert not any(line.endswith(f" {check}") for line in said for check in everywhere)
    assert sets.drop(tmp_path / "out", tmp_path / "out_kept", finding="still-gripper").left_out == (0, 2)
