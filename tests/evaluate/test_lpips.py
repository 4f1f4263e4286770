"""LPIPS from a file of AlexNet's weights: random ones here, in the form of the real ones, which are not at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.evaluate.evaluate import evaluate_bundle
from xwam_ft.evaluate.lpips import BATCH, VARIABLE, Lpips, read_lpips
from xwam_ft.shards import ShardSet


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were to be fetched")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import alexnet

    path = tmp_path_factory.mktemp("lpips") / "alexnet.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(alexnet(weights=None).features.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def lpips(weights: Path) -> Lpips:
    found = read_lpips(weights)
    assert found is not None
    return found


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3)).astype(np.uint8)


def test_it_is_the_published_sum_over_five_depths(lpips: Lpips, weights: Path) -> None:
    """Written down once more: features scaled to length 1, differences squared and weighted by channel, averaged."""
    from torchvision.models import alexnet

    features = alexnet(weights=None).features.eval()
    features.load_state_dict(lpips_state(weights))
    first, second = pictures(3, 1), pictures(3, 2)
    heads = [head.model[-1].weight[0, :, 0, 0] for head in lpips.network.lins]
    mean, spread = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    with torch.no_grad():
        streams = []
        for shown in (first, second):
            x = (torch.from_numpy(shown).float() / 127.5 - 1 - mean) / spread
            x = x.permute(0, 3, 1, 2)
            depths = []
            for index, layer in enumerate(features):
                x = layer(x)
                if index in (1, 4, 7, 9, 11):  # after each ReLU
                    depths.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
            streams.append(depths)
        wanted = sum(
            ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2))
            for a, b, head in zip(*streams, heads, strict=True)
        )
    np.testing.assert_allclose(lpips(first, second), wanted, rtol=1e-4)


def test_equal_pictures_have_none_and_noise_adds_to_it(lpips: Lpips) -> None:
    recorded = pictures(BATCH + 2, 0)  # more than go through at once
    assert lpips(recorded, recorded) == pytest.approx(np.zeros(BATCH + 2), abs=1e-6)
    noise = np.random.default_rng(3).normal(0, 1, recorded.shape)
    little, much = (np.clip(recorded + scale * noise, 0, 255).astype(np.uint8) for scale in (5, 60))
    assert (lpips(little, recorded) < lpips(much, recorded)).all()
    np.testing.assert_allclose(lpips(much, recorded), lpips(recorded, much), rtol=1e-5)
    np.testing.assert_allclose(lpips(much, recorded)[-1:], lpips(much[-1:], recorded[-1:]), rtol=1e-4)
    assert lpips(recorded[:0], recorded[:0]).shape == (0,)


def test_a_whole_alexnet_and_a_torch_file_are_read_and_the_variable_names_it(
    weights: Path, lpips: Lpips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import alexnet

    assert read_lpips(None) is None
    whole = {f"features.{name}": tensor for name, tensor in lpips_state(weights).items()}
    torch.save(whole | {"classifier.1.bias": alexnet(weights=None).classifier[1].bias}, tmp_path / "alexnet.pth")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "alexnet.pth"))
    other = read_lpips(None)
    assert other is not None
    np.testing.assert_array_equal(other(pictures(2, 1), pictures(2, 2)), lpips(pictures(2, 1), pictures(2, 2)))


def lpips_state(weights: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(weights)


def test_another_file_is_one_sentence(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent.safetensors"
    with pytest.raises(UserError, match=r"--lpips .*absent.*no such file of AlexNet's weights\. Fix: make it once"):
        read_lpips(absent)
    monkeypatch.setenv(VARIABLE, str(absent))
    with pytest.raises(UserError, match=f"{VARIABLE}=.*no such file"):
        read_lpips(None)
    state = lpips_state(weights)
    save_file({name: tensor for name, tensor in state.items() if name != "3.bias"}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"holds no AlexNet \(its features\.3\.bias is missing"):
        read_lpips(tmp_path / "part.safetensors")
    save_file(state | {"3.bias": torch.full_like(state["3.bias"], float("nan"))}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"is damaged \(features\.3\.bias is not finite\)"):
        read_lpips(tmp_path / "nan.safetensors")


def test_evaluate_shows_it_by_horizon_with_the_hash_of_its_weights(
    bundle: Path, trained_run: Path, weights: Path, lpips: Lpips, tmp_path: Path
) -> None:
    shards = ShardSet.open(trained_run.parent / "shards")
    out = tmp_path / "out"
    _, metrics = evaluate_bundle(bundle, shards.folder, out, 2, QUIET, world=True, lpips=weights)
    judged = json.loads((out / "metrics.json").read_text())["world"]
    assert judged["lpips"] == {"weights": str(weights), "sha256": lpips.sha256}
    row = judged["scores"]["all"]["lpips"]
    assert row["imagined"] > 0
    assert row["repeat_first_frame"] is not None
    assert len(judged["by_horizon"]["lpips"]["imagined"]) == len(judged["horizon_seconds"])
    page = (out / "report.html").read_text()
    assert ">LPIPS<" in page
    assert "LPIPS was not measured" not in page
    assert metrics["world"]["per_clip"]["lpips"]
