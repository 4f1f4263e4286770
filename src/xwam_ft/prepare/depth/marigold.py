"""Marigold: depth by a fine-tuned Stable Diffusion, through diffusers' own MarigoldDepthPipeline.

What it gives is in its config. `prediction_type: disparity` is inverse depth. `depth` is metric where it is neither
scale- nor shift-invariant; up to scale it is inverted; up to scale and shift (the published models) it cannot be
inverted, and 1 - depth is stored: near is large, as everywhere, but equal steps are equal steps of depth.
Every picture starts from the same noise, so that what changes between two estimates is what changed between pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.prepare.depth.estimated import pick_device
from xwam_ft.prepare.depth.estimator import Description, Estimator
from xwam_ft.prepare.depth.transformers_estimator import model_fingerprint

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

DEFAULT = "prs-eth/marigold-depth-v1-1"
RESOLUTION, STEPS = 768, 4  # where a model's config does not say its own
SEED = 0
BATCH = 4
LEAST = 1e-3  # of depth up to scale, which lies in 0..1, before it is inverted


def describe(argument: str) -> Description:
    """What a Marigold model gives, by its model_index.json alone.

    Raises:
        UserError: no such model, or not a MarigoldDepthPipeline.
    """
    from diffusers import MarigoldDepthPipeline, __version__

    name = argument or DEFAULT
    fix = f"give a folder or hub id of a MarigoldDepthPipeline, such as {DEFAULT}"
    config: Any
    revision: Any
    try:
        config, revision = MarigoldDepthPipeline.load_config(name, return_commit_hash=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be loaded ({str(error).splitlines()[0]})", f"--depth marigold:{name}", fix) from None
    if config.get("_class_name") != "MarigoldDepthPipeline":
        raise UserError(f"is a {config.get('_class_name')}", f"--depth marigold:{name}", fix)
    form, metric = _form(config)
    fingerprint = f"diffusers {__version__} seed {SEED} {model_fingerprint(name, revision)}"
    return Description(metric, form, fingerprint)


def _form(config: Any) -> tuple[str, bool]:
    """(what its numbers are, whether they are metres)."""
    free = [name for name in ("scale", "shift") if config.get(f"{name}_invariant", True)]
    if config.get("prediction_type") == "disparity":
        return "relative: inverse depth", False
    if not free:
        return "metric by its config", True
    if free == ["scale"]:
        return "relative: depth up to scale, inverted", False
    return (
        "relative: depth up to scale and shift, stored as 1 - depth, so its steps are of depth, not of inverse",
        False,
    )


def open_estimator(argument: str) -> Estimator:
    return Marigold(argument or DEFAULT)


class Marigold(Estimator):
    def __init__(self, model_id: str) -> None:
        from diffusers import MarigoldDepthPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()  # the bar of `prepare` is the one to look at
        self.device = pick_device()
        try:
            # A folder is complete; only the hub is asked for what is missing.
            local = Path(model_id).is_dir()
            self.pipeline: Any = MarigoldDepthPipeline.from_pretrained(model_id, local_files_only=local)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot be loaded ({str(error).splitlines()[0]})",
                f"--depth marigold:{model_id}",
                "download the whole pipeline",
            ) from None
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.device)
        self.form, self.metric = _form(self.pipeline.config)

    def estimate(
        self, pictures: UInt8[ndarray, "n h w 3"], focal: float | None, prompt: ndarray | None
    ) -> Float[ndarray, "n h w"]:
        import torch

        longest = int(self.pipeline.default_processing_resolution or RESOLUTION)
        noise = self._noise(pictures.shape[1], pictures.shape[2], longest)
        found: list[np.ndarray] = []
        for first in range(0, len(pictures), BATCH):
            part = pictures[first : first + BATCH]
            answer = self.pipeline(
                torch.from_numpy(np.moveaxis(part, -1, 1).astype(np.float32) / 255.0),
                num_inference_steps=self.pipeline.default_denoising_steps or STEPS,
                processing_resolution=longest,
                latents=noise.expand(len(part), -1, -1, -1),
                batch_size=BATCH,
                output_type="np",
            )
            found.append(np.asarray(answer.prediction)[..., 0])
        depth = np.concatenate(found).astype(np.float32)
        if self.metric or "inverse depth" in self.form:
            return depth
        return 1.0 / np.maximum(depth, LEAST) if "inverted" in self.form else 1.0 - depth

    def _noise(self, height: int, width: int, longest: int) -> Any:
        """The starting noise of every picture, at the size the pipeline works at."""
        import torch

        factor = int(self.pipeline.vae_scale_factor)
        height, width = height * longest // max(height, width), width * longest // max(height, width)
        shape = (1, self.pipeline.vae.config.latent_channels, -(-height // factor), -(-width // factor))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED), dtype=self.pipeline.unet.dtype)
        return noise.to(self.device)
