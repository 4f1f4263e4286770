"""What training holds in memory beside weights: activations, counted; and what to say when memory runs out.

Autograd is asked what it keeps for the backward pass, with every tensor on the meta device: the shapes are those of the
run, nothing is computed. A storage counts once, and parameters do not count. With gradient checkpointing the kept
inputs of the blocks stay, and one block at a time is computed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.encode.batch import Batch
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.errors import UserError
from xwam_ft.train.draws import draw
from xwam_ft.train.module import TrainingModule

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe

CUDA_BYTES = 1_000_000_000
"""What CUDA, its libraries and fragmentation take beside tensors; assumed, not counted."""


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass, a clip of a micro-batch; they grow in proportion to the clips."""

    plain: int
    checkpointed: int

    def of(self, recipe: Recipe, batch_size: int | None = None) -> int:
        """Of the recipe's micro-batch, or of another size."""
        a_clip = self.checkpointed if recipe.model.gradient_checkpointing else self.plain
        return a_clip * (recipe.trainer.batch_size if batch_size is None else batch_size)


def random_batch(
    contract: Contract,
    latents: tuple[int, int, int, int, int],
    text: tuple[int, int],
    count: int,
    device: torch.device | str,
    *,
    depth: bool,
) -> Batch:
    """`count` clips of random numbers, everything valid.

    Args:
        latents: [C, Tl, V, h, w] of a clip.
        text: [S, Dt].
    """
    timing = contract.timing
    action = torch.randn(count, timing.action_steps, contract.action_dim, device=device)
    proprio = torch.randn(count, timing.clip_frames, contract.state_dim, device=device)
    return Batch(
        positions=tuple(range(count)),
        keys=tuple(map(str, range(count))),
        latents=torch.randn(count, *latents, device=device),
        video_mask=torch.ones(count, latents[1], device=device),
        action=action,
        action_mask=torch.ones_like(action),
        proprio=proprio,
        proprio_mask=torch.ones_like(proprio),
        text=torch.randn(count, *text, device=device),
        depth=torch.randn(count, *latents, device=device) if depth else None,
        depth_mask=torch.ones(count, *latents[1:], dtype=torch.bool, device=device) if depth else None,
    )


def module_on_random_clips(network: JointNetwork, recipe: Recipe, batch: Batch) -> TrainingModule:
    """The training module for steps of this micro-batch of `random_batch`, whose losses are means over its numbers.

    They have to be: the guard of a first step takes a loss far above 1 for a broken VAE.
    """
    spec = recipe.trainer
    terms = {"video": batch.latents, "action": batch.action, "proprio": batch.proprio, "depth": batch.latents}
    counts = {name: float(tensor.numel() * spec.accumulate) for name, tensor in terms.items()}
    geometry = StepGeometry(spec.batch_size, spec.accumulate)
    return TrainingModule(network, recipe, geometry, lambda step: counts, torch.zeros(batch.text.shape[1:]))


def count_activations(network: JointNetwork, recipe: Recipe, batch: Batch, *, scores: bool) -> Activations:
    """What one clip keeps, from a batch of one on the network's device (meta, to compute nothing).

    Args:
        scores: count attention's score matrices, which plain attention keeps (on a CPU) and fused kernels do not.
    """
    network.train()
    before = network.gradient_checkpointing
    kept: list[int] = []
    try:
        for network.gradient_checkpointing in (False, True):
            kept.append(_kept_bytes(network, recipe, batch, scores=scores))
    finally:
        network.gradient_checkpointing = before
    plain, inputs = kept
    runs = len(network.transformer.blocks) + network.config.depth_blocks
    one_block = math.ceil((plain - inputs) / runs) + inputs // runs
    return Activations(plain, min(inputs + one_block, plain))


def _kept_bytes(network: JointNetwork, recipe: Recipe, batch: Batch, *, scores: bool) -> int:
    module = module_on_random_clips(network, recipe, batch).to(network.device)
    held = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    heads = int(network.transformer.config.num_attention_heads)
    seen: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        is_score = tensor.ndim == 4 and tensor.shape[1] == heads and not scores
        if _storage(tensor) not in held and not is_score:
            seen.setdefault(_storage(tensor), tensor)  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        draws = draw(batch, recipe.noise, 0.0, recipe.seed)
        terms = module.loss_terms(batch, draws, module.predict(module.add_noise(batch, draws), draws))
        total = torch.stack([term.sum for term in terms.values()]).sum()
    size = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    del total
    return size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] (data_ptr is 0 on meta)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def out_of_memory(recipe: Recipe) -> UserError:
    """The sentence that a run out of memory ends in: which values to change, the nearest one first."""
    return UserError(
        f"{recipe.trainer.batch_size} clips a micro-batch do not fit in memory",
        "trainer.batch_size",
        f"{savings(recipe)}; `xwam-ft plan RECIPE --fit` finds the largest micro-batch",
    )


def savings(recipe: Recipe) -> str:
    """What takes less memory and is not set yet, those that change no result first."""
    spec, model = recipe.trainer, recipe.model
    ways: list[str] = []
    if not model.gradient_checkpointing:
        ways.append("model.gradient_checkpointing=true")
    if spec.batch_size > 1:
        half = spec.batch_size // 2
        ways.append(
            f"trainer.batch_size={half} with trainer.accumulate={-(-spec.batch_size * spec.accumulate // half)}"
        )
    if not recipe.optim.adamw_8bit:
        ways.append("optim.adamw_8bit=true")
    if recipe.backbone.dtype == "float32":
        ways.append("backbone.dtype=bfloat16")
    if recipe.backbone.quantize is None and model.train != "full":
        ways.append("backbone.quantize=nf4")
    if model.lora.rank > 8 and model.train == "lora":
        ways.append("a smaller model.lora.rank")
    return "try, in this order, " + "; ".join(ways) if ways else "take a GPU with more memory"
