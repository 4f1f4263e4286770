"""Novelty: what its numbers are, and that another scene lies above every training clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xwam_ft.evaluate.familiar import PICTURES, novelty_rows, novelty_table
from xwam_ft.policy import novelty
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.novelty import Novelty, NoveltyWatch, features, fit
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.request import example_observation
from xwam_ft.policy.server import serving
from xwam_ft.shards import ShardSet


def test_features_are_each_channel_s_mean_over_each_quarter() -> None:
    latents = torch.zeros(1, 2, 1, 4, 6)
    latents[0, 1, 0, :2, :3] = 8.0  # the upper left quarter of the second channel
    assert features(latents)[0, 0].tolist() == [0, 0, 0, 0, 8, 0, 0, 0]


def drawn(count: int, episodes: int, width: int = 8, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Features of pictures [n, 1, f]: every episode has a place of its own, about which its pictures lie."""
    rng = np.random.default_rng(seed)
    of = [index % episodes for index in range(count)]
    places = rng.normal(0, 1, (episodes, width))
    return (places[of] + 0.1 * rng.normal(0, 1, (count, width)))[:, None], of


def test_one_is_what_a_hundredth_of_pictures_of_unseen_episodes_reach() -> None:
    rows, of = drawn(400, 40)
    known = fit(rows, of, ["front"])
    others, _ = drawn(400, 40, seed=1)  # other episodes of the same kind
    score = np.sqrt(np.einsum("nvf,vfg,nvg->nv", others - known.mean, known.precision, others - known.mean) / 8)
    above = float(np.mean(score / known.scale > 1))
    assert above < 0.15
    assert np.median(score / known.scale) > 0.3


def test_a_distance_is_of_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    wide = np.array([1.0, 10.0, 1.0, 1.0])
    rows = (rng.normal(0, 1, (4000, 4)) * wide)[:, None]
    known = fit(rows, list(range(4000)), ["front"])
    latents = torch.zeros(2, 1, 1, 2, 2)
    latents[0, 0, 0, 0, 0], latents[1, 0, 0, 0, 1] = 5.0, 50.0  # as far, counted in spreads
    near, far = known.scores(latents)[:, 0]
    assert near == pytest.approx(far, rel=0.1)
    assert near * known.scale[0] == pytest.approx(5 / 2, rel=0.1)  # over four numbers: 5 spreads / sqrt(4)


