"""The benchmark scripts run, their tables have their rows, and FLOPs are closed forms'; times are not judged."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import checkpoint
import export
import policy_latency
import serving
import train_step
import training
from _sizes import SIZES
from xwam_ft.contract import Contract
from xwam_ft.shards import ShardSet

D, FFN, BLOCKS, BRANCH, TEXT, TEXT_DIM = 3072, 14336, 30, 10, 512, 4096
VIDEO, ACTIONS, STATES = 3 * 3 * 8 * 10, 32, 9
TOKENS = VIDEO + ACTIONS + STATES


def block_flops(tokens: int, seen: int) -> int:
    """One block on `tokens` that attend to `seen`, without the text's keys and values."""
    linear = 6 * tokens * D * D + 2 * tokens * D * FFN
    return 2 * linear + 4 * tokens * (seen + TEXT) * D


KEYS_VALUES = 2 * 2 * TEXT * D * D
PROJECTION = 2 * TEXT * (TEXT_DIM * D + D * D)
ROBOT = 2 * 2 * (ACTIONS * (14 * D + D * D) + STATES * (16 * D + D * D))  # encoders and decoders
PATCHES = 2 * 2 * VIDEO * 4 * 48 * D  # embedding and head
TIMES = 2 * 3 * (256 * D + D * D + 6 * D * D)
FORWARD = BLOCKS * (block_flops(TOKENS, TOKENS) + KEYS_VALUES) + PROJECTION + ROBOT + PATCHES + TIMES
CACHED = FORWARD - BLOCKS * KEYS_VALUES - PROJECTION
DEPTH = BRANCH * (block_flops(VIDEO, VIDEO + TOKENS) + KEYS_VALUES) + PATCHES // 2
ENCODER = 24 * (2 * TEXT * (4 * 4096 * 4096 + 3 * 4096 * 10240) + 4 * TEXT * TEXT * 4096)


def run(script: Any, *arguments: str) -> dict[str, list[list[str]]]:
    """The tables a script prints: title -> rows of cells, the header first."""
    app = typer.Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"python benchmarks/{script.__name__}.py --")
    title, *paragraphs = result.output.strip().split("\n\n")
    tables = {}
    for paragraph in paragraphs:
        title, *lines = paragraph.splitlines()
        tables[title] = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return tables


def check_policy_latency(device: str, *arguments: str) -> None:
    shortest = ("--steps", "2,1", "--rollout", "2", "--repeats", "1")
    tables = run(policy_latency, "--size", "tiny", "--device", device, *shortest, *arguments)
    counted, stages, accelerations = tables.values()
    assert stages[0] == ["stage", "2", "1"]
    assert all(len(row) == 3 for row in stages)
    assert [row[0][0] for row in accelerations[1:]] == ["1", "2", "3", "4", "5", "6", "6"]
    assert all(float(cell) > 0 for row in accelerations[1:] for cell in row[1:])
    found = {row[0]: float(row[1]) for row in counted[1:]}
    expected = {
        "one forward, without depth": FORWARD,
        "depth branch, beside it": DEPTH,
        "one forward, text encoded before": CACHED,
        "text encoder, once an instruction": ENCODER,
        "50 steps, depth at each": 50 * (FORWARD + DEPTH),
        "50 steps, depth at the last": 50 * FORWARD + DEPTH,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value / 1e12, abs=0.0051), name
    first, clip = found["VAE, 1 frame a view"], found["VAE, 9 frames a view"]
    assert 0 < first < clip / 5
    assert found["policy call of 10 steps, as it is"] == pytest.approx(first + 10 * CACHED / 1e12, abs=0.02)


def check_train_step(device: str) -> None:
    tables = run(train_step, "--size", "tiny", "--device", device, "--batch", "1,2", "--repeats", "1")
    counted = next(rows for title, rows in tables.items() if title.startswith("TFLOP of a step"))
    timed = tables["steps at size tiny"]
    assert any("matrix product of this machine" in title for title in tables)
    by_form = {row[0]: row[1:] for row in counted[1:]}
    assert list(by_form) == list(train_step.FORMS)
    trained, ahead, both, ratio = map(float, by_form["full, depth copy"])
    assert ahead == pytest.approx((FORWARD + DEPTH) / 1e12, abs=0.0051)
    assert trained == pytest.approx(5.04e3 + 1.64e3, rel=2e-3)
    assert both / ahead == pytest.approx(3.0, abs=0.01)  # every product has two more in the backward pass
    for form, (_, ahead, both, ratio) in ((name, cells) for name, cells in by_form.items() if "LoRA" in name):
        if by_form[form][0] == train_step.ABSENT:
            continue
        assert (FORWARD + DEPTH) / 1e12 < float(ahead) < 1.03 * (FORWARD + DEPTH) / 1e12
        assert float(both) / float(ahead) == pytest.approx(2.0, abs=0.03)  # frozen weights take no gradient
        assert float(ratio) == pytest.approx(float(both) / float(ahead), abs=0.006)
    rows = [row for row in timed[1:] if row[1] != train_step.ABSENT]
    assert {row[0] for row in rows} >= {"LoRA, depth copy", "full, depth copy"}
    assert all(float(row[2]) > 0 and row[3].endswith("%") for row in rows)


