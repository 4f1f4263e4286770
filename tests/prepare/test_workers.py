"""Worker processes and Ray: a death is one sentence and a rerun goes on; bytes do not depend on who did the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dying import run_or_die

from ray_nodes import one_node, quiet_ray
from shared import QUIET, files_in
from xwam_ft import ray_cluster
from xwam_ft.errors import UserError
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.episode_work import run


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def prepared(raw: Path, out: Path, embodiment: Path, **more: Any) -> Any:
    options = {"depth": None, "workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET, **more}
    return pipeline.prepare([raw], out, embodiment=embodiment, **options)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_script_needs_no_main_guard(how: str, v21: Path, toy: Path, tmp_path: Path) -> None:
    out, times = tmp_path / "out", tmp_path / "times"
    script = tmp_path / "prepare_mine.py"
    script.write_text(
        f"import xwam_ft\nopen({str(times)!r}, 'a').write('once ')\n"
        f"made = xwam_ft.prepare({str(v21)!r}, {str(out)!r}, embodiment={str(toy)!r}, workers=2)\nprint(made.path)\n"
        "assert __name__ == '__main__' and (__spec__ is None)\n"
    )
    given = {"args": [sys.executable, str(script)]} if how == "file" else {"args": [sys.executable, "-"]}
    text = script.read_text() if how == "stdin" else None
    done = subprocess.run(**given, input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert times.read_text() == "once "


@pytest.mark.slow
def test_a_killed_worker_is_one_sentence_and_a_rerun_goes_on(
    v21: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run", run_or_die)
        with pytest.raises(UserError, match="a worker process died, most likely for lack of memory") as caught:
            prepared(v21, tmp_path / "out", toy, workers=1)
    assert "run it again with fewer --workers" in str(caught.value)
    assert not (tmp_path / "out").exists()
    done: list[int] = []

    def counting(job: Any) -> Any:
        done.append(job.number)
        return run(job)

    monkeypatch.setattr(pipeline, "run", counting)
    prepared(v21, tmp_path / "out", toy)
    assert done == [1, 2]
    prepared(v21, tmp_path / "whole", toy)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_bytes_of_a_local_run(
    v21: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_ray(monkeypatch)
    with pytest.raises(UserError, match=r"there is no Ray cluster .*start one with `ray start --head`"):
        prepared(v21, tmp_path / "none", toy, ray="auto")
    prepared(v21, tmp_path / "here", toy)
    # What is already connected is used, and left running.
    with one_node(monkeypatch) as ray:
        prepared(v21, tmp_path / "there", toy, ray="auto")
        assert files_in(tmp_path / "here") == files_in(tmp_path / "there")

        def dies(job: Any) -> Any:  # a function within a function goes to the workers whole
            if job.number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(job)

        # A worker that dies every time: one sentence, and what was finished is kept.
        with monkeypatch.context() as patch:
            patch.setattr(ray_cluster, "RETRIES", 0)
            patch.setattr(pipeline, "run", dies)
            with pytest.raises(UserError, match="a worker of the Ray cluster died over one episode"):
                prepared(v21, tmp_path / "dead", toy, ray="auto")
            patch.setattr(pipeline, "run", run_or_die)  # from a module that is not installed there
            with pytest.raises(UserError, match=r"workers cannot import what they are to do .*No module named 'dying'"):
                prepared(v21, tmp_path / "dead", toy, ray="auto")
        prepared(v21, tmp_path / "dead", toy)
        assert files_in(tmp_path / "dead") == files_in(tmp_path / "here")
        assert ray.is_initialized()
