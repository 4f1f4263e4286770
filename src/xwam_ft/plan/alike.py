"""Blocks that are alike keep alike: of each kind one is run, and for the others stands what it kept.

Of a network of shapes alone only the blocks that are run are made into fake tensors (`FakeBlocks`): of 30 alike, a few.

A block is of a kind by its modules, its parameters and what it is called with: shapes, dtypes, and which of these
tensors something before it has kept already, since those count once. So a first block, and one that follows what
another stream has kept, is a kind of its own, and the sum over blocks is that of running every one. Under gradient
checkpointing nothing in a block is kept, so that none is run that was run without it.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_map_only

from xwam_ft.model.branch import Twin

if TYPE_CHECKING:
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode

    from xwam_ft.learn.module import TrainingModule
    from xwam_ft.model.network import JointNetwork

Outputs: TypeAlias = "dict[Any, Any]"
"""What blocks gave, by what they are and what they were called with."""


@dataclass(frozen=True)
class _OfAKind:
    """What a block of some kind kept beside what was kept before: bytes, and which of its tensors, in order."""

    bytes: int
    copies: int
    given: tuple[bool, ...]
    out: Any
    out_kept: tuple[bool, ...]


class FakeBlocks:
    """A module whose network lies on the meta device, as fake tensors of the CPU: all but its blocks at once, a block
    when it is first asked for.

    Args:
        mode: the fake tensors' own.
        made: called with every block that is made.
    """

    def __init__(self, module: TrainingModule, mode: FakeTensorMode, made: Callable[[torch.nn.Module], None]) -> None:
        shared = {id(block): block for blocks in _block_lists(module.network) for block in blocks}
        self.module = copy.deepcopy(module, shared)
        self._mode, self._made, self._blocks = mode, made, dict[int, torch.nn.Module]()
        lists = _block_lists(self.module.network)
        aside = [list(blocks) for blocks in lists]
        for blocks in lists:
            del blocks[:]
        with mode:
            self.module.to_empty(device="cpu")
        for blocks, held in zip(lists, aside, strict=True):
            blocks.extend(held)

    def __call__(self, block: Any) -> Any:
        """The fake block of this one; of a `Twin` one with the same table."""
        if isinstance(block, Twin):
            return Twin(self(block.block), block)  # pyright: ignore[reportArgumentType] (its table alone is read)
        if id(block) not in self._blocks:
            with _disable_current_modes():  # whose counts it is no part of
                copied = copy.deepcopy(block)
                with self._mode:
                    self._blocks[id(block)] = copied.to_empty(device="cpu")
            self._made(copied)
        return self._blocks[id(block)]


def _block_lists(network: JointNetwork) -> list[torch.nn.ModuleList]:
    branch = network.depth_branch
    own = [] if branch is None or network.config.depth_shared else [branch.blocks]
    return [network.transformer.blocks, *own]


class BlocksAlike:
    """In the place of a network's `run_block`, for one forward pass.

    Args:
        run: the real one.
        sizes: bytes kept so far, and those of copies of weights in another dtype.
        is_kept: whether a tensor's storage counts already; keep: let it count as kept, without its bytes.
        runs: of other passes of this network, and for them.
        checkpointing: under gradient checkpointing.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        sizes: Callable[[], tuple[int, int]],
        is_kept: Callable[[Tensor], bool],
        keep: Callable[[Tensor], None],
        runs: Outputs,
        *,
        checkpointing: bool,
    ) -> None:
        self.bytes = self.copies = 0  # of the blocks that were not run
        self.last = deque[tuple[Any, ...]](maxlen=2)  # what the last two blocks were called with
        self._runs, self._checkpointing = runs, checkpointing
        self._run, self._sizes, self._is_kept, self._keep = run, sizes, is_kept, keep
        self._kinds: dict[Any, _OfAKind] = {}

    def __call__(self, block: Any, *given: Any) -> Any:
        self.last.append((block, *given))
        called = (_structure(block), tuple(map(_described, _parts(given))))
        if self._checkpointing and called in self._runs:
            return tree_map_only(torch.Tensor, _like, self._runs[called])
        tensors = [part for part in _parts(given) if isinstance(part, torch.Tensor)]
        kind = (called, tuple(map(self._is_kept, tensors)))
        known = self._kinds.get(kind)
        if known is not None:
            return self._instead(known, tensors)
        before = self._sizes()
        out = self._run(block, *given)
        after = self._sizes()
        self._runs[called] = out
        made = [part for part in _parts(out) if isinstance(part, torch.Tensor)]
        self._kinds[kind] = _OfAKind(
            after[0] - before[0],
            after[1] - before[1],
            tuple(map(self._is_kept, tensors)),
            out,
            tuple(map(self._is_kept, made)),
        )
        return out

    def _instead(self, known: _OfAKind, given: list[Tensor]) -> Any:
        self.bytes += known.bytes
        self.copies += known.copies
        for tensor, kept in zip(given, known.given, strict=True):
            if kept:
                self._keep(tensor)
        out = tree_map_only(torch.Tensor, _like, known.out)
        made = [part for part in _parts(out) if isinstance(part, torch.Tensor)]
        for tensor, kept in zip(made, known.out_kept, strict=True):
            if kept:
                self._keep(tensor)
        return out


def _described(part: Any) -> Any:
    return (*_shape(part), part.stride(), part.is_leaf) if isinstance(part, torch.Tensor) else repr(part)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tuple(tensor.shape), tensor.dtype, tensor.requires_grad


def _structure(block: Any) -> Any:
    """What a block is made of; a `Twin` has another table and adapter than the block whose weights it runs on."""
    module: torch.nn.Module = block.block if isinstance(block, Twin) else block
    held = tuple((name, *_shape(tensor)) for name, tensor in (*module.named_parameters(), *module.named_buffers()))
    return type(block), tuple(type(part) for part in module.modules()), held


def _parts(value: Any) -> Iterator[Any]:
    """Tensors and plain values of tuples and dataclasses, in order."""
    if isinstance(value, tuple):
        for part in value:
            yield from _parts(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    else:
        yield value


def _like(tensor: Tensor) -> Tensor:
    """What is computed in its place: of the same shape, with a storage of its own of the same size."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = torch.empty(size, dtype=tensor.dtype, device=tensor.device, requires_grad=tensor.requires_grad)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
