"""Any Hugging Face depth-estimation model (AutoModelForDepthEstimation), from a folder or the hub.

Whether the numbers are metres is read from the model's config: `depth_estimation_type`, a model family that is always
metric (ZoeDepth, Depth Pro, GLPN, Prompt Depth Anything) or a training set in its name (NYU, KITTI, "metric"). What
cannot be known is taken as relative inverse depth, and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.prepare.depth import DepthStage

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.prepare.embodiment_slots import CameraPlan
    from xwam_ft.prepare.episode import Episode

METRIC_FAMILIES = ("zoedepth", "depth_pro", "glpn", "prompt_depth_anything")
METRIC_NAMES = ("metric", "nyu", "kitti")
RELATIVE_FAMILIES = ("depth_anything", "dpt")
BATCH = 8


def is_metric(model_id: str) -> tuple[bool, str]:
    """(metres or not, how that is known).

    Raises:
        UserError: no such model, or not one for depth estimation.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    try:
        config: Any = AutoConfig.from_pretrained(model_id)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot be loaded ({str(error).splitlines()[0]})",
            f"--depth transformers:{model_id}",
            "give a folder or hub id of a depth-estimation model, such as depth-anything/Depth-Anything-V2-Small-hf",
        ) from None
    family = str(config.model_type)
    if family not in KNOWN:
        raise UserError(
            f"is a {family!r} model, not one for depth estimation",
            f"--depth transformers:{model_id}",
            "give a depth-estimation model, such as depth-anything/Depth-Anything-V2-Small-hf",
        )
    stated = getattr(config, "depth_estimation_type", None)
    if stated in ("metric", "relative"):
        return stated == "metric", f"{stated} by its config"
    if family in METRIC_FAMILIES:
        return True, f"metric: {family} models are"
    name = Path(model_id).name.lower()
    if named := [word for word in METRIC_NAMES if word in name]:
        return True, f"metric by its name ({named[0]})"
    if family in RELATIVE_FAMILIES:
        return False, f"relative: {family} models are unless they say otherwise"
    return False, f"taken as relative inverse depth: {family} does not say"


class TransformersEstimator(DepthStage):
    def __init__(self, model_id: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        from transformers.utils import logging

        logging.disable_progress_bar()  # the bar of `prepare` is the one to look at
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(1)  # the bytes must not depend on how many processes share the machine
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(model_id)
            self.model: Any = AutoModelForDepthEstimation.from_pretrained(model_id).eval().to(self.device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot be loaded ({str(error).splitlines()[0]})",
                f"--depth transformers:{model_id}",
                "download the whole model, its preprocessor_config.json included",
            ) from None

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"]:
        import torch

        found: list[np.ndarray] = []
        with torch.inference_mode():
            for first in range(0, len(pictures), BATCH):
                inputs = self.processor(images=list(pictures[first : first + BATCH]), return_tensors="pt")
                depth = self.model(**inputs.to(self.device)).predicted_depth.float()
                source = pictures.shape[1:3]  # so that the later nearest-pixel resize samples a smooth map
                depth = torch.nn.functional.interpolate(depth[:, None], size=source, mode="bilinear")[:, 0]
                found.append(depth.cpu().numpy())
        return np.concatenate(found)
