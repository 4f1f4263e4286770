"""`xwam-ft doctor`: what is wrong is found where it is made wrong, and the page can be pasted anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from xwam_ft import diagnosis, machine, media
from xwam_ft.diagnosis import Diagnosis, Symptom


def named(symptoms: object, what: str) -> Symptom:
    [found] = [one for one in symptoms if one.what == what]  # pyright: ignore[reportGeneralTypeIssues]
    return found


def give(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Other versions of libraries than those that are installed."""
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: versions.get(name) or real(name))


def test_the_page_is_right_here_and_holds_no_name_of_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xwam_ft.cli", "doctor", "--json"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout
    page = json.loads(done.stdout)
    assert page["right"]
    found = {one["what"]: one for one in page["symptoms"]}
    assert found["torch"]["says"] == version("torch")
    assert {"H.264", "AV1", "16-bit depth", "memory", "GPU", "CPU"} - set(found) <= {"GPU"}
    assert str(Path.home()) not in done.stdout
    assert str(Path.cwd()) not in done.stdout


@pytest.mark.parametrize(
    ("name", "bad", "why"),
    [
        ("lightning", "2.6.2", "compromised"),
        ("lightning", "2.6.3", "compromised"),
        ("transformers", "5.2.1", "all instructions are alike"),
        ("torch", "2.4.0", "was tried"),
    ],
)
def test_a_version_that_is_known_to_be_bad_is_wrong_and_its_fix_is_a_good_one(
    name: str, bad: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, **{name: bad})
    found = named(diagnosis._libraries(), name)
    assert found.state == "wrong"
    assert bad in found.says
    assert why in found.says
    wanted = Requirement(found.fix.removeprefix("pip install ").strip("'"))
    assert wanted.specifier.contains(version(name), prereleases=True)
    assert not wanted.specifier.contains(bad)


def test_libraries_that_do_not_fit_each_other_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = next(one for line in requires("torchvision") or () if (one := Requirement(line)).name == "torch")
    give(monkeypatch, torch="2.9.1")  # in our range, below this torchvision's
    found = named(diagnosis._libraries(), "torchvision")
    assert found.state == "wrong"
    assert f"it wants torch{pinned.specifier}" in found.says
    assert f"'torch{pinned.specifier}'" in found.fix


def test_an_extra_that_is_broken_is_noted_and_nothing_needed_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, mujoco="4.0.0", metaworld="3.1.1")
    found = named(diagnosis._extras(), "sim")
    assert (found.state, found.fix) == ("note", "pip install 'xwam-ft[sim]'")
    assert "asks for 3.3.0" in found.says


def test_every_extra_is_listed_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", absent)
    lines = {one.what: (one.state, one.fix) for one in diagnosis._extras()}
    assert lines["mcap"] == ("off", "pip install 'xwam-ft[mcap]'")
    assert not {"dev", "docs"} & set(lines)


def test_a_decoder_that_gives_other_pictures_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    read = media.read_rgb
    monkeypatch.setattr(media, "read_rgb", lambda source, frames=None: read(source, frames)[::-1])
    assert {one.what: one.state for one in diagnosis._decoders()} == {
        "H.264": "wrong", "AV1": "wrong", "16-bit depth": "ok",
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_driver_whose_gpu_torch_does_not_see_is_wrong_unless_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: None)
    monkeypatch.setattr(diagnosis, "gpu_driver", lambda: None)
    assert diagnosis._no_gpu("").state == "note"
    monkeypatch.setattr(diagnosis, "gpu_driver", lambda: "470.256.02")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert diagnosis._no_gpu("").state == "note"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    unseen = diagnosis._no_gpu("")
    assert unseen.state == "wrong"
    assert unseen.fix
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in diagnosis._no_gpu("").says


def test_what_is_wrong_is_said_first_and_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xwam_ft.cli import app

    found = Diagnosis(
        (Symptom("libraries", "torch", "2.4.0", "wrong", "pip install torch"), Symptom("room", "memory", "1"))
    )
    monkeypatch.setattr(diagnosis, "diagnose", lambda: found)
    with pytest.raises(SystemExit) as ended:
        app(["doctor"])
    assert ended.value.code == 2
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("1 wrong: torch")
    assert "  WRONG  torch                 2.4.0. Fix: pip install torch" in said
