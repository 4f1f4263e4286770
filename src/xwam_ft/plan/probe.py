"""How long a training step takes, measured: a few real steps on the real network, with clips of random numbers."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.precision import chosen_precision, float32_products
from xwam_ft.model.trainable import trainable_network
from xwam_ft.plan.memory import is_out_of_memory, module_on_random_clips, random_batch

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe

MOST = 1024
"""A micro-batch that is not exceeded in looking for the largest."""


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Args:
        step_seconds: of an optimizer step with all its micro-batches, on one device.
        encode_seconds: of a clip through the VAE, all its views and their depth.
        peak_bytes: most GPU memory that a step took; None on a CPU.
        device: its name.
        steps: timed ones; the median counts.
    """

    step_seconds: float
    encode_seconds: float
    peak_bytes: int | None
    device: str
    steps: int


class Prober:
    """The network of a recipe on a device, with which steps are tried; loads the transformer's weights.

    Args:
        latents, text: shapes as in `random_batch`.
    """

    def __init__(
        self,
        recipe: Recipe,
        contract: Contract,
        device: torch.device,
        latents: tuple[int, int, int, int, int],
        text: tuple[int, int],
    ) -> None:
        self.recipe, self.contract, self.device, self.latents, self.text = recipe, contract, device, latents, text
        spec = recipe.backbone
        backbone = load_backbone(
            spec.path, dtype=spec.dtype, parts=("transformer",), revision=spec.revision, quantize=spec.quantize
        )
        self.network: JointNetwork = trainable_network(backbone, recipe, contract).to(device).train()

    def seconds(self, batch_size: int, steps: int) -> tuple[float, float]:
        """Median seconds of a micro-batch and of the optimizer's step, after one of each that does not count."""
        recipe = self.recipe
        batch = random_batch(
            self.contract, self.latents, self.text, batch_size, self.device, depth=self.network.config.has_depth
        )
        module = module_on_random_clips(self.network, recipe, batch).to(self.device)
        optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
        spent: list[tuple[float, float]] = []
        with float32_products(recipe.trainer):
            for _ in range(steps + 1):
                first = self._now()
                with self._precision():
                    loss = module.training_step(batch, 0)
                loss.backward()
                middle = self._now()
                module.on_before_optimizer_step(optimizer)
                module.configure_gradient_clipping(optimizer)
                optimizer.step()
                optimizer.zero_grad()
                spent.append((middle - first, self._now() - middle))
        return statistics.median(row[0] for row in spent[1:]), statistics.median(row[1] for row in spent[1:])

    def measure(self, steps: int = 3) -> Probe:
        """Time the recipe's steps, and a clip through the VAE."""
        spec, on_gpu = self.recipe.trainer, self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        micro, step = self.seconds(spec.batch_size, steps)
        return Probe(
            step_seconds=micro * spec.accumulate + step,
            encode_seconds=self._encode_seconds(),
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
            device=torch.cuda.get_device_name(self.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
            steps=steps,
        )

    def fits(self, batch_size: int) -> bool:
        """Whether a step of this micro-batch runs; for a GPU, where running out of memory is harmless."""
        try:
            self.seconds(batch_size, 1)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            gc.collect()  # module and hooks refer to each other
            torch.cuda.empty_cache()
        return True

    def _encode_seconds(self) -> float:
        spec, contract = self.recipe.backbone, self.contract
        codec = load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision).to(self.device)
        image, timing = contract.image, contract.timing
        shape = (1, len(contract.cameras), timing.clip_frames, image.height, image.width, 3)
        pictures = torch.zeros(shape, dtype=torch.uint8)
        times = 2 if self.network.config.has_depth else 1  # depth goes through the same VAE
        first = self._now()
        for _ in range(times):
            codec.encode_video(pictures)
        return self._now() - first

    def _precision(self) -> AbstractContextManager[object]:
        mixed = chosen_precision(self.recipe.trainer)[0] != "32-true"
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest whole number up to `most` that fits, by doubling and then halving the gap; 0 where 1 does not.

    Args:
        fits: true up to some number and false beyond it.
    """
    good, bad = 0, most + 1
    trial = 1
    while trial < bad and fits(trial):
        good = trial
        trial = min(2 * trial, most) if trial < most else bad
    bad = min(bad, trial)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
