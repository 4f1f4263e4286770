"""What the network can do by now: the errors of the actions a policy would give, and imagined video.

Of the weights that would be exported: the averaged ones, where the run keeps them. The policy is the class that runs on
the robot, around the live network; for it alone the VAE is loaded.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.evaluate.baselines import mean_action
from xwam_ft.evaluate.blackout import blackout
from xwam_ft.evaluate.imagine import tiles, write_futures
from xwam_ft.evaluate.open_loop import open_loop, spread
from xwam_ft.learn.optimizer import trained_parameters
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.encode.clip_source import ClipSource
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.progress import Advance
    from xwam_ft.recipe import Recipe
    from xwam_ft.shard_index import EpisodeEntry
    from xwam_ft.shards import ClipRef, ShardSet


BLACKOUT_CLIPS = 8
"""At most so many, since they are inferred once more for every camera."""


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
    future = recipe.model.future
    return Policy(network, codec, dict(embedded), contract, settings, trained=codec.trained, future=future)


def error_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The policy's errors in physical units: `held_out/<slot>_<quantity>`, and of single numbers
    `held_out_dim/<slot>_<dimension>`."""
    return {
        f"{group}/{slot}_{name}": float(row["policy"])
        for group, table in (("held_out", metrics["slots"]), ("held_out_dim", metrics["dimensions"]))
        for slot, rows in table.items()
        for name, row in rows.items()
        if row["policy"] is not None
    }


def imagined_clips(shard_set: ShardSet, recipe: Recipe) -> int:
    """Clips that `imagine_held_out` goes through, those it infers with a camera black included."""
    refs = _refs(shard_set, recipe)[1]
    return len(refs) + min(recipe.validation.clips, BLACKOUT_CLIPS, len(shard_set.clips("held_out", 1))) * (
        1 + len(shard_set.contract.cameras)
    )


def _refs(shard_set: ShardSet, recipe: Recipe) -> tuple[EpisodeEntry, list[ClipRef]]:
    entry = shard_set.episode(shard_set.clips("held_out", 1)[0].entry.episode)
    return entry, spread(tiles(shard_set, entry), recipe.validation.imagine_clips)


def imagine_held_out(
    policy: Policy, shard_set: ShardSet, recipe: Recipe, folder: Path, advance: Advance | None = None
) -> dict[str, Any]:
    """Imagine clips of the first held-out episode into `folder`, and black each camera out on held-out clips.

    Returns:
        What its metrics.json holds: {"episode", "instruction", "clips", "scores", "point_cloud", "blackout_clips",
        "blackout"}.
    """
    spec = recipe.validation
    entry, refs = _refs(shard_set, recipe)
    found = write_futures(policy, shard_set, refs, folder, joined=False, advance=advance)
    mean = mean_action(shard_set)
    count = min(spec.clips, BLACKOUT_CLIPS)
    seen = open_loop(policy, shard_set, clips=count, mean=mean, advance=advance)
    black = blackout(policy, shard_set, seen, clips=count, mean=mean, advance=advance)
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
