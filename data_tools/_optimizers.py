"""Training by the clock: Muon for weights that are matrices, AdamW for everything else, averaged weights at the end.

The clock counts the CPU time of one thread, so that a busy machine takes longer and trains as much. It stands still
while a killed run is not running: weights, their average, both optimizers, step and clock are kept every few minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from xwam_ft.files import atomic_path
from xwam_ft.machine import cpu_has_bfloat16

KEPT_EVERY = 180.0  # seconds of the clock
MUON_DECAY = 0.1
"""Weight decay of matrices. Without it their norms grow for as long as they train, and residual streams with them,
until what a block adds to its stream is lost in rounding."""


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each step, scaled to the size of AdamW's.

    torch.optim.Muon is the same in bfloat16 alone, which took two thirds of a step on a CPU without instructions for
    it; here the precision follows the CPU.

    Args:
        matrices: parameters of two axes.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": 1.0, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                mean = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(mean, group["momentum"]).to(self.dtype)).to(matrix)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The same singular vectors, every singular value near 1: five Newton-Schulz iterations of Muon's quintic."""
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide.T if len(matrix) > matrix.shape[1] else wide


class MuonAndAdamW:
    """Both as one optimizer.

    Pictures have few strong directions and many weak ones; Adam learns the weak ones several times later.

    Args:
        matrices: weights of at least two axes; convolutions are taken as [out, in * kernel].
        others: trained by AdamW.
        rates: peak learning rates of the two.
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], rates: tuple[float, float]
    ) -> None:
        self.parameters = [*matrices, *others]
        self.weights, self.rates = list(matrices), rates
        self.flat = [nn.Parameter(weight.data.view(len(weight), -1)) for weight in matrices]
        muon = Muon(self.flat, weight_decay=MUON_DECAY)
        self.optimizers = (muon, torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0))

    def step(self, factor: float, clip_norm: float = 1.0) -> None:
        """One step of both at `factor` of their rates; gradients are used up."""
        _average(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        for flat, weight in zip(self.flat, self.weights, strict=True):
            # Convolutions over time are not used by single pictures.
            flat.grad = None if weight.grad is None else weight.grad.view_as(flat)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _average(parameters: Sequence[nn.Parameter]) -> None:
    """Mean gradient over the processes of `torchrun`; without it, nothing."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / dist.get_world_size())


SETTLES = 0.6  # share of the time after which the learning rate falls


def schedule(step: int, done: float, warmup: int) -> float:
    """Linear warm-up by steps, level, then a cosine to nought by the share of time gone: any run ends settled.

    A run that is to be longer or shorter than it was begun with therefore loses nothing before it settles.
    """
    fall = max(done - SETTLES, 0) / (1 - SETTLES)
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(fall, 1))) + 1e-3


EMA = 0.998
Report = Callable[[int, float, float], None]
"""Told steps done, share of the time gone and the smoothed loss."""
Look = Callable[[nn.Module, int, float], None]
"""Shown the averaged weights, steps done and minutes of the clock."""


class Training:
    """One stage of training, which goes on where a killed one was last kept.

    Args:
        path: of what is kept; whoever has written the weights removes it.
        seconds: of CPU time of one thread, over all calls.
        look: called every `look_every` seconds of the clock, which does not count it.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: MuonAndAdamW,
        path: Path,
        *,
        seconds: float,
        warmup: int,
        look: Look | None = None,
        look_every: float = 600.0,
    ) -> None:
        self.module, self.optimizer, self.path = module, optimizer, path
        self.seconds, self.warmup, self.look, self.look_every = seconds, warmup, look, look_every
        self.averaged = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA)
        )
        self.step, self.used, self.smooth = 0, 0.0, math.nan
        if path.is_file():
            kept = torch.load(path, weights_only=True)
            module.load_state_dict(kept["module"])
            self.averaged.load_state_dict(kept["averaged"])
            optimizer.load_state_dict(kept["optimizer"])
            self.step, self.used, self.smooth = kept["step"], kept["used"], kept["smooth"]

    def run(self, loss_of_step: Callable[[int], torch.Tensor], report: Report) -> int:
        """Train to the end of the time; returns the steps done. The weights left are their moving average.

        Args:
            loss_of_step: its draws are a function of the step alone, so that going on is no repetition.
        """
        self.module.train()
        kept_at, looked = self.used, int(self.used // self.look_every)
        while (done := self._share_done()) < 1:
            began = _cpu_seconds()
            loss = loss_of_step(self.step)
            loss.backward()
            self.optimizer.step(schedule(self.step, done, self.warmup))
            self.averaged.update_parameters(self.module)
            self.step += 1
            now = loss.item()
            self.smooth = now if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * now
            self.used += _cpu_seconds() - began
            report(self.step, done, self.smooth)
            if self.used - kept_at > KEPT_EVERY:
                self.keep()
                kept_at = self.used
            if self.look is not None and int(self.used // self.look_every) > looked and _first():
                looked = int(self.used // self.look_every)
                self.look(self.averaged.module.eval(), self.step, self.used / 60)
        if self.averaged.n_averaged > 0:
            self.module.load_state_dict(self.averaged.module.state_dict())
        self.module.eval()
        return self.step

    def keep(self) -> None:
        """Write everything that going on needs, whole or not at all."""
        if _first():
            kept = {
                "module": self.module.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "used": self.used,
                "smooth": self.smooth,
            }
            with atomic_path(self.path) as temporary:
                torch.save(kept, temporary)

    def _share_done(self) -> float:
        """Share of the time that is gone, by the first process's clock."""
        done = torch.tensor(self.used / self.seconds, dtype=torch.float64)
        if dist.is_initialized():
            dist.broadcast(done, 0)
        return float(done)


def _cpu_seconds() -> float:
    return time.process_time() / torch.get_num_threads()


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def convolutions(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights of convolutions, all other parameters)."""
    parameters = list(module.parameters())
    return [p for p in parameters if p.ndim >= 4], [p for p in parameters if p.ndim < 4]
