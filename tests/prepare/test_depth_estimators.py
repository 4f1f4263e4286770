"""Every depth architecture of transformers, and Marigold, built tiny on the spot: what they give and what they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depth_models import FAMILIES, save_marigold, save_model

from xwam_ft.errors import UserError
from xwam_ft.prepare.depth import parse_depth
from xwam_ft.prepare.depth.marigold import Marigold
from xwam_ft.prepare.depth.marigold import describe as describe_marigold
from xwam_ft.prepare.depth.transformers_estimator import TransformersEstimator, describe
from xwam_ft.prepare.embodiment.cameras import CameraPlan
from xwam_ft.prepare.embodiment.schema import DepthRange, DepthVideo

METRIC = {"depth_pro", "glpn", "prompt_depth_anything", "zoedepth"}
PLAIN = CameraPlan("front", "front", None)
WITH_DEPTH = CameraPlan("front", "front", DepthVideo(source="depth", unit="mm"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_model(family, tmp_path_factory.mktemp("models") / f"tiny_{family}")
        return made[family]

    return find


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    return smooth.repeat(12, axis=1).repeat(12, axis=2)


def test_every_architecture_transformers_knows_is_tried() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    # chmv2 gives heights of trees and is refused; TIPSv2 is told apart by its name alone, as it has no small form.
    assert set(KNOWN) <= {*FAMILIES, "chmv2", "tipsv2_dpt"}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_gives_depth_at_the_pictures_size(
    family: str, models: Callable[[str], Path], pictures: np.ndarray
) -> None:
    folder = models(family)
    found = describe(str(folder))
    assert found.metric == (family in METRIC)
    assert found.prompted == (family == "prompt_depth_anything")
    ramp = np.broadcast_to(np.linspace(0.5, 2.0, 24 * 30, dtype=np.float32).reshape(24, 30), (9, 24, 30))
    prompt = ramp if found.prompted else None
    estimator = TransformersEstimator(str(folder))
    depth = estimator.estimate(pictures, None, prompt)
    assert depth.shape == (9, 48, 60)
    assert np.isfinite(depth).all()
    assert depth.std() > 1e-3
    # A batch is eight pictures: the ninth stands alone, and what is beside a picture does not change it.
    again = estimator.estimate(pictures[8:], None, None if prompt is None else prompt[8:])
    np.testing.assert_allclose(depth[8:], again, rtol=1e-3, atol=1e-3 * depth.std())
    # The library's own way back to the picture's size (bicubic, where ours is bilinear) says the same.
    import torch

    more: dict[str, Any] = {}
    if prompt is not None:
        more = {"prompt_depth": [prompt[0]], "prompt_scale_to_meter": 1.0}
    with torch.inference_mode():
        outputs = estimator.model(**estimator.processor(images=[pictures[0]], return_tensors="pt", **more))
        sizes = "source_sizes" if family == "zoedepth" else "target_sizes"
        (theirs,) = estimator.processor.post_process_depth_estimation(outputs, **{sizes: [(48, 60)]})
    wanted = theirs["predicted_depth"].numpy()
    assert float(np.abs(depth[0] - wanted).mean()) < 0.15 * float(wanted.std())


@pytest.mark.slow
def test_depth_pro_takes_the_cameras_focal_length(models: Callable[[str], Path], pictures: np.ndarray) -> None:
    estimator = TransformersEstimator(str(models("depth_pro")))
    once = estimator.estimate(pictures[:1], 60.0, None)
    within = (once > 2e-4) & (once < 5e3)
    assert within.any()
    np.testing.assert_allclose(estimator.estimate(pictures[:1], 120.0, None)[within], 2 * once[within], rtol=1e-4)
    assert not np.allclose(estimator.estimate(pictures[:1], None, None), once)  # else it is what the model sees


@pytest.mark.slow
def test_depth_pro_without_any_focal_length_is_told(tmp_path: Path, pictures: np.ndarray) -> None:
    estimator = TransformersEstimator(str(save_model("depth_pro", tmp_path / "blind", use_fov_model=False)))
    with pytest.raises(UserError, match="needs the focal length, and neither the camera has intrinsics"):
        estimator.estimate(pictures[:1], None, None)
    assert estimator.estimate(pictures[:1], 50.0, None).shape == (1, 48, 60)


@pytest.mark.slow
def test_a_prompt_matters_and_its_absence_is_no_depth(models: Callable[[str], Path], pictures: np.ndarray) -> None:
    folder = models("prompt_depth_anything")
    estimator = TransformersEstimator(str(folder))
    prompt = np.linspace(0.5, 2.0, 2 * 24 * 30, dtype=np.float32).reshape(2, 24, 30)
    near = estimator.estimate(pictures[:2], None, prompt)
    assert not np.allclose(near, estimator.estimate(pictures[:2], None, prompt[:, :, ::-1].copy()))
    holes = prompt.copy()
    holes[:, 3:6, 3:6] = 0.0
    assert np.isfinite(estimator.estimate(pictures[:2], None, holes)).all()  # filled from beside
    assert np.isnan(estimator.estimate(pictures[:2], None, np.zeros_like(prompt))).all()
    with pytest.raises(UserError, match="which completes recorded depth, and no camera of the embodiment names"):
        parse_depth(f"transformers:{folder}", [PLAIN], [], DepthRange())
    plan = parse_depth(f"transformers:{folder}", [WITH_DEPTH, CameraPlan("side", "side", None)], [], DepthRange())
    assert plan.note == "metric: recorded depth is completed; side: no recorded depth, stored as invalid"


@pytest.mark.slow
def test_the_fingerprint_is_of_the_weights(models: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = models("depth_anything")
    before = describe(str(folder))
    assert before.note == "relative by its config"
    copy = shutil.copytree(folder, tmp_path / "tiny_depth_anything")
    assert describe(str(copy)) == before
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert describe(str(copy)).fingerprint != before.fingerprint
    metric = save_model("depth_anything", tmp_path / "m", depth_estimation_type="metric", max_depth=20)
    assert (describe(str(metric)).metric, describe(str(metric)).note) == (True, "metric by its config")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "metric", "note"),
    [
        ({}, False, "relative: depth up to scale and shift, stored as 1 - depth"),
        ({"shift_invariant": False}, False, "relative: depth up to scale, inverted"),
        ({"prediction_type": "disparity"}, False, "relative: inverse depth"),
        ({"scale_invariant": False, "shift_invariant": False}, True, "metric by its config"),
    ],
)
def test_what_marigold_gives_is_in_its_config(
    changes: dict[str, Any], metric: bool, note: str, tmp_path: Path, pictures: np.ndarray
) -> None:
    folder = save_marigold(tmp_path / "marigold", **changes)
    found = describe_marigold(str(folder))
    assert found.metric == metric
    assert found.note.startswith(note)
    if changes and "scale_invariant" not in changes:
        return  # two of them are run
    estimator = Marigold(str(folder))
    depth = estimator.estimate(pictures[:5], None, None)  # more than a batch of four
    assert depth.shape == (5, 48, 60)
    assert depth.std() > 0
    # Equal pictures get equal depth, whatever stands beside them: all start from the same noise.
    np.testing.assert_allclose(estimator.estimate(pictures[4:5], None, None)[0], depth[4], atol=1e-4)
    assert parse_depth(f"marigold:{folder}", [PLAIN], [], DepthRange()).aligned == (not metric)


def test_another_pipeline_is_no_marigold(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="is a StableDiffusionPipeline"):
        describe_marigold(str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        describe_marigold(str(tmp_path / "nowhere"))
