"""One network call at fixed shapes, compiled as one graph; on a GPU replayed as a CUDA graph. For training, its blocks.

A rollout calls the network dozens of times with tensors of the same shapes, so `torch.compile` sees static shapes and
no graph break is allowed. What is compiled is the step, not the loop: the solver's few sums stay outside.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.branch import run_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from xwam_ft.model.network import JointNetwork, Prediction

INDUCTOR = "inductor"
"""torch's own compiler: Triton on a GPU, C++ on a CPU."""


class CompiledForward:
    """A network's `forward`, compiled at its first call with each set of shapes (a minute or two at 5B).

    Call it as the network, without gradients. Its outputs are the caller's to keep.

    Args:
        network: runs as it is at each call; weights may change, modules may not.
        backend: of `torch.compile`; "inductor" replays CUDA graphs on a GPU.

    Raises:
        UserError: no such backend.
    """

    def __init__(self, network: JointNetwork, backend: str = INDUCTOR) -> None:
        if backend not in torch.compiler.list_backends(()):
            raise UserError(f"{backend!r} is no backend of torch.compile", "compile", f"give True, for {INDUCTOR!r}")
        self.network, self.backend = network, backend
        self._replays = backend == INDUCTOR and network.device.type == "cuda"
        mode = "reduce-overhead" if self._replays else None
        compiled: Any = torch.compile(network.forward, fullgraph=True, dynamic=False, backend=backend, mode=mode)
        self._compiled: Callable[..., Prediction] = compiled

    def __call__(self, latents: Tensor, action: Tensor, proprio: Tensor, *rest: Any, **options: Any) -> Prediction:
        """What the network gives, to rounding.

        Raises:
            UserError: this machine cannot compile (no compiler, a graph break, too many sets of shapes).
        """
        from torch._dynamo.exc import TorchDynamoException

        self.network.rotary_of(latents, action, proprio)  # its table is made once, outside the graph
        if self._replays:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            out = self._compiled(latents, action, proprio, *rest, **options)
        except TorchDynamoException as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the network's step cannot be compiled here ({line})",
                f"compile={self.backend!r}",
                "install a C++ compiler (on a GPU Triton too), keep to few batch sizes, or leave compile off",
            ) from error
        return _copied(out) if self._replays else out


def _copied(out: Prediction) -> Prediction:
    """Tensors of their own: those of a CUDA graph are written over by its next replay."""
    values: dict[str, Any] = {field.name: getattr(out, field.name) for field in fields(out)}
    return replace(out, **{name: value.clone() for name, value in values.items() if value is not None})


def compile_blocks(network: JointNetwork, backend: str = INDUCTOR) -> JointNetwork:
    """Let a network run its blocks compiled, in place, with gradients; compiled at the first step.

    A block at a time: one graph serves all blocks of a kind, hooks that hang on blocks (FSDP's) stay outside of it, and
    so does gradient checkpointing, which runs it again.

    Raises:
        UserError: no such backend.
    """
    if backend not in torch.compiler.list_backends(()):
        raise UserError(f"{backend!r} is no backend of torch.compile", "model.compile", f"give true, for {INDUCTOR!r}")
    compiled: Any = torch.compile(run_block, dynamic=False, backend=backend)
    network.run_block = compiled
    return network
