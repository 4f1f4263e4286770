"""Names as people choose them: printed as they are, and every printed command can be pasted."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

import xwam_ft
from xwam_ft.cli import main
from xwam_ft.consoles import plain_console, setting, typed
from xwam_ft.errors import UserError
from xwam_ft.policy.bundle import verify_bundle
from xwam_ft.runs.folder import require_free
from xwam_ft.shards import ShardSet
from xwam_ft.strict_yaml import parse_override

from .so101 import write_so101

NAME = "my [bold] run: 1"
NAMES = (NAME, "a b", "[/] :smile: {x}", "it's", "- a", "12", "null", "x: [1, 2]", "$HOME `x`", "ünï")


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_setting_is_read_back_as_it_was(name: str) -> None:
    flag, text = shlex.split(setting("data.shards", name))
    assert flag == "--set"
    assert parse_override(text) == ("data.shards", name)
    assert shlex.split(typed("xwam-ft", "runs", Path(name))) == ["xwam-ft", "runs", name]


def test_values_that_are_no_texts_stay_what_they_are() -> None:
    for value in (1, 0.5, True, None, [1, 2], {"a": 1}):
        assert parse_override(shlex.split(setting("a.b", value))[1]) == ("a.b", value)
    assert parse_override("a.b={c: 1}") == ("a.b", {"c": 1})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_printed_as_it_stands(name: str) -> None:
    from rich.table import Table

    said = io.StringIO()
    loud = plain_console(Console(file=said, width=200))  # a user's own, whose markup is on
    loud.print(f"run: {name}", soft_wrap=True)
    table = Table("run")
    table.add_row(name)
    loud.print(table)
    assert said.getvalue().count(name) == 2


def test_a_console_of_one_s_own_records_what_is_printed() -> None:
    own = Console(file=io.StringIO(), record=True)
    plain_console(own).print("[bold]x[/]")
    assert own.export_text() == "[bold]x[/]\n"


def command(said: str, start: str) -> list[str]:
    """The words of the printed command that begins so."""
    [line] = re.findall(rf"{start}(xwam-ft .*)", said)
    return shlex.split(line)[1:]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["xwam-ft", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


SHORT = ("timing.frame_skip=2", "timing.action_skip=1", "timing.clip_frames=5", "image.height=32", "image.width=64")
QUICK = (
    "trainer.max_steps=1",
    "trainer.batch_size=1",
    "trainer.threads=1",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=0",
    "optim.lr_lora=0.01",
    "data.clip_stride=25",
    "model.depth.branch=none",
    "validation.clips=1",
    "validation.every_steps=0",
    "validation.imagine_clips=0",
    "validation.action_steps=1",
    "validation.video_steps=2",
    "logging.to=[]",
)


@pytest.mark.slow
def test_a_whole_job_in_a_folder_of_such_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / NAME
    write_so101(place / "recordings", episodes=2, frames=40, size=(32, 64))

    def sets(values: tuple[str, ...]) -> list[str]:
        return [word for value in values for word in ("--set", value)]

    made = ["prepare", str(place / "recordings"), str(place / "shards"), "--embodiment", "so101_joints"]
    said = run([*made, "--depth", "none", "--workers", "0", *sets(SHORT)], monkeypatch, capsys)
    assert f"{place / 'shards'}: 2 episodes" in said
    assert parse_override(command(said, "next: ")[-1]) == ("data.shards", str(place / "shards"))
    seen = run(["inspect", str(place / "recordings")], monkeypatch, capsys)
    assert "".join(str(place / "recordings").split()) in "".join(seen.split()), "a title is broken where it is long"
    said = run(["encode", str(place / "shards"), "--recipe", "tiny_cpu", *sets(QUICK)], monkeypatch, capsys)
    pasted = command(said, "next: ")
    said = run([*pasted, "--run", str(place / "run"), *sets(QUICK)], monkeypatch, capsys)
    assert f"run: {place / 'run'}" in said
    said = run(command(said, "next: "), monkeypatch, capsys)
    bundle = place / "run-bundle"
    assert f"bundle: {bundle}" in said
    assert command(said, "next: ") == ["serve", str(bundle)]
    verify_bundle(bundle)
    scored = ["evaluate", str(bundle), str(place / "shards"), "--clips", "1", "--no-latency", "--out"]
    said = run([*scored, str(place / "e")], monkeypatch, capsys)
    assert f"report: {place / 'e' / 'report.html'}\n" in said
    assert "".join(NAME.split()) in "".join(run(["runs", str(tmp_path)], monkeypatch, capsys).split())
    with pytest.raises(UserError) as error:
        require_free(place / "run")
    assert shlex.split(re.findall(r"`(xwam-ft .*?)`", error.value.fix)[0])[-1] == str(place / "run")


def test_a_run_of_such_a_name_is_listed_and_compared(trained_run: Path, tmp_path: Path) -> None:
    for name in (NAME, "[/] b"):
        shutil.copytree(trained_run, tmp_path / name)
    said = io.StringIO()
    xwam_ft.runs(tmp_path, progress=Console(file=said, width=200))
    assert NAME in said.getvalue()
    assert "[/] b" in said.getvalue()
    xwam_ft.runs(tmp_path, diff=(NAME, "[/] b"), progress=Console(file=said, width=400))
    assert "have equal recipes" in said.getvalue()


def test_shards_of_such_a_name_are_read(shard_set: ShardSet, tmp_path: Path) -> None:
    moved = shutil.copytree(shard_set.folder, tmp_path / NAME)
    assert len(ShardSet.open(Path(moved)).clips(None, 5)) == len(shard_set.clips(None, 5))