def test_the_5b_setting_is_the_released_one() -> None:
    size = SIZES["5b"]()
    timing = size.contract.timing
    assert (size.contract.state_dim, size.contract.action_dim) == (16, 14)
    assert (timing.action_steps, timing.clip_frames, timing.latent_frames) == (ACTIONS, STATES, 3)


def test_serving_prints_its_tables() -> None:
    tables = run(serving, "--requests", "10", "--height", "16", "--width", "24", "--clients", "2")
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in tables["a request, ms"][1:]}
    assert len(rows) == 4
    assert all(0 < median <= p90 <= p99 for median, p90, p99 in rows.values())
    assert rows["over loopback"][0] > rows["in process"][0] * 0.5
    ((_, rate),) = tables["rate"][1:]
    assert float(rate) > 0


@pytest.mark.slow
def test_policy_latency_prints_its_tables() -> None:
    check_policy_latency("cpu")


@pytest.mark.slow
def test_train_step_prints_its_tables() -> None:
    check_train_step("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_both_run_on_a_gpu() -> None:
    check_policy_latency("cuda", "--compile")
    check_train_step("cuda")


@pytest.mark.slow
def test_a_checkpoint_weighs_what_trains() -> None:
    """LoRA of rank 32 on every linear of 30 blocks and of 10 once more: r (i + o) numbers each, of four float32."""
    ours, whole = checkpoint.counted_bytes("LoRA, depth adapter")
    lora = checkpoint.trained_parameters(checkpoint._module("LoRA, depth adapter", "5b", "meta").network)
    pairs = sum(p.numel() for name, p in lora.items() if ".lora_" in name)
    assert pairs == (BLOCKS + BRANCH) * train_step.RANK * (8 * 2 * D + 2 * (D + FFN))
    assert ours == 16 * sum(p.numel() for p in lora.values())
    assert 5e9 * 2 * 0.95 < whole - ours < 5e9 * 2 * 1.05  # the frozen base, in bfloat16
    parts, frozen = checkpoint.saved_parts("LoRA, depth adapter")
    assert parts["trainable"].keys() == parts["ema"].keys()
    assert not parts["trainable"].keys() & frozen.keys()


@pytest.mark.slow
def test_the_checkpoint_benchmark_prints_a_row_a_form(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(checkpoint.main)
    result = CliRunner().invoke(app, ["--repeats", "1", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for form in train_step.FORMS:
        assert len(re.findall(rf"^{form} ", result.output, flags=re.M)) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_writing_an_export_keeps_within_the_memory_allowed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    export.main(blocks=3, width=256, folder=tmp_path)
    told = capsys.readouterr().out
    forms = re.findall(r"(\w+) +the writing +([\d.]+) GB, of ([\d.]+) GB allowed", told)
    assert [name for name, *_ in forms] == ["bundle", "xwam"]
    assert all(0 <= float(own) <= float(allowed) for _, own, allowed in forms)
    assert "plain copy" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_is_timed_from_the_cache_and_from_pixels(
    contract: Contract, make_shard_set: Callable[[Path, Contract], ShardSet], tmp_path: Path
) -> None:
    shard_set = make_shard_set(tmp_path / "set", contract)
    tables = run(training, "--shards", str(shard_set.folder), "--steps", "1", "--repeats", "1")
    assert [row[0] for row in tables["training"]] == ["clips", *training.WAYS]
    cached, pixels = ([float(cell.removesuffix(" %")) for cell in row[1:]] for row in tables["training"][1:])
    assert cached[0] > 0
    assert pixels[0] > 0
    assert cached[2] == 1
    assert 0 < cached[1] < 100
    assert 0 < pixels[1] < 100
