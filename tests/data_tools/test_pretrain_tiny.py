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
    """Two tasks of random pictures: episodes of 7, 9 and 3 pictures and one of 26, and 8 single ones each."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for task in ("door-open", "hammer"):
        for kind in ("video", "depth"):
            (root / kind).mkdir(exist_ok=True)
        rgb = rng.integers(0, 256, (45, 3, 96, 128, 3), dtype=np.uint8)
        metres = rng.uniform(0.1, 4.0, (4, 96, 128)).astype(np.float16)
        np.savez(root / "video" / f"{task}.npz", rgb=rgb, lengths=np.array([7, 9, 3, 26]), metres=metres)
        looks = rng.integers(0, 256, (8, 96, 128, 3), dtype=np.uint8)
        far = rng.uniform(0.1, 4.0, (8, 96, 128)).astype(np.float16)
        focal = np.array([48, 48, 48, 48, 60, 61, 62, 63], np.float32)
        np.savez(root / "depth" / f"{task}.npz", rgb=looks, metres=far, focal=focal)
    return root


def test_every_kind_of_picture_is_drawn_in_range(corpus: Path) -> None:
    import _tiny_vae as vae

    data = vae.Pictures(corpus, ["door-open", "hammer"])
    held = {key: sorted(len(data.rgb[index]) for index in found) for key, found in data.holding.items()}
    assert held[5, 1] == [7, 7, 9, 9, 26, 26], "episodes shorter than a clip are left out"
    assert held[5, 2] == [9, 9, 26, 26]
    assert held[13, 2] == [26, 26]
    assert held[13, 3] == []
    rng = np.random.default_rng(1)
    drawn = {
        "clips": (data.clips(3, rng), 5),
        "zoomed": (data.zoomed(3, rng), 5),
        "recoloured": (vae.recolour(data.clips(3, rng), rng), 5),
        "longer": (data.clips(3, rng, 13), 13),
        "longer, zoomed": (data.zoomed(3, rng, 9), 9),
        "single": (data.single(3, rng), 1),
        "depths": (data.depths(3, rng), 1),
        "moving depths": (data.depths(3, rng, 9), 9),
    }
    for name, (pictures, frames) in drawn.items():
        assert tuple(pictures.shape) == (3, 3, frames, 96, 128), name
        assert float(pictures.abs().max()) <= 1.0 + 1e-6, name
    depth = drawn["depths"][0]
    assert torch.equal(depth[:, 0], depth[:, 1])
    assert float(depth.min()) < -0.9
    assert float(depth.max()) > 0.9
    moving = drawn["moving depths"][0]
    assert not torch.equal(moving[:, :, 0], moving[:, :, 8])


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


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_orthogonal_steps_keep_directions_and_even_out_their_strength(shape: tuple[int, int]) -> None:
    from _optimizers import orthogonal

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonal(matrix) @ v.T
    assert torch.allclose(core, torch.diag(core.diagonal()), atol=1e-9)
    assert bool(((core.diagonal() > 0.6) & (core.diagonal() < 1.3)).all())


def test_the_schedule_rises_by_steps_and_falls_by_the_clock() -> None:
    from _optimizers import schedule

    assert schedule(0, 0.0, 10) == pytest.approx(0.1, abs=2e-3)
    assert schedule(50, 0.0, 10) == pytest.approx(1.0, abs=2e-3)
    assert schedule(50, 0.5, 10) == pytest.approx(1.0, abs=2e-3), "level until the last part"
    assert schedule(50, 0.8, 10) == pytest.approx(0.5, abs=2e-3)
    assert schedule(50, 1.0, 10) < 2e-3


@pytest.mark.slow
def test_the_video_loss_trains_transformer_text_and_views_and_no_action(corpus: Path) -> None:
    import _tiny_video as video

    encoder, tokenizer = untrained_text()
    prior = video.Prior(untrained_transformer(), encoder, tokenizer)
    four = torch.randn(6, 48, 4, 3, 6, 8).half()
    data = video.joined([{"4": four[:3]}, {"4": four[3:], "2": four[:2, :, :2]}], ("open the door", "hammer"))
    assert {span: len(clips) for span, clips in data.video.items()} == {4: 6, 3: 6, 2: 8}
    assert data.task[2].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    with torch.no_grad():
        for span, views in ((3, 1), (4, 2)):
            assert 0.2 < float(video.loss_of(prior, data, torch.Generator().manual_seed(0), span, views)) < 20
    loss = video.loss_of(prior, data, torch.Generator().manual_seed(0))
    assert 0.2 < float(loss) < 20
    loss.backward()
    without = {name for name, p in prior.named_parameters() if p.grad is None or not torch.any(p.grad)}
    heads = {name for name, _ in prior.named_parameters() if "action_" in name or "proprio_" in name}
    assert heads <= without
    assert not {name for name in without - heads if name.endswith(".weight")}
    assert float(prior.network.view_embedding.weight.grad.abs().sum()) > 0


@pytest.mark.slow
def test_the_longest_clips_at_every_rate_are_encoded_once_and_cut(corpus: Path) -> None:
    import _tiny_video as video
    from xwam_ft.model.tiny import untrained_vae

    vae = untrained_vae().eval()
    found = video.encode_task(vae, corpus, "hammer", 5)
    # Episodes of 7, 9, 3 and 26 pictures; starts 0, 5 | 10, 15 | - | 20, 25, .., 40 (the last four in the fourth).
    assert {span: tuple(tensor.shape) for span, tensor in found.items()}["4"][1:] == (48, 4, 3, 6, 8)
    with np.load(corpus / "video" / "hammer.npz") as file:
        rgb = file["rgb"]
    first = video._encode(vae, video._pixels(rgb[None, 20:25]), views=3)
    longest = found["4"][0].float()  # the first start with 13 pictures before its episode's end, at stride 1
    torch.testing.assert_close(longest[None, :, :2], first, atol=2e-2, rtol=1e-2)


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
    assert lines[-1] == "| lora_prior | – | 10 | 49 of 50 (90–100 %) | – | – | – | – |"
    assert len(lines) == 3
    for task, rate in zip(table.TASKS, (1.0, 0.5, 0.5, 0.0), strict=True):
        other = tmp_path / "lora_prior" / f"{task}_2"
        other.mkdir()
        (other / "metrics.json").write_text(json.dumps(metrics | {"rate": rate}))
    table.show(tmp_path)
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].endswith("| 50 % |")
    table.keep(tmp_path, tmp_path / "kept")
    kept = json.loads((tmp_path / "kept/lora_prior.json").read_text())
    assert kept["cells"][f"{table.TASKS[0]}_10"] == metrics
    capsys.readouterr()
    table.show(tmp_path / "kept")
    assert capsys.readouterr().out == shown


def test_a_row_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    import metaworld_table as table

    with pytest.raises(UserError, match=r"unknown row 'lora_prio' \(did you mean 'lora_prior'\?\).*from_nothing"):
        table.row("lora_prio", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        table.show(tmp_path / "none")


def make_training(path: Path, seconds: float) -> tuple[Any, Any, list[int]]:
    """A convolution that learns to copy noise drawn by step; the steps whose loss was asked for."""
    import _optimizers as optimizers

    torch.manual_seed(0)
    net = torch.nn.Conv2d(2, 2, 1)
    asked: list[int] = []

    def loss_of_step(step: int) -> torch.Tensor:
        asked.append(step)
        x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        return (net(x) - x).square().mean()

    optimizer = optimizers.MuonAndAdamW(*optimizers.convolutions(net), (3e-2, 3e-2))
    return optimizers.Training(net, optimizer, path, seconds=seconds, warmup=3), loss_of_step, asked


def by_hand(monkeypatch: pytest.MonkeyPatch, tick: float) -> None:
    """A clock on which every step takes `tick` seconds."""
    import _optimizers as optimizers

    ticks = iter(range(10**6))
    monkeypatch.setattr(optimizers, "_cpu_seconds", lambda: tick * next(ticks))


def test_training_by_the_clock_leaves_averaged_weights_and_tells_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(monkeypatch, 1.0)
    training, loss_of_step, asked = make_training(tmp_path / "going.pt", 40.0)
    told: list[tuple[int, float, float]] = []
    assert training.run(loss_of_step, lambda *what: told.append(what)) == len(told) == len(asked) == 40
    assert told[-1][2] < told[0][2]
    assert not training.module.training
    average = training.averaged.module.weight
    assert torch.equal(training.module.weight, average)
    assert all(0 <= done < 1 for _, done, _ in told)


def test_a_killed_stage_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(monkeypatch, 70.0)
    whole, loss_of_step, asked = make_training(tmp_path / "whole.pt", 1400.0)
    whole.run(loss_of_step, lambda *_: None)
    assert asked == list(range(20))

    def killed(step: int, done: float, loss: float) -> None:
        if step == 11:
            raise KeyboardInterrupt

    cut, loss_of_step, asked = make_training(tmp_path / "cut.pt", 1400.0)
    with pytest.raises(KeyboardInterrupt):
        cut.run(loss_of_step, killed)
    again, loss_of_step, asked = make_training(tmp_path / "cut.pt", 1400.0)
    assert again.step == 9, "kept every 180 seconds"
    again.run(loss_of_step, lambda *_: None)
    assert asked == list(range(9, 20))
    assert torch.equal(again.module.weight, whole.module.weight)
    assert torch.equal(again.module.bias, whole.module.bias)


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
