"""Training by the clock: Muon for weights that are matrices, AdamW for everything else, averaged weights at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import distributed as dist
from torch import nn


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
        muon = torch.optim.Muon(self.flat, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
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


def _average(parameters: Sequence[nn.Parameter]) -> None:
    """Mean gradient over the processes of `torchrun`; without it, nothing."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / dist.get_world_size())


def share_done(began: float, seconds: float) -> float:
    """Share of the time that is gone, by the first process's clock."""
    done = torch.tensor((time.monotonic() - began) / seconds)
    if dist.is_initialized():
        dist.broadcast(done, 0)
    return float(done)


def schedule(step: int, done: float, warmup: int) -> float:
    """Linear warm-up by steps, cosine to nought by the share of time that is gone: a run of any length ends settled."""
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-3


EMA = 0.998
AVERAGED = 0.5  # share of the time after which weights are averaged
Report = Callable[[int, float, float], None]
"""Told steps done, share of the time gone and the smoothed loss."""


def train_by_clock(
    module: nn.Module,
    optimizer: MuonAndAdamW,
    loss_of_step: Callable[[int], torch.Tensor],
    *,
    seconds: float,
    warmup: int,
    report: Report,
) -> int:
    """Train in place for a time; returns the steps done. The weights left are their moving average."""
    module.train()
    averaged = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    began, step, smooth = time.monotonic(), 0, math.nan
    while (done := share_done(began, seconds)) < 1:
        loss = loss_of_step(step)
        loss.backward()
        optimizer.step(schedule(step, done, warmup))
        if done > AVERAGED:
            averaged.update_parameters(module)
        step += 1
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        report(step, done, smooth)
    if averaged.n_averaged > 0:
        module.load_state_dict(averaged.module.state_dict())
    module.eval()
    return step


def convolutions(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights of convolutions, all other parameters)."""
    parameters = list(module.parameters())
    return [p for p in parameters if p.ndim >= 4], [p for p in parameters if p.ndim < 4]
