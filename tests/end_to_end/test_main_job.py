"""The main job through the command line: recordings in, shards, a run, a bundle, actions, pictures, numbers out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft.bundled import bundled

pytestmark = pytest.mark.slow

DATA = os.environ.get("XWAM_FT_TEST_DATA")
needs_real = pytest.mark.skipif(DATA is None, reason="real recordings: set XWAM_FT_TEST_DATA to their folder")
SHORT = ["--set", "trainer.max_steps=6", "--set", "trainer.batch_size=2", "--set", "trainer.threads=1"]
SHORT += ["--set", "checkpoint.every_steps=3", "--set", "validation.every_steps=0", "--set", "validation.clips=2"]
SHORT += ["--set", "validation.video_steps=4", "--set", "validation.imagine_clips=1"]
UNSEEN = ["--set", "validation.imagine_clips=0"]  # imagining takes longer than these trainings


def xwam_ft(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "xwam_ft.cli", *map(str, arguments)], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def train_arguments(shards: Path, run: Path, stride: int) -> list[str | Path]:
    sets = ["--set", f"data.shards={shards}", "--set", f"data.clip_stride={stride}"]
    return ["train", bundled("recipes/tiny_cpu.yaml"), "--run", run, *sets, *SHORT]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundled") / "shards"
    recordings, embodiment = bundled("recordings/metaworld_demo"), bundled("recipes/embodiments/metaworld_sawyer.yaml")
    xwam_ft("prepare", recordings, out, "--embodiment", embodiment, "--workers", "1", "--strict")
    return out


@pytest.fixture(scope="module")
def demo_run(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing stopped; read it, do not change it."""
    run = tmp_path_factory.mktemp("demo") / "run"
    xwam_ft(*train_arguments(demo_shards, run, 16))
    return run


def test_bundled_recordings_to_actions(demo_shards: Path, demo_run: Path, tmp_path: Path) -> None:
    from xwam_ft import Policy, ShardSet
    from xwam_ft.observation import Commands

    run, bundle = demo_run, tmp_path / "bundle"
    assert {"recipe.yaml", "contract.json"} <= files_of(run)
    last = files_of(run / "checkpoints" / "step-000006")
    assert {"trainable.safetensors", "optimizer.safetensors", "state.json"} <= last
    assert (run / "contract.json").read_bytes() == (demo_shards / "contract.json").read_bytes()

    xwam_ft("export", run, bundle)
    assert files_of(bundle) == {
        "README.md",
        "config.json",
        "contract.json",
        "imagined.png",
        "manifest.json",
        "model.safetensors",
        "novelty.safetensors",
        "prompts.safetensors",
        "selfcheck.safetensors",
    }
    assert (bundle / "contract.json").read_bytes() == (demo_shards / "contract.json").read_bytes()

    policy = Policy.load(bundle)
    shards = ShardSet.open(demo_shards)
    clip = shards.read_clip(shards.clips("held_out", 16)[0])
    contract = shards.contract
    state = {s.name: clip.proprio[0, place] for s, place in _state_places(contract)}
    images = {name: clip.rgb[view, 0] for view, name in enumerate(contract.camera_names)}
    output = policy.infer({"images": images, "state": state, "prompt": clip.instruction})
    commands: Commands = output.commands
    assert commands.table.shape == (contract.timing.action_steps, contract.command_dim)
    assert np.all(np.isfinite(commands.table))

    episode = shards.segments("held_out")[0].episode
    xwam_ft("imagine", bundle, "--shards", demo_shards, "--episode", str(episode), "--out", tmp_path / "imagined")
    made = {Path(name).suffix for name in files_of(tmp_path / "imagined")}
    assert {".mp4", ".png", ".ply", ".json"} <= made
    xwam_ft("evaluate", bundle, demo_shards, "--out", tmp_path / "evaluation", "--clips", "4")
    json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    _closed_loop(bundle, tmp_path / "closed_loop")


def _closed_loop(bundle: Path, out: Path) -> None:
    """Two short episodes where Meta-World is installed and renders; else the sentence that says what is lacking."""
    task = ["--env", "metaworld:drawer-close", "--episodes", "2", "--max-steps", "12", "--films", "1"]
    command = [sys.executable, "-m", "xwam_ft.cli", "evaluate", str(bundle), *task, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 2:
        assert "pip install 'xwam-ft[sim]'" in done.stderr or "install libegl1" in done.stderr
        assert not out.exists()
        return
    assert done.returncode == 0, done.stderr[-4000:]
    assert "of 2 episodes succeed" in done.stdout
    assert {"report.html", "metrics.json", "rollouts/000.mp4", "rollouts/000.png"} == files_of(out)


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    demo_shards: Path, demo_run: Path, tmp_path: Path
) -> None:
    through, killed = demo_run, tmp_path / "killed"
    command = [sys.executable, "-m", "xwam_ft.cli", *map(str, train_arguments(demo_shards, killed, 16)), *UNSEEN]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (killed / "checkpoints" / "step-000003" / "state.json").exists():
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    xwam_ft("train", "--resume", killed)
    for name in ("trainable.safetensors", "optimizer.safetensors"):
        last = Path("checkpoints/step-000006") / name
        assert (killed / last).read_bytes() == (through / last).read_bytes()


@needs_real
@pytest.mark.parametrize("kind", ["poses", "joints"])
def test_real_recordings_to_actions(kind: str, tmp_path: Path) -> None:
    from xwam_ft import Policy, ShardSet

    assert DATA is not None
    shards, run, bundle = tmp_path / "shards", tmp_path / "run", tmp_path / "bundle"
    embodiment = bundled(f"recipes/embodiments/unitree_g1_inspire_{kind}.yaml")
    raw, urdfs = Path(DATA) / "lerobot_v30_g1", Path(DATA) / "urdf"
    short = ("--set", "timing.clip_frames=5")  # what the small backbone knows
    xwam_ft("prepare", raw, shards, "--embodiment", embodiment, "--depth", "none", "--urdf-dir", urdfs, *short)
    xwam_ft(*train_arguments(shards, run, 64), "--set", "model.depth.branch=none", *UNSEEN)
    xwam_ft("export", run, bundle)

    policy = Policy.load(bundle)
    opened = ShardSet.open(shards)
    assert sum(episode.frames for episode in opened.index.episodes) == 1045
    contract = opened.contract
    clip = opened.read_clip(opened.clips("held_out", 64)[0])
    rng = np.random.default_rng(0)
    state = {slot.name: rng.uniform(-0.1, 0.3, len(slot.columns)) for slot in contract.slots if slot.present}
    images = {name: clip.rgb[view, 0] for view, name in enumerate(contract.camera_names)}
    output = policy.infer({"images": images, "state": state, "prompt": clip.instruction})
    for name, chunk in output.commands.slots.items():
        slot = contract.slot(name)
        assert chunk.shape == (contract.timing.action_steps, len(slot.columns))
        assert np.all(np.isfinite(chunk))
    assert (kind == "poses") == bool(output.commands.residual)


def _state_places(contract: Any) -> list[tuple[Any, slice]]:
    from xwam_ft.conventions import state_slices

    places = state_slices(contract)
    return [(slot, places[slot.name]) for slot in contract.slots if slot.present]
