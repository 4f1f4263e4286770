"""Any depth-estimation model of Hugging Face transformers (AutoModelForDepthEstimation), from a folder or the hub.

Whether the numbers are metres is read from architecture and config: families that are always metric (ZoeDepth, Depth
Pro, GLPN, TIPSv2), `depth_estimation_type` (Depth Anything), or a training set in the name (NYU, KITTI, "metric").
What cannot be known is taken as relative inverse depth, and said. What a family needs besides pictures:
    depth_pro               the focal length: the camera's, where calibrated, else what the model sees
    prompt_depth_anything   recorded depth to complete, in metres; so is its answer
    zoedepth                the margin it adds to pictures taken off again
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import depth_code
from xwam_ft.errors import UserError
from xwam_ft.files import sha256
from xwam_ft.pictures import resize_nearest
from xwam_ft.prepare.depth.estimated import pick_device
from xwam_ft.prepare.depth.estimator import Description, Estimator

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray
    from torch import Tensor

METRIC_FAMILIES = ("zoedepth", "depth_pro", "glpn", "tipsv2_dpt")
METRIC_NAMES = ("metric", "nyu", "kitti")
RELATIVE_FAMILIES = ("depth_anything", "dpt")
PROMPTED = "prompt_depth_anything"
NOT_DEPTH = {"chmv2": "gives the height of trees, not depth"}
PROMPT_SIZE = (192, 256)  # what a telephone's LiDAR gives, and what prompted models were trained on
BATCH = 8
EXAMPLE = "depth-anything/Depth-Anything-V2-Small-hf"


def describe(argument: str) -> Description:
    """What a model gives, by its config alone; its weights are hashed (a folder) or named by revision (the hub).

    Raises:
        UserError: no such model, or not one for depth estimation.
    """
    from transformers import AutoConfig, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    where = f"--depth transformers:{argument}"
    fix = f"give a folder or hub id of a depth-estimation model, such as {EXAMPLE}"
    if not argument:
        raise UserError("names no model", "--depth transformers", fix)
    try:
        config: Any = AutoConfig.from_pretrained(argument)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot be loaded ({str(error).splitlines()[0]})", where, fix) from None
    family = str(config.model_type)
    if family not in KNOWN:
        raise UserError(f"is a {family!r} model, not one for depth estimation", where, fix)
    if family in NOT_DEPTH:
        raise UserError(NOT_DEPTH[family], where, fix)
    metric, note = _is_metric(family, config, Path(argument).name.lower())
    fingerprint = f"transformers {__version__} {model_fingerprint(argument, getattr(config, '_commit_hash', None))}"
    return Description(metric, note, fingerprint, prompted=family == PROMPTED)


def _is_metric(family: str, config: Any, name: str) -> tuple[bool, str]:
    """(metres or not, how that is known)."""
    if family == PROMPTED:
        return True, "metric: recorded depth is completed"
    if family in METRIC_FAMILIES:
        return True, f"metric: {family} models are"
    stated = getattr(config, "depth_estimation_type", None)
    if stated in ("metric", "relative"):
        return stated == "metric", f"{stated} by its config"
    if named := [word for word in METRIC_NAMES if word in name]:
        return True, f"metric by its name ({named[0]})"
    if family in RELATIVE_FAMILIES:
        return False, f"relative: {family} models are unless they say otherwise"
    return False, f"taken as relative inverse depth: {family} does not say"


def model_fingerprint(name: str, revision: str | None) -> str:
    """A hash of a model folder's files, or the hub's id with its revision."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision}"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    listing = "".join(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def open_estimator(argument: str) -> Estimator:
    return TransformersEstimator(argument)


class TransformersEstimator(Estimator):
    def __init__(self, model_id: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        from transformers.utils import logging

        logging.disable_progress_bar()  # the bar of `prepare` is the one to look at
        self.where = f"--depth transformers:{model_id}"
        self.device = pick_device()
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(model_id)
            self.model: Any = AutoModelForDepthEstimation.from_pretrained(model_id).eval().to(self.device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot be loaded ({str(error).splitlines()[0]})",
                self.where,
                "download the whole model, its preprocessor_config.json included",
            ) from None
        self.family = str(self.model.config.model_type)

    def estimate(
        self, pictures: UInt8[ndarray, "n h w 3"], focal: float | None, prompt: Float[ndarray, "n h3 w3"] | None
    ) -> Float[ndarray, "n h w"]:
        import torch

        if self.family == PROMPTED:
            assert prompt is not None
            prompt = _filled(prompt)
        found: list[np.ndarray] = []
        with torch.inference_mode():
            for first in range(0, len(pictures), BATCH):
                part = slice(first, first + BATCH)
                more = {"prompt_depth": list(prompt[part]), "prompt_scale_to_meter": 1.0} if prompt is not None else {}
                inputs = self.processor(images=list(pictures[part]), return_tensors="pt", **more).to(self.device)
                depth = self._at_source(self.model(**inputs), len(pictures[part]), pictures.shape[1:3], focal)
                found.append(depth.float().cpu().numpy())
        estimate = np.concatenate(found)
        if prompt is not None:
            estimate[~np.isfinite(prompt).all(axis=(1, 2))] = np.nan
        return estimate

    def _at_source(self, outputs: Any, count: int, size: tuple[int, ...], focal: float | None) -> Tensor:
        """The model's answer at the pictures' size (smooth, since it is resized to the nearest pixel later)."""
        import torch
        from torch.nn.functional import interpolate

        if self.family == "zoedepth":
            sizes = [tuple(size)] * count
            parts = self.processor.post_process_depth_estimation(outputs, source_sizes=sizes)
            return torch.stack([part["predicted_depth"] for part in parts])
        depth = interpolate(outputs.predicted_depth.float()[:, None], size=tuple(size), mode="bilinear")[:, 0]
        if self.family != "depth_pro":
            return depth
        # It gives inverse depth of a camera whose focal length is the picture's width.
        if focal is not None:
            width_by_focal: Any = size[1] / focal
        elif outputs.field_of_view is not None:
            width_by_focal = 2.0 * torch.tan(0.5 * torch.deg2rad(outputs.field_of_view.float())).view(-1, 1, 1)
        else:
            raise UserError(
                "needs the focal length, and neither the camera has intrinsics nor the model tells it",
                self.where,
                "add `intrinsics: [fx, fy, cx, cy]` to the camera in the embodiment file",
            )
        return 1.0 / (depth * width_by_focal).clamp(1e-4, 1e4)


def _filled(prompt: Float[ndarray, "n h w"]) -> Float[ndarray, "n h2 w2"]:
    """Recorded depth as a prompt: small, without holes; NaN for a frame of a block without any depth at all."""
    height, width = min(prompt.shape[1], PROMPT_SIZE[0]), min(prompt.shape[2], PROMPT_SIZE[1])
    small = resize_nearest(prompt, height, width)  # pyright: ignore[reportArgumentType]
    millimetres = np.rint(np.clip(np.nan_to_num(small, posinf=0.0), 0.0, 65.0) * 1000.0).astype(np.uint16)
    if not millimetres.any():
        return np.full(small.shape, np.nan, dtype=np.float32)
    return (depth_code.fill_holes(millimetres) / 1000.0).astype(np.float32)
