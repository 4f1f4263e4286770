"""What a run shows of itself: the report, its files, the places metrics go to; and that looking changes no bit."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

import tiny_training
from shared import QUIET
from tiny_training import recipe_tree
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.recipe import Recipe
from xwam_ft.runs.history import History
from xwam_ft.runs.report import score_rows, sigma_table, smooth, write_report
from xwam_ft.shards import ShardSet
from xwam_ft.train.loggers import MetricsFile, log_picture, run_loggers


@pytest.fixture(scope="module")
def watched(shard_set: ShardSet, cache: LatentCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `finished`, looked at every second step, with imagined video at its end."""
    folder = tmp_path_factory.mktemp("watched")
    tree = recipe_tree(shard_set.folder)
    tree["validation"] |= {"every_steps": 2, "imagine_clips": 1}
    tree["logging"] |= {"to": ["csv"]}
    (folder / "toy.yaml").write_text(yaml.safe_dump(tree))
    return tiny_training.train(folder / "toy.yaml", folder / "run", [], QUIET)


@pytest.mark.slow
def test_a_run_that_is_watched_ends_with_the_same_bits(watched: Path, finished: Path) -> None:
    for name in ("trainable", "ema", "optimizer"):
        file = f"checkpoints/step-000006/{name}.safetensors"
        assert (watched / file).read_bytes() == (finished / file).read_bytes()


@pytest.mark.slow
def test_the_history_holds_every_validation_and_what_was_imagined(watched: Path) -> None:
    history = History(watched)
    validated = history.validated()
    assert [one.step for one in validated] == [2, 4, 6]
    assert [one.imagined is not None for one in validated] == [False, False, True]
    imagined = validated[-1].imagined
    assert imagined is not None
    assert imagined["scores"]["all"].keys() == {"psnr", "ssim", "abs_rel", "delta1"}
    assert imagined["point_cloud"]["chamfer_mm"]["imagined"] > 0
    assert imagined["blackout"].keys() == {"front", "wrist"}
    [last] = [row for row in history.metrics() if "imagine/psnr" in row]
    assert last["step"] == 6
    assert last["imagine/psnr"] == imagined["scores"]["all"]["psnr"]["imagined"]
    assert last["blackout/front_tool_position"] == imagined["blackout"]["front"]["tool"]["position"]["black"]
    steps, errors = history.series("held_out/tool_position")
    assert steps == [2, 4, 6]
    tables = validated[1].tables
    assert tables is not None
    assert errors[1] == pytest.approx(tables["open_loop"]["slots"]["tool"]["position"]["policy"])
    assert {"network", "validation", "imagining", "checkpoints"} < history.seconds().keys()


@pytest.mark.slow
def test_the_page_stands_alone_but_for_videos_beside_it(watched: Path) -> None:
    page = (watched / "report.html").read_text()
    assert "http" not in page
    sources = re.findall(r'src="([^"]{0,200})', page)
    inside = [source for source in sources if source.startswith("data:image/png;base64,")]
    beside = [source for source in sources if not source.startswith("data:")]
    assert len(inside) == 5
    assert "validation/step-000006/imagined/imagined.mp4" in beside
    assert all((watched / source).is_file() for source in beside)
    for words in (
        "6 of 6",
        "Which camera does it look at?",
        "front black",
        "Chamfer",
        "clip_stride: 3",
        "below 32 losses",
    ):
        assert words in page


def test_a_page_can_be_written_of_a_run_that_has_hardly_begun(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes((finished / "recipe.yaml").read_bytes())
    page = write_report(tmp_path).read_text()
    assert "Nothing was logged yet" in page
    assert "No validation so far" in page


@pytest.mark.slow
def test_a_table_holds_what_the_lines_hold(watched: Path) -> None:
    lines = History(watched).metrics()
    wanted = {(int(line["step"]), name): value for line in lines for name, value in line.items() if name != "step"}
    with (watched / "csv/from-000000/metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {
        (int(row["step"]), name): float(value)
        for row in rows
        for name, value in row.items()
        if name != "step" and value
    }
    assert found == wanted


def test_a_resumed_run_forgets_the_steps_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": {step / 10}}}\n' for step in (1, 2, 3)) + '{"step": 4, "lo')
    log = MetricsFile(path, 2)  # killed while writing
    log.log_metrics({"loss": 9.0}, 3)
    assert History(tmp_path).series("loss") == ([1, 2, 3], [0.1, 0.2, 9.0])
    history = History(tmp_path)
    for step in (2, 4):
        history.write_validation(step, {"losses": {}})
    history.forget_after(2)
    assert [one.step for one in history.validated()] == [2]


def test_without_wandb_one_sentence_says_what_to_install(
    recipe_file: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xwam_ft.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match="'wandb' is not installed") as error:
        tiny_training.train(recipe_file, tmp_path / "run", ["logging.to=[tensorboard, wandb]"], console)
    assert error.value.where == "logging.to"
    assert error.value.fix == "pip install 'xwam-ft[wandb]'"
    assert not (tmp_path / "run").exists()


def test_wandb_is_told_our_steps_and_goes_on_in_the_same_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    begun: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        begun.append(options)
        return SimpleNamespace(id=options["id"], log=lambda metrics, **options: told.append(metrics))

    wandb = SimpleNamespace(init=init, run=None, Image=lambda path: f"picture {path}")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib", SimpleNamespace(RunDisabled=tuple))
    monkeypatch.setitem(sys.modules, "wandb.wandb_run", SimpleNamespace(Run=tuple))
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    chosen = recipe.model_copy(update={"logging": recipe.logging.model_copy(update={"to": ["wandb", "csv"]})})
    for _ in range(2):
        made = run_loggers(tmp_path, 0, chosen)
        for log in made:
            log.log_metrics({"train/loss_total": 0.5}, 5)
        log_picture(made, "imagine/contact_sheet", tmp_path / "sheet.png", 5)
    assert told[:2] == [
        {"train/loss_total": 0.5, "trainer/global_step": 5},
        {"imagine/contact_sheet": [f"picture {tmp_path / 'sheet.png'}"], "trainer/global_step": 5},
    ]
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0]["resume"] == "allow"
    assert begun[0]["config"]["trainer"]["max_steps"] == 6
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 5


def test_smoothing_keeps_a_constant_and_begins_at_the_first_value() -> None:
    assert smooth([3.0] * 20) == pytest.approx([3.0] * 20)
    values = smooth([1.0, 0.0])
    assert values == pytest.approx([1.0, 0.09 / 0.19])


def test_tables_are_in_words() -> None:
    losses = {"held_out/video": 1.0, "held_out_sigma/video_0.62_0.83": 2.0, "held_out_sigma/video_0.00_0.62": 1.0}
    assert sigma_table(losses) == {"video": [(0.0, 0.62, 1.0), (0.62, 0.83, 2.0)]}
    scores = {"all": {"psnr": {"imagined": 21.25, "repeat_first_frame": None}}}
    cloud = {"chamfer_mm": {"imagined": 12.34, "repeat_first_frame": 5.0}}
    assert score_rows({"scores": scores, "point_cloud": cloud}) == [
        ("PSNR of the pictures", "dB, higher is better", "21.2", "–"),
        ("point cloud, Chamfer distance", "mm, lower is better", "12.3", "5"),
    ]
