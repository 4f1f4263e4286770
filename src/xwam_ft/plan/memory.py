"""What training holds in memory beside weights: activations, counted; and what to say when memory runs out.

Autograd is asked what it keeps for the backward pass of fake tensors in the recipe's precision: the shapes, dtypes and
kernels are those of the run, nothing is computed, and of blocks that are alike one is run (alike.py). A storage counts
once, and parameters do not count. With gradient checkpointing the kept inputs of the blocks stay, and one block at a
time is computed again. What a block takes on the way back, its gradients above all, lives beside what was kept: it is
counted on one block that is gone back through.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Generator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xwam_ft.encode.batch import Batch
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.errors import UserError
from xwam_ft.learn.module import TrainingModule
from xwam_ft.plan.alike import BlocksAlike, FakeBlocks, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.learn.draws import Draws
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe

aten = torch.ops.aten
CUDA_BYTES = 1_000_000_000
"""What CUDA, its libraries and fragmentation take beside tensors; assumed, not counted."""


@dataclass(frozen=True)
class Activations:
    """Bytes at the peak of a backward pass, weights and their gradients apart.

    Args:
        plain, checkpointed: of a clip; they grow in proportion to the clips.
        once_plain, once_checkpointed: of a micro-batch of any size: copies in bfloat16 of what trains in float32.
    """

    plain: int
    checkpointed: int
    once_plain: int
    once_checkpointed: int

    def once(self, recipe: Recipe) -> int:
        return self.once_checkpointed if recipe.model.gradient_checkpointing else self.once_plain

    def of(self, recipe: Recipe) -> int:
        """Of the recipe's micro-batch."""
        a_clip = self.checkpointed if recipe.model.gradient_checkpointing else self.plain
        return a_clip * recipe.trainer.batch_size + self.once(recipe)


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


def count_activations(network: JointNetwork, recipe: Recipe, batch: Batch, *, scores: bool, mixed: bool) -> Activations:
    """What a micro-batch keeps, from a batch of one clip.

    Args:
        network, batch: on the meta device, to compute nothing; on another one the tensors are real.
        scores: count attention's score matrices, which plain attention keeps (on a CPU) and fused kernels do not.
        mixed: under bfloat16 autocast.
    """
    before = network.training, network.gradient_checkpointing
    module = module_on_random_clips(network.train(), recipe, batch)
    draws = module.draw(batch, 0.0)
    fake = network.device.type == "meta"  # which knows neither autocast nor the kernels that a device has
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
    try:
        counting = _Counting.faked(module, mode, scores, mixed) if mode else _Counting(module, scores, mixed)
        with mode or nullcontext():
            if fake:
                batch, draws = (
                    _map(of, lambda tensor: torch.empty_like(tensor, device="cpu")) for of in (batch, draws)
                )
            runs: Outputs = {}
            plain, _ = counting.kept(batch, draws, runs, checkpointing=False)
            inputs, calls = counting.kept(batch, draws, runs, checkpointing=True)
            back = max(map(counting.gone_back, calls))
    finally:
        network.gradient_checkpointing = before[1]
        network.train(before[0])
    blocks = len(network.transformer.blocks) + network.config.depth_blocks
    one_block = math.ceil((plain[0] - inputs[0]) / blocks) + inputs[0] // blocks
    whole = plain[0] + max(back - one_block, 0)
    return Activations(whole, min(inputs[0] + max(back, one_block), whole), plain[1], inputs[1])