def test_pictures_of_one_colour_and_few_of_them_give_finite_numbers() -> None:
    known = fit(np.zeros((3, 1, 4)), [0, 0, 1], ["front"])
    assert np.isfinite(known.scores(torch.ones(1, 1, 1, 2, 2))).all()
    few = fit(np.random.default_rng(0).normal(size=(5, 2, 64)), [0, 0, 1, 1, 2], ["front", "wrist"])
    assert np.isfinite(few.precision).all()
    assert few.scale.shape == (2,)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    rows, of = drawn(60, 6)
    known = fit(np.repeat(rows, 2, axis=1), of, ["front", "wrist"])
    novelty.save(known, tmp_path / "novelty.safetensors")
    again = novelty.load(tmp_path / "novelty.safetensors")
    assert isinstance(again, Novelty)
    assert again.cameras == ("front", "wrist")
    latents = torch.randn(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(again.scores(latents), known.scores(latents), rtol=1e-4)
    assert again.by_camera(latents[:1]).keys() == {"front", "wrist"}
    assert PICTURES <= 256  # of every export


def recorded(bundle: Path, trained_run: Path) -> tuple[Policy, np.ndarray]:
    """The bundle's policy, and pictures [n, v, h, w, 3] of training clips' starts."""
    shards = ShardSet.open(trained_run.parent / "shards")
    clips = [shards.read_clip(ref) for ref in shards.clips("train", 1)]
    return Policy.load(bundle, selfcheck=False), np.stack([clip.rgb[:, 0] for clip in clips])


def test_another_scene_lies_above_any_training_clip(bundle: Path, trained_run: Path) -> None:
    policy, pictures = recorded(bundle, trained_run)
    assert policy.novelty is not None
    known = policy.novelty.scores(policy.condition(pictures))
    others = {
        "upside down": pictures[:2, :, ::-1],
        "negative": 255 - pictures[:2],
        "noise": np.random.default_rng(0).integers(0, 256, pictures[:2].shape).astype(np.uint8),
        "dark": pictures[:2] // 4,
    }
    for name, strange in others.items():
        found = policy.novelty.scores(policy.condition(np.ascontiguousarray(strange)))
        assert (found.min(axis=0) > known.max(axis=0)).all(), name
    assert np.median(known) < 1


def test_an_answer_says_how_novel_its_pictures_are_over_the_wire_too(bundle: Path, trained_run: Path) -> None:
    policy, pictures = recorded(bundle, trained_run)
    assert policy.novelty is not None
    request = example_observation(policy.contract, policy.contract.prompts[0])
    request["images"] = dict(zip(policy.contract.camera_names, pictures[0], strict=True))
    expected = policy.novelty.by_camera(policy.condition(pictures[:1]))
    assert policy.infer(request, seed=0).novelty == pytest.approx(expected, rel=1e-4)
    with serving(policy) as address, PolicyClient(address, timeout=60.0) as client:
        assert client.infer(request, seed=0)["novelty"] == pytest.approx(expected, rel=1e-4)
        policy.novelty = None  # as in bundles made before there were statistics
        assert "novelty" not in client.infer(request, seed=0)


def watched(most: list[float] | None) -> NoveltyWatch:
    known = fit(np.random.default_rng(0).normal(size=(40, 2, 8)), list(range(40)), ["front", "wrist"])
    assert known.most is not None
    assert (known.most >= 1).all()
    return NoveltyWatch(replace(known, most=None if most is None else np.array(most)))


def test_a_crossing_is_said_once_until_it_is_as_usual_again() -> None:
    watch = watched([1.5, 2.0])
    path = [0.5, 1.4, 1.6, 3.0, 1.2, 1.6, 0.9, 1.6]
    said = [watch.sentences({"front": score, "wrist": 1.8}) for score in path]
    assert [len(found) for found in said] == [0, 0, 1, 0, 0, 0, 0, 1]
    assert "camera 'front' is farther from the training pictures (1.60) than any of them (1.50)" in said[2][0]
    both = watched([1.5, 2.0]).sentences({"front": 9.0, "wrist": 9.0})
    assert [sentence.split("'")[1] for sentence in both] == ["front", "wrist"]
    assert watched(None).sentences({"front": 9.0}) == []
    assert NoveltyWatch(None).sentences({}) == []


def test_the_farthest_training_picture_is_kept_and_older_files_are_read(tmp_path: Path) -> None:
    rows, of = drawn(200, 20)
    rows[3] += 30  # one picture unlike all others
    known = fit(rows, of, ["front"])
    assert known.most is not None
    assert known.most[0] > 3
    path = tmp_path / "novelty.safetensors"
    novelty.save(known, path)
    np.testing.assert_allclose(novelty.load(path).most, known.most, rtol=1e-6)
    novelty.save(replace(known, most=None), path)
    assert novelty.load(path).most is None


def test_serve_warns_each_client_once_and_logs_it(
    bundle: Path, trained_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy, pictures = recorded(bundle, trained_run)
    assert policy.novelty is not None
    assert policy.novelty.most is not None
    request = example_observation(policy.contract, policy.contract.prompts[0])
    usual = {**request, "images": dict(zip(policy.contract.camera_names, pictures[0], strict=True))}
    policy.novelty = replace(policy.novelty, most=np.maximum(1.0, list(policy.infer(usual, seed=0).novelty.values())))
    noise = np.random.default_rng(0).integers(0, 256, pictures[0].shape).astype(np.uint8)
    strange = {**request, "images": dict(zip(policy.contract.camera_names, noise, strict=True))}
    cameras = len(policy.contract.camera_names)

    def novel(answer: dict[str, Any]) -> int:
        return sum("farther from the training pictures" in sentence for sentence in answer["warnings"])

    with serving(policy) as address, PolicyClient(address, timeout=60.0) as client:
        with caplog.at_level("WARNING", "xwam_ft.serve"):
            found = [novel(client.infer(one, seed=0)) for one in (usual, strange, strange, usual, strange)]
        assert found == [0, cameras, 0, 0, cameras]
        with PolicyClient(address, timeout=60.0) as other:
            assert novel(other.infer(strange, seed=0)) == cameras
    logged = [record.getMessage() for record in caplog.records if "farther from" in record.getMessage()]
    assert len(logged) == 3 * cameras
    assert logged[0].startswith("127.0.0.1:")


def test_evaluate_shows_its_distribution(bundle: Path, trained_run: Path) -> None:
    policy, _ = recorded(bundle, trained_run)
    shards = ShardSet.open(trained_run.parent / "shards")
    table = novelty_table(policy, shards, split="train", clips=8)
    assert table is not None
    rows = novelty_rows(table)
    assert [row[0] for row in rows[1:]] == policy.contract.camera_names
    cell = table["cameras"]["front"]
    assert table["clips"] == 8
    assert 0 < cell["median"] <= cell["percentile_95"] <= cell["most"]
    policy.novelty = None
    assert novelty_table(policy, shards, split="train", clips=8) is None
