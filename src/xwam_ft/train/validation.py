"""Validation on held-out clips: losses at fixed noise, and the errors of the actions a policy would give.

The same clips and the same random numbers every time, so curves compare. Where the run keeps averaged weights, they
are what is validated, since they are what is exported. The policy is the class that runs on the robot, around the
live network; for it alone the VAE is loaded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.evaluate.baselines import mean_action
from xwam_ft.evaluate.blackout import blackout
from xwam_ft.evaluate.imagine import tiles, write_futures
from xwam_ft.evaluate.open_loop import open_loop, spread
from xwam_ft.model.noise import shift
from xwam_ft.policy.policy import Policy, Settings
from xwam_ft.train.clips import Stream
from xwam_ft.train.data import ClipDataset
from xwam_ft.train.draws import draw
from xwam_ft.train.optimizer import trained_parameters

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.losses import LossTerm
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet
    from xwam_ft.train.clip_source import ClipSource
    from xwam_ft.train.module import TrainingModule


SIGMA_BINS = 4
BLACKOUT_CLIPS = 8
"""At most so many, since they are inferred once more for every camera."""


def sigma_edges(shift_by: float) -> list[float]:
    """Edges of the bins of noise level: equal shares of a uniform level, moved by the recipe's time shift."""
    return [float(edge) for edge in shift(torch.linspace(0, 1, SIGMA_BINS + 1, dtype=torch.float64), shift_by)]


@torch.no_grad()
def held_out_losses(module: TrainingModule, source: ClipSource) -> dict[str, float]:
    """Mean loss of each term over held-out clips; empty where nothing is held out.

    Returns:
        `val/loss_<term>`, and `val_sigma/<term>_<low>_<high>` of the clips whose noise level of that stream lies
        there (action and proprio: theirs; video and depth: the video's), where there are any.
    """
    recipe = module.recipe
    dataset = ClipDataset(source, spread(source.of_split("held_out"), recipe.validation.clips), seed=None)
    edges = sigma_edges(recipe.noise.shift)
    sums: dict[str, list[float]] = {}
    size = recipe.trainer.batch_size
    for first in range(0, len(dataset), size):
        batch = dataset.batch(range(first, min(first + size, len(dataset))), module.device)
        draws = draw(batch, recipe.noise, 0.0, recipe.seed, Stream.VALIDATION)
        prediction = module.predict(module.add_noise(batch, draws), draws)
        for name, term in module.loss_terms(batch, draws, prediction).items():
            _add(sums, f"val/loss_{name}", term)
        for row in range(batch.size):
            terms = module.loss_terms(_row(batch, row), _row(draws, row), _row(prediction, row))
            for name, term in terms.items():
                sigmas = draws.sigmas.action if name in ("action", "proprio") else draws.sigmas.video
                place = min(bisect_right(edges, float(sigmas[row])), SIGMA_BINS) - 1
                _add(sums, f"val_sigma/{name}_{edges[place]:.2f}_{edges[place + 1]:.2f}", term)
    means = {name: total / max(count, 1.0) for name, (total, count) in sums.items()}
    return {name: mean for name, mean in means.items() if name.startswith("val/") or sums[name][1] > 0}


def _add(sums: dict[str, list[float]], name: str, term: LossTerm) -> None:
    entry = sums.setdefault(name, [0.0, 0.0])
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


def live_policy(
    network: JointNetwork, source: ClipSource, codec: Backbone, recipe: Recipe, contract: Contract
) -> Policy:
    """A policy around the network as it is; its instructions are those of the clips.

    Args:
        codec: a backbone of which the VAE is loaded.
    """
    validation = recipe.validation
    embedded = zip(source.prompts, source.prompt_embeddings, strict=True)
    settings = Settings(
        seed=recipe.seed,
        action_steps=validation.action_steps,
        video_steps=max(validation.video_steps, validation.action_steps),
        shift=recipe.noise.shift,
    )
    prompts = {" ".join(prompt.split()): embedding for prompt, embedding in embedded}
    return Policy(network, codec, prompts, contract, settings, trained=codec.trained)


def error_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The policy's errors in physical units: `val/<slot>_<quantity>`, and `val_dim/<slot>_<dimension>`."""
    return {
        f"{group}/{slot}_{name}": float(row["policy"])
        for group, table in (("val", metrics["slots"]), ("val_dim", metrics["dimensions"]))
        for slot, rows in table.items()
        for name, row in rows.items()
        if row["policy"] is not None
    }


def validate(policy: Policy, module: TrainingModule, source: ClipSource, shard_set: ShardSet) -> dict[str, Any]:
    """What `validation/step-NNNNNN/metrics.json` holds: {"losses": {name: value}, "open_loop": evaluate's metrics}."""
    result = open_loop(policy, shard_set, clips=module.recipe.validation.clips)
    return {"losses": held_out_losses(module, source), "open_loop": result.metrics()}


def imagine_held_out(policy: Policy, shard_set: ShardSet, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Imagine clips of the first held-out episode into `folder`, and black each camera out on held-out clips.

    Returns:
        What its metrics.json holds: {"episode", "instruction", "clips", "scores", "point_cloud", "blackout_clips",
        "blackout"}.
    """
    spec = recipe.validation
    entry = shard_set.episode(shard_set.clips("held_out", 1)[0].entry.episode)
    refs = spread(tiles(shard_set, entry), spec.imagine_clips)
    found = write_futures(policy, shard_set, refs, folder, joined=False)
    mean = mean_action(shard_set)
    count = min(spec.clips, BLACKOUT_CLIPS)
    seen = open_loop(policy, shard_set, clips=count, mean=mean)
    black = blackout(policy, shard_set, seen, clips=count, mean=mean)
    return {
        "episode": entry.index,
        "instruction": entry.instruction,
        "clips": len(refs),
        **found,
        "blackout_clips": seen.clips,
        "blackout": black,
    }


def imagine_metrics(tree: Mapping[str, Any]) -> dict[str, float]:
    """Scores as `imagine/<score>`, and errors with a camera black as `blackout/<camera>_<slot>_<quantity>`."""
    scores = {name: row["imagined"] for name, row in tree["scores"]["all"].items()}
    scores["chamfer_mm"] = tree["point_cloud"].get("chamfer_mm", {}).get("imagined")
    black = {
        f"blackout/{camera}_{slot}_{name}": float(row["black"])
        for camera, slots in tree["blackout"].items()
        for slot, rows in slots.items()
        for name, row in rows.items()
    }
    return {f"imagine/{name}": float(value) for name, value in scores.items() if value is not None} | black


@contextmanager
def evaluation_mode(network: JointNetwork, weights: Mapping[str, Tensor] | None = None) -> Generator[JointNetwork]:
    """The network without dropout and, where given, with other trained weights; afterwards as it was, and so are
    torch's generators: a run does not depend on when it is validated."""
    training, parameters = network.training, trained_parameters(network)
    devices = [network.device] if network.device.type == "cuda" else []
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()} if weights else {}
    try:
        network.eval()
        _copy_into(parameters, weights or {})
        with torch.random.fork_rng(devices):
            yield network
    finally:
        _copy_into(parameters, kept)
        network.train(training)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        parameters[name].copy_(value)
