"""The makers of the built-in weights, on renders of noise: what they draw, what they minimise, what they write."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.model.tiny import untrained_text, untrained_transformer

TOOLS = Path(__file__).parents[2] / "data_tools"
SIMULATED = importlib.util.find_spec("metaworld") is not None


@pytest.fixture(scope="module", autouse=True)
def _tools_importable() -> Iterator[None]:
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of random pictures: two episodes of 7 and 9 pictures, one of 3, and 8 single ones each."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for task in ("door-open", "hammer"):
        for kind in ("video", "depth"):
            (root / kind).mkdir(exist_ok=True)
        rgb = rng.integers(0, 256, (19, 3, 96, 128, 3), dtype=np.uint8)
        metres = rng.uniform(0.1, 4.0, (4, 96, 128)).astype(np.float16)
        np.savez(root / "video" / f"{task}.npz", rgb=rgb, lengths=np.array([7, 9, 3]), metres=metres)
        looks = rng.integers(0, 256, (8, 96, 128, 3), dtype=np.uint8)
        far = rng.uniform(0.1, 4.0, (8, 96, 128)).astype(np.float16)
        focal = np.array([48, 48, 48, 48, 60, 61, 62, 63], np.float32)
        np.savez(root / "depth" / f"{task}.npz", rgb=looks, metres=far, focal=focal)
    return root


def test_every_kind_of_picture_is_drawn_in_range(corpus: Path) -> None:
    import _tiny_vae as vae

    data = vae.Pictures(corpus, ["door-open", "hammer"])
    assert len(data.rgb) == 4, "episodes shorter than a clip are left out"
    rng = np.random.default_rng(1)
    drawn = {
        "clips": (data.clips(3, rng), 5),
        "zoomed": (data.zoomed(3, rng), 5),
        "recoloured": (vae.recolour(data.clips(3, rng), rng), 5),
        "single": (data.single(3, rng), 1),
        "depths": (data.depths(3, rng), 1),
    }
    for name, (pictures, frames) in drawn.items():
        assert tuple(pictures.shape) == (3, 3, frames, 96, 128), name
        assert float(pictures.abs().max()) <= 1.0 + 1e-6, name
    depth = drawn["depths"][0]
    assert torch.equal(depth[:, 0], depth[:, 1])
    assert float(depth.min()) < -0.9
    assert float(depth.max()) > 0.9


def test_the_perceptual_term_is_ssim() -> None:
    import _tiny_vae as vae

    rng = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 96, 128, generator=rng) * 2 - 1
    assert float(vae.perceptual_loss(pictures, pictures)) == pytest.approx(0.0, abs=1e-5)
    # Two flat pictures: only the light term is left, the same at both sizes.
    ours, wanted = torch.full((1, 3, 32, 32), 0.2), torch.full((1, 3, 32, 32), 0.5)
    light = (2 * 0.2 * 0.5 + vae.C1) / (0.2**2 + 0.5**2 + vae.C1)
    assert float(vae.perceptual_loss(ours, wanted)) == pytest.approx(1 - light, abs=1e-4)


def test_muon_takes_convolutions_as_matrices_and_skips_what_has_no_gradient() -> None:
    import _optimizers as optimizers

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1))
    idle = torch.nn.Conv2d(2, 2, 1)
    net.add_module("idle", idle)
    kept = idle.weight.detach().clone()
    matrices, others = optimizers.convolutions(net)
    assert len(matrices) == len(others) == 3
    optimizer = optimizers.MuonAndAdamW(matrices, others, (1e-2, 1e-2))
    x = torch.randn(2, 3, 8, 8)
    losses = []
    for _ in range(60):
        loss = (net[1](net[0](x)) - x).square().mean()
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(idle.weight, kept)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_schedule_rises_by_steps_and_falls_by_the_clock() -> None:
    from _optimizers import schedule

    assert schedule(0, 0.0, 10) == pytest.approx(0.1, abs=2e-3)
    assert schedule(50, 0.0, 10) == pytest.approx(1.0, abs=2e-3)
    assert schedule(50, 0.5, 10) == pytest.approx(0.5, abs=2e-3)
    assert schedule(50, 1.0, 10) < 2e-3


@pytest.mark.slow
def test_the_video_loss_trains_transformer_text_and_views_and_no_action(corpus: Path) -> None:
    import _tiny_video as video

    encoder, tokenizer = untrained_text()
    prior = video.Prior(untrained_transformer(), encoder, tokenizer)
    latents = torch.randn(6, 48, 2, 3, 6, 8).half()
    data = video.Latents(latents, torch.tensor([0, 0, 0, 1, 1, 1]), ("open the door", "hammer"))
    loss = video.loss_of(prior, data, torch.Generator().manual_seed(0))
    assert 0.2 < float(loss) < 20
    loss.backward()
    without = {name for name, p in prior.named_parameters() if p.grad is None or not torch.any(p.grad)}
    heads = {name for name, _ in prior.named_parameters() if "action_" in name or "proprio_" in name}
    assert heads <= without
    assert not {name for name in without - heads if name.endswith(".weight")}
    assert float(prior.network.view_embedding.weight.grad.abs().sum()) > 0


@pytest.mark.sim
@pytest.mark.skipif(not SIMULATED, reason="Meta-World is not installed: pip install 'xwam-ft[sim]'")
def test_held_out_tasks_are_tasks_and_are_not_trained_on() -> None:
    import _tiny_corpus as corpus
    import metaworld_table as table

    tasks = corpus.training_tasks()
    assert len(tasks) + len(corpus.HELD_OUT) == len(corpus.all_tasks()) == 50
    assert not set(tasks) & set(corpus.HELD_OUT)
    assert set(table.TASKS) <= set(corpus.HELD_OUT)


def test_the_table_shows_what_was_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import metaworld_table as table

    (tmp_path / "lora_prior" / "bundle").mkdir(parents=True)
    cell = tmp_path / "lora_prior" / f"{table.TASKS[0]}_10"
    cell.mkdir()
    metrics: dict[str, Any] = {"successes": 49, "of": 50, "rate": 0.98, "interval_95": [0.895, 0.996]}
    (cell / "metrics.json").write_text(json.dumps(metrics))
    table.show(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "| lora_prior | 10 | 49 of 50 (90–100 %) | – | – | – | – |"
    assert len(lines) == 3
    for task, rate in zip(table.TASKS, (1.0, 0.5, 0.5, 0.0), strict=True):
        other = tmp_path / "lora_prior" / f"{task}_2"
        other.mkdir()
        (other / "metrics.json").write_text(json.dumps(metrics | {"rate": rate}))
    table.show(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 50 % |")


def test_a_row_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    import metaworld_table as table

    with pytest.raises(UserError, match=r"unknown row 'lora_prio' \(did you mean 'lora_prior'\?\).*from_nothing"):
        table.row("lora_prio", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        table.show(tmp_path / "none")


def test_training_by_the_clock_leaves_averaged_weights_and_tells_every_step() -> None:
    import _optimizers as optimizers

    torch.manual_seed(0)
    net = torch.nn.Conv2d(2, 2, 1)
    target = torch.randn(1, 2, 4, 4)
    told: list[tuple[int, float, float]] = []
    seen: list[torch.Tensor] = []

    def loss_of_step(step: int) -> torch.Tensor:
        assert step == len(told)
        seen.append(net.weight.detach().clone())
        return (net(target) - target).square().mean()

    optimizer = optimizers.MuonAndAdamW(*optimizers.convolutions(net), (3e-2, 3e-2))
    steps = optimizers.train_by_clock(
        net, optimizer, loss_of_step, seconds=0.5, warmup=3, report=lambda *what: told.append(what)
    )
    assert steps == len(told) > 10
    assert told[-1][2] < told[0][2]
    assert not net.training
    assert not any(torch.equal(net.weight, weight) for weight in seen), "the last weights, not their average"
    assert all(0 <= done < 1 for _, done, _ in told)


def test_what_was_not_made_yet_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _tiny_corpus as corpus_of
    import pretrain_tiny

    monkeypatch.setattr(corpus_of, "all_tasks", lambda: ["hammer"])
    with pytest.raises(UserError, match=r"has no video/hammer.npz. Fix: run: .*pretrain_tiny.py corpus"):
        pretrain_tiny.vae(tmp_path)
    with pytest.raises(UserError, match=r"vae.json: does not exist. Fix: run: .*pretrain_tiny.py vae"):
        pretrain_tiny.pack(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
