"""UniPC (order 2, bh2) for flow velocities, as the linear combination that each of its steps is.

Conventions: sigma = 1 is noise, 0 is data; velocity = noise - x, so a velocity v at x predicts the data
m = x - sigma v. With alpha = 1 - sigma and lambda = log(alpha / sigma), a step from s to t of length
h = lambda_t - lambda_s is

    x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - exp(-h)) (a weighted mean of data predictions)

The weights follow from the grid alone, so they are computed once, in float64; a step reads nothing back from the
device. Source: arXiv 2302.04867 (UniPC); diffusers' `UniPCMultistepScheduler` is what the tests compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy.typing import NDArray
    from torch import Tensor

SHIFT = 5.0
"""Time shift the released model was trained and is sampled with."""

FIRST_SIGMA = 0.999
"""Where the unshifted grid starts."""


def flow_grid(steps: int, shift: float = SHIFT) -> NDArray[np.float64]:
    """The sigmas of `steps` steps, noisiest first: evenly spaced from 0.999 towards 0, shifted; 0 not included."""
    sigma = np.linspace(FIRST_SIGMA, 0.0, steps + 1)[:-1]
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True)
class Weights:
    """One step: what the state and the data predictions at this grid point and the two before it count for.

    The corrector moves the state at this point, now that the network has been asked there; the predictor goes on.
    Each is (state, m now, m before, m before that); the corrector's state is the corrected one before.
    """

    correct: tuple[float, ...] | None
    predict: tuple[float, ...]


def unipc_weights(sigmas: NDArray[np.float64]) -> list[Weights]:
    """Weights of every step along `sigmas`, whose last value, 0, is where the last step ends."""
    steps = len(sigmas) - 1
    with np.errstate(divide="ignore"):
        log_snr = np.log(1 - sigmas) - np.log(sigmas)
    # Second order needs a point before; the last step, whose length is infinite, is of first order.
    orders = [min(2, k + 1, steps - k) for k in range(steps)]
    return [
        Weights(
            correct=_corrector(sigmas, log_snr, k, orders[k - 1]) if k else None,
            predict=_predictor(sigmas, log_snr, k, orders[k]),
        )
        for k in range(steps)
    ]


def _predictor(sigmas: NDArray[np.float64], log_snr: NDArray[np.float64], k: int, order: int) -> tuple[float, ...]:
    """From point k to k + 1."""
    h = log_snr[k + 1] - log_snr[k]
    reach = (1 - sigmas[k + 1]) * -math.expm1(-h)
    slope = 0.5 * h / (log_snr[k - 1] - log_snr[k]) if order == 2 else 0.0
    return float(sigmas[k + 1] / sigmas[k]), float(reach * (1 - slope)), float(reach * slope)


def _corrector(sigmas: NDArray[np.float64], log_snr: NDArray[np.float64], k: int, order: int) -> tuple[float, ...]:
    """From point k - 1 to k once more, with the data prediction made at k."""
    h = log_snr[k] - log_snr[k - 1]
    phi = math.expm1(-h)
    reach = (1 - sigmas[k]) * -phi
    behind, ahead = 0.0, 0.5  # of the differences of data predictions: to the point before, to point k
    if order == 2:
        ratio = (log_snr[k - 2] - log_snr[k - 1]) / h
        first = phi / -h - 1
        moments = [first / phi, 2 * (first / -h - 0.5) / phi]
        behind, ahead = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], moments)
        behind /= ratio
    weights = (sigmas[k] / sigmas[k - 1], reach * ahead, reach * (1 - ahead - behind), reach * behind)
    return tuple(float(weight) for weight in weights)


class Solver:
    """Takes the steps of one stream along `flow_grid`; one solver a stream and rollout.

    `timesteps` are what the network is given: 1000 * sigma, truncated.
    """

    def __init__(self, steps: int, shift: float = SHIFT) -> None:
        self.sigmas: Float[Tensor, " n1"] = torch.from_numpy(np.append(flow_grid(steps, shift), 0.0))
        self.timesteps: Int[Tensor, " n"] = (1000 * self.sigmas[:-1]).long()
        self._levels: list[float] = self.sigmas.tolist()
        self._weights = unipc_weights(self.sigmas.numpy())
        self._state: Tensor | None = None  # at the point before, corrected
        self._data: tuple[Tensor, ...] = ()  # data predictions at the points before, newest first

    def step(self, velocity: Tensor, k: int, x: Tensor) -> Tensor:
        """x at sigma_k -> x at sigma_(k+1); steps are taken in order, each once."""
        weights = self._weights[k]
        data = (torch.sub(x, velocity, alpha=self._levels[k]), *self._data[:2])
        state = x
        if weights.correct is not None:
            assert self._state is not None, "steps are taken in order, from 0"
            state = _combined(weights.correct, (self._state, *data))
        self._state, self._data = state, data
        return _combined(weights.predict, (state, *data))


def _combined(weights: tuple[float, ...], tensors: tuple[Tensor, ...]) -> Tensor:
    first, *rest = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=False) if weight]
    out = first[1] * first[0]
    for weight, tensor in rest:
        out.add_(tensor, alpha=weight)
    return out
