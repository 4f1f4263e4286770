"""Masked losses: plain mean squared errors where all counts, and nothing from what does not."""

from __future__ import annotations

import dataclasses

import torch

from xwam_ft.model.losses import LossMasks, Targets, flow_losses, loss_counts
from xwam_ft.model.network import Prediction

LATENTS = (2, 4, 3, 2, 5, 6)  # b c tl v h w


def make(seed: int = 0) -> tuple[Prediction, Targets, LossMasks]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"video": LATENTS, "action": (2, 8, 5), "proprio": (2, 9, 6), "depth": LATENTS}
    prediction = Prediction(**{name: torch.randn(shape, generator=g) for name, shape in shapes.items()})
    targets = Targets(**{name: torch.randn(shape, generator=g) for name, shape in shapes.items()})
    masks = LossMasks(
        video=torch.ones(2, 3, dtype=torch.bool),
        action=torch.ones(2, 8, 5, dtype=torch.bool),
        proprio=torch.ones(2, 9, 6, dtype=torch.bool),
        action_is_clean=torch.zeros(2, dtype=torch.bool),
        depth=torch.ones(2, 3, 2, 5, 6, dtype=torch.bool),
    )
    return prediction, targets, masks


def test_with_everything_valid_the_means_are_plain_ones_without_the_conditions() -> None:
    prediction, targets, masks = make()
    terms = flow_losses(prediction, targets, masks)
    mse = torch.nn.functional.mse_loss
    torch.testing.assert_close(terms["video"].mean, mse(prediction.video[:, :, 1:], targets.video[:, :, 1:]))
    torch.testing.assert_close(terms["action"].mean, mse(prediction.action, targets.action))
    torch.testing.assert_close(terms["proprio"].mean, mse(prediction.proprio[:, 1:], targets.proprio[:, 1:]))
    torch.testing.assert_close(terms["depth"].mean, mse(prediction.depth, targets.depth))  # frame 0 included


def test_what_is_masked_or_clean_neither_counts_nor_teaches() -> None:
    prediction, targets, masks = make()
    g = torch.Generator().manual_seed(1)
    names = ("video", "action", "proprio", "depth")
    fields = {name: torch.rand(getattr(masks, name).shape, generator=g) < 0.5 for name in names}
    masks = LossMasks(**fields, action_is_clean=torch.tensor([True, False]))
    spoilt = Targets(
        video=torch.where(masks.video[:, None, :, None, None, None], targets.video, torch.nan),
        action=torch.where(masks.action, targets.action, torch.nan),
        proprio=torch.where(masks.proprio, targets.proprio, torch.nan),
        depth=torch.where(masks.depth[:, None], targets.depth, torch.nan),
    )
    spoilt.video[:, :, 0] = torch.nan
    spoilt.proprio[:, 0] = torch.nan
    spoilt.action[0] = torch.nan
    leaves = {name: getattr(prediction, name).requires_grad_() for name in names}
    terms = flow_losses(prediction, spoilt, masks)
    sum(term.sum for term in terms.values()).backward()
    for name, leaf in leaves.items():
        assert bool(leaf.grad.isfinite().all()), name
        assert int((leaf.grad != 0).sum()) == int(terms[name].count), name
    assert not leaves["action"].grad[0].any()
    assert not leaves["proprio"].grad[0].any()


def test_counts_are_known_from_masks_alone() -> None:
    prediction, targets, masks = make()
    masks = dataclasses.replace(masks, action_is_clean=torch.tensor([True, False]))
    counts = loss_counts(masks, LATENTS)
    assert {name: int(count) for name, count in counts.items()} == {
        "video": 2 * 4 * 2 * 2 * 5 * 6, "action": 8 * 5, "proprio": 8 * 6, "depth": 2 * 4 * 3 * 2 * 5 * 6,
    }  # fmt: skip
    terms = flow_losses(prediction, targets, masks)
    assert {name: float(term.count) for name, term in terms.items()} == {k: float(v) for k, v in counts.items()}


def test_sums_over_micro_batches_are_the_sum_over_the_batch() -> None:
    """So a step divided by its whole count does not depend on how it was cut."""
    prediction, targets, masks = make()
    masks = dataclasses.replace(masks, action_is_clean=torch.tensor([True, False]))

    def part(thing, i):
        given = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
        return type(thing)(**{name: None if value is None else value[i : i + 1] for name, value in given.items()})

    whole = flow_losses(prediction, targets, masks)
    parts = [flow_losses(part(prediction, i), part(targets, i), part(masks, i)) for i in range(2)]
    for name, term in whole.items():
        torch.testing.assert_close(parts[0][name].sum + parts[1][name].sum, term.sum)
        assert parts[0][name].count + parts[1][name].count == term.count


def test_without_depth_there_is_no_depth_term() -> None:
    prediction, targets, masks = make()
    assert "depth" not in flow_losses(dataclasses.replace(prediction, depth=None), targets, masks)
    assert "depth" not in flow_losses(prediction, targets, dataclasses.replace(masks, depth=None))


def test_a_clean_prefix_neither_counts_nor_teaches() -> None:
    prediction, targets, masks = make()
    prefixed = dataclasses.replace(masks, action_prefix=torch.tensor([0, 3]))
    masked = masks.action.clone()
    masked[1, :3] = False
    wanted = flow_losses(prediction, targets, dataclasses.replace(masks, action=masked))
    for name, term in flow_losses(prediction, targets, prefixed).items():
        assert torch.equal(term.sum, wanted[name].sum)
        assert torch.equal(term.count, wanted[name].count)
    assert float(loss_counts(prefixed, LATENTS)["action"]) == (8 + 5) * 5