class _Counting:
    """Counts of one module's micro-batches; `scores` and `mixed` as `count_activations` has them."""

    def __init__(self, module: TrainingModule, scores: bool, mixed: bool) -> None:
        self.module, self.scores, self.mixed = module, scores, mixed
        self.run: Callable[..., Any] = module.network.run_block
        self.held = _storages(module)

    @classmethod
    def faked(cls, module: TrainingModule, mode: FakeTensorMode, scores: bool, mixed: bool) -> _Counting:
        """Of a module of shapes alone, as fake tensors."""
        blocks = FakeBlocks(module, mode, lambda block: counting.held.update(_storages(block)))
        counting = cls(blocks.module, scores, mixed)
        of_network = counting.run
        counting.run = lambda block, *given: of_network(blocks(block), *given)
        return counting

    def kept(
        self, batch: Batch, draws: Draws, runs: Outputs, *, checkpointing: bool
    ) -> tuple[tuple[int, int], Sequence[tuple[Any, ...]]]:
        """Bytes that grow with the clips, and bytes of autocast's copies of weights, which are there once; and what the
        last two blocks were called with, with a depth branch one of either stream.

        Args:
            runs: what blocks gave that were run before.
        """
        module, network, held = self.module, self.module.network, self.held
        network.gradient_checkpointing = checkpointing
        seen: dict[int, Tensor] = {}
        counted: dict[int, Tensor] = {}  # what stands for blocks that were not run kept

        def note(tensor: Tensor) -> Tensor:
            known = _storage(tensor) in held or _storage(tensor) in counted
            if not known and (self.scores or not _is_score(tensor, network)):
                seen.setdefault(_storage(tensor), tensor)  # kept alive, so that no address is used twice
            return tensor

        def sizes() -> tuple[int, int]:
            bytes_of = {key: tensor.untyped_storage().nbytes() for key, tensor in seen.items()}
            copies = sum(bytes_of[key] for key in bytes_of.keys() & cast.copies.keys())
            return sum(bytes_of.values()) - copies, copies

        alike = BlocksAlike(
            self.run,
            sizes,
            lambda tensor: any(_storage(tensor) in of for of in (held, seen, counted)),
            lambda tensor: counted.update({_storage(tensor): tensor}),
            runs,
            checkpointing=checkpointing,
        )
        with (
            _instead_of_blocks(network, alike),
            _CastWeights(held) as cast,
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast(batch.latents.device.type, torch.bfloat16, enabled=self.mixed),
        ):
            terms = module.loss_terms(batch, draws, module.predict(module.add_noise(batch, draws), draws))
            total = torch.stack([term.sum for term in terms.values()]).sum()
        del total
        plain, copies = sizes()
        return (plain + alike.bytes, copies + alike.copies), alike.last

    def gone_back(self, call: tuple[Any, ...]) -> int:
        """Bytes that live at most while a block is computed again and its gradient is taken, copies of weights apart.

        Of twice the clips, halved: of one clip some copies are none, since nothing lies between its parts.
        """
        block, *given = call
        x, *rest = _twice(tuple(given), len(given[0]))
        x = x.detach().requires_grad_()
        counted = Live(self.held, None if self.scores else lambda tensor: _is_score(tensor, self.module.network))
        with counted, torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            out = self.run(block, x, *rest)[0]
            torch.autograd.grad(out, x, torch.ones_like(out))
        return -(-counted.peak // 2)


@contextmanager
def _instead_of_blocks(network: JointNetwork, run: Callable[..., Any]) -> Generator[None]:
    before, network.run_block = network.run_block, run
    try:
        yield
    finally:
        network.run_block = before


def _twice(value: Any, clips: int) -> Any:
    """What is of `clips` clips, of twice as many."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value]) if value.ndim and len(value) == clips else value
    if isinstance(value, tuple):
        parts = [_twice(part, clips) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _twice(getattr(value, field.name), clips) for field in fields(value)})
    return value


class Live(TorchDispatchMode):
    """Bytes of tensors made meanwhile that live at a time, and how many operations computed something.

    Args:
        weights: storages whose copies in another dtype do not count.
        fused: tensors that are never made where it counts.
    """

    def __init__(self, weights: Set[int] = frozenset(), fused: Callable[[Tensor], bool] | None = None) -> None:
        super().__init__()
        self.operations, self.now, self.peak = 0, 0, 0
        self._weights, self._fused = weights, fused
        self._living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.operations += func.namespace == "aten" and not func.is_view and func is not aten._unsafe_view.default
        given = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        cast = func is aten._to_copy.default and bool(given & self._weights)
        for tensor in () if cast else tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or _storage(tensor) in given:
                continue
            if self._fused is None or not self._fused(tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._living:
            self._living.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._living.discard(key)
        self.now -= size


class _CastWeights(TorchDispatchMode):
    """Notes copies of weights in another dtype, by their storage."""

    def __init__(self, held: set[int]) -> None:
        super().__init__()
        self.held = held
        self.copies: dict[int, Tensor] = {}  # kept alive, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default and _storage(args[0]) in self.held:
            self.copies[_storage(made)] = made
        return made


def _map(of: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass with its tensors changed, and those of dataclasses in it."""
    if isinstance(of, torch.Tensor):
        return change(of)
    if not is_dataclass(of) or isinstance(of, type):
        return of
    return replace(of, **{field.name: _map(getattr(of, field.name), change) for field in fields(of)})


def _is_score(tensor: Tensor, network: JointNetwork) -> bool:
    """Whether it has the shape of attention's scores [b, heads, n, n]."""
    config = network.transformer.config
    heads, size = int(config.num_attention_heads), int(config.attention_head_dim)
    return tensor.ndim == 4 and tensor.shape[1] == heads and tensor.shape[3] != size


def _storages(module: torch.nn.Module) -> set[int]:
    return {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}


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
