"""The GPU day runs end to end at toy size on a CPU, goes on where it was stopped, and survives parts that do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_day
from _gpu_report import NOT_RUN, TITLES, page, scrubbed

SCRIPT = Path(gpu_day.__file__)


def day(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def in_process(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(gpu_day.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


class Page(HTMLParser):
    """Its tags, each closed, and what it would fetch."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.cells = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]
        self.cells += tag == "td"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.slow
def test_a_day_at_toy_size_is_stopped_goes_on_and_is_one_report(tmp_path: Path) -> None:
    out = tmp_path / "day"
    began = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--toy", "--out", str(out)], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    while not (out / "parts" / "vae.json").is_file():
        assert began.poll() is None
        time.sleep(0.1)
    began.send_signal(signal.SIGINT)
    told, _ = began.communicate()
    assert began.returncode == 130, told
    assert "what is measured is kept" in told
    kept = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.json")}
    assert {path.stem for path in kept} >= {"machine", "text", "vae"}
    assert "job" not in {path.stem for path in kept}

    done = day("--toy", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "measured already: machine, text, vae" in done.stdout
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert not (out / "work").exists()

    report = json.loads((out / "report.json").read_text())
    assert list(report["parts"]) == list(gpu_day.PARTS) == list(TITLES)
    absent = set() if find_spec("bitsandbytes") else {"quantised"}
    for name, part in report["parts"].items():
        assert part["status"] == ("not measured" if name in absent else "measured"), (name, part["reason"])
        assert bool(part["reason"]) == (name in absent)
        for table in part["tables"]:
            assert table["rows"], (name, table["title"])
            for row in table["rows"]:
                assert len(row) == len(table["columns"])
                assert all(cell is not None and cell != "" for cell in row), "a number, or why there is none"
    judged = [line for part in report["parts"].values() for line in part["says"] if line["good"] is not None]
    assert len(judged) >= 5
    assert all(line["good"] for line in judged), judged

    rows = {
        name: {row[0]: row[1:] for table in part["tables"] for row in table["rows"]}
        for name, part in report["parts"].items()
    }
    assert rows["machine"]["torch"] == [torch.__version__.partition("+")[0]]
    assert rows["text"]["embedding against its file"][0].startswith("equal, ")
    assert rows["vae"]["reconstruction, dB"][0] > 20
    assert rows["precision"]["32-true"][2] == 0
    assert 0 < rows["precision"]["bf16-mixed, base in bfloat16"][2] < 0.05
    assert rows["compile"]["eager"][3] == 0, "graph breaks"
    assert rows["devices"]["cpu"][0] == 0
    one, two = (rows["ranks"][f"gradient's norm, {name}"][0] for name in ("one process", "two processes"))
    assert two == pytest.approx(one, rel=1e-5)

    html = (out / "report.html").read_text()
    shown = Page(html)
    assert shown.open == []
    assert shown.fetched == []
    assert shown.cells == sum(
        len(t["columns"]) * len(t["rows"]) for part in report["parts"].values() for t in part["tables"]
    )
    assert "A rehearsal at toy size on a CPU" in html
    for text in (html, json.dumps(report)):
        assert str(tmp_path) not in text, "a report holds no paths of its machine"


@pytest.mark.slow
def test_parts_that_die_raise_or_hang_are_written_down_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu_day_bad.py").write_text(
        "import os, time\n"
        "def dies(day, say):\n    print('about to die', flush=True)\n    os.kill(os.getpid(), 9)\n"
        "def raises(day, say):\n    raise ValueError(f'no such kernel in {day.out}')\n"
        "def hangs(day, say):\n    time.sleep(600)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    bad = {name: ("gpu_day_bad", name, limit) for name, limit in (("dies", 5), ("raises", 5), ("hangs", 0.05))}
    parts = {**bad, "text": gpu_day.PARTS["text"]}
    monkeypatch.setattr(gpu_day, "PARTS", parts)
    monkeypatch.setattr("_gpu_report.TITLES", dict.fromkeys(parts, "a part"))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # which a day adds to: put back afterwards
    out = tmp_path / "day"
    result = in_process("--toy", "--out", out)
    assert result.exit_code == 1, result.output
    report = json.loads((out / "report.json").read_text())["parts"]
    assert {name: part["status"] for name, part in report.items()} == {
        **dict.fromkeys(bad, "failed"),
        "text": "measured",
    }
    assert report["dies"]["reason"] == "its process ended with code -9; its last words: about to die"
    assert report["raises"]["reason"] == "ValueError: no such kernel in OUT"
    assert report["hangs"]["reason"].startswith("not done after 0.05 minutes")
    assert "no such kernel in OUT" in (out / "report.html").read_text()


def test_a_day_without_a_gpu_or_with_idle_options_is_refused_before_any_work(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        refused = in_process("--out", tmp_path / "day")
        assert refused.exit_code == 2
        assert "torch sees no CUDA GPU here" in refused.output
        assert "--toy" in refused.output
    refused = in_process("--toy", "--weights", "somewhere", "--out", tmp_path / "day")
    assert refused.exit_code == 2
    assert "changes nothing with --toy" in refused.output
    refused = in_process("--toy", "--part", "vea", "--out", tmp_path / "day")
    assert refused.exit_code == 2
    assert "there is no part 'vea'" in refused.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_holds_one_day(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    then = {"weights": None, "toy": True, "gpu": "none", "torch": "2.8.0", "xwam-ft": "0.1.0"}
    (tmp_path / "day" / "day.json").write_text(json.dumps(then))
    refused = in_process("--toy", "--out", tmp_path / "day")
    assert refused.exit_code == 2
    assert "holds a day with torch '2.8.0'" in refused.output.replace("\n", " ")


def test_the_page_says_what_is_not_as_it_should_be_and_what_is_missing() -> None:
    table = {
        "title": "<b>",
        "columns": ["what", "value"],
        "rows": [["a", 0.12345], ["b", "not measured: no"]],
        "note": "",
    }
    good = {"status": "measured", "reason": "", "seconds": 3.0, "tables": [table]}
    parts = dict.fromkeys(TITLES, NOT_RUN) | {"vae": {**good, "says": [{"text": "12 dB", "good": False}]}}
    about = {"weights": None, "toy": False, "gpu": "H200", "torch": "2.14", "xwam-ft": "0.1.0"}
    text = page({"made": "now", "day": about, "parts": parts})
    assert "not as it should be: 12 dB" in text
    assert text.count("run the same command again") == 2 * (len(TITLES) - 1)
    assert "0.123" in text
    assert "<h3>&lt;b&gt;</h3>" in text
    assert "Random weights" in text
    assert Page(text).open == []


def test_a_report_names_no_place_of_a_machine(tmp_path: Path) -> None:
    weights, out = tmp_path / "someone" / "Wan2.2", tmp_path / "day"
    weights.mkdir(parents=True)
    found = {"reason": f"{weights}/vae: is cut off", "tables": [{"rows": [[f"{out}/work", 1.5, True]]}]}
    assert scrubbed(found, out, str(weights)) == {
        "reason": "Wan2.2/vae: is cut off",
        "tables": [{"rows": [["OUT/work", 1.5, True]]}],
    }
    assert scrubbed("of Wan-AI/Wan2.2", out, "Wan-AI/Wan2.2") == "of Wan-AI/Wan2.2", "a hub id is no place"
