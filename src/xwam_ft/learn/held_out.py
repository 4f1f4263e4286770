"""Held-out losses at fixed noise: mean over clips of each term, and by the noise level of its stream."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.model.noise import shift
from xwam_ft.runs.history import CLIPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from xwam_ft.encode.batch import Batch
    from xwam_ft.learn.draws import Draws
    from xwam_ft.model.losses import LossTerm
    from xwam_ft.model.network import Prediction
    from xwam_ft.recipe import Recipe

    LossTerms = Callable[[Batch, Draws, Prediction], dict[str, LossTerm]]

SIGMA_BINS = 4


def sigma_edges(shift_by: float) -> list[float]:
    """Edges of the bins of noise level: equal shares of a uniform level, moved by the recipe's time shift."""
    return [float(edge) for edge in shift(torch.linspace(0, 1, SIGMA_BINS + 1, dtype=torch.float64), shift_by)]


class HeldOutLosses:
    """Sums and counts of one validation."""

    def __init__(self, recipe: Recipe) -> None:
        self._weights = recipe.loss.model_dump()
        self._edges = sigma_edges(recipe.noise.shift)
        self._sums: dict[str, list[float]] = {}
        self._clips = 0

    def add(self, loss_terms: LossTerms, batch: Batch, draws: Draws, prediction: Prediction) -> None:
        """The clips of a batch, scored by `loss_terms`."""
        for name, term in loss_terms(batch, draws, prediction).items():
            self._add(f"held_out/{name}", term)
        self._clips += batch.size
        for row in range(batch.size):
            for name, term in loss_terms(_row(batch, row), _row(draws, row), _row(prediction, row)).items():
                sigmas = draws.sigmas.action if name in ("action", "proprio") else draws.sigmas.video
                place = min(bisect_right(self._edges, float(sigmas[row])), SIGMA_BINS) - 1
                low, high = self._edges[place : place + 2]
                self._add(f"held_out_sigma/{name}_{low:.2f}_{high:.2f}", term)

    def means(self) -> dict[str, float]:
        """`held_out/<term>`, with `total` as training weighs them, and `held_out_sigma/<term>_<low>_<high>` of clips
        whose noise level lies there (action and proprio: theirs; video and depth: the video's), where there are any.
        `held_out_clips` says over how many clips: only numbers over the same ones can be compared.
        Nothing, where there was no clip.
        """
        if not self._clips:
            return {}
        means = {name: total / max(count, 1.0) for name, (total, count) in self._sums.items()}
        terms = {name.removeprefix("held_out/"): v for name, v in means.items() if name.startswith("held_out/")}
        total = {"held_out/total": sum(self._weights[name] * value for name, value in terms.items())} if terms else {}
        by_sigma = {name: v for name, v in means.items() if name.startswith("held_out_sigma/") and self._sums[name][1]}
        return {
            **{f"held_out/{name}": value for name, value in terms.items()},
            **total,
            **by_sigma,
            CLIPS: float(self._clips),
        }

    def _add(self, name: str, term: LossTerm) -> None:
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(term.sum)
        entry[1] += float(term.count)


def _row(value: Any, row: int) -> Any:
    """One sample of a frozen dataclass of batched tensors, as a batch of one."""
    changes: dict[str, Any] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, torch.Tensor | tuple):
            changes[field.name] = item[row : row + 1]
        elif is_dataclass(item):
            changes[field.name] = _row(item, row)
    return replace(value, **changes)
