#!/usr/bin/env python3
"""Success of a policy that LeRobot trained on recordings of record_metaworld.py: our environment, goals and limits.

So ACT or Diffusion Policy can be laid beside a bundle: `xwam-ft evaluate BUNDLE --env metaworld:TASK` with the same
`--episodes`, `--seed` and `--max-steps` meets the same starts and goals. Runs where both packages are installed:

    python3.12 -m venv both && both/bin/pip install '.[sim]' 'lerobot[dataset,training]' 'torch<2.12' 'transformers<5.6'
    both/bin/lerobot-train --dataset.repo_id=local/push --dataset.root=RECORDINGS --policy.type=act --output_dir=RUN ...
    both/bin/python data_tools/lerobot_closed_loop.py RUN/checkpoints/last/pretrained_model SHARDS --task push

SHARDS are the same recordings as `xwam-ft prepare` made them: their contract says which cameras and columns there are.
A policy that predicts another column than the recordings' absolute `action` is refused.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from xwam_ft.contract import Contract
from xwam_ft.errors import EXIT_CODE, UserError
from xwam_ft.evaluate.closed_loop import episode_seeds, success_interval
from xwam_ft.evaluate.environment import Outcome
from xwam_ft.evaluate.metaworld import MetaWorld
from xwam_ft.files import write_json_atomic
from xwam_ft.shards import ShardSet

LIBRARIES = ("lerobot", "torch", "metaworld", "mujoco")


def main(
    pretrained: Annotated[Path, typer.Argument(help="a checkpoint's folder `pretrained_model`")],
    shards: Annotated[Path, typer.Argument(help="the same recordings, prepared")],
    task: Annotated[str, typer.Option(help="of Meta-World, without -v3")],
    episodes: Annotated[int, typer.Option(min=1, help="with goals that no recording has")] = 50,
    seed: Annotated[int, typer.Option(help="of starts and goals")] = 0,
    max_steps: Annotated[int, typer.Option(min=1, help="after as many commands an episode has failed")] = 200,
    out: Annotated[Path | None, typer.Option(help="where to write what came out, as JSON")] = None,
) -> None:
    """Run EPISODES and print how many succeeded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        contract = ShardSet.open(shards).contract
        told = closed_loop(pretrained, contract, task, episode_seeds(seed, episodes), max_steps)
        if out is not None:
            write_json_atomic(out, told)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    low, high = told["interval_95"]
    typer.echo(f"{task}: {told['successes']} of {told['of']} ({100 * low:.0f} to {100 * high:.0f} %)")


def closed_loop(
    pretrained: Path, contract: Contract, task: str, seeds: list[int], max_steps: int, device: str = "cpu"
) -> dict[str, Any]:
    """One episode a seed: what was asked, and each episode's success and steps.

    Raises:
        UserError: LeRobot is not installed, cannot load the policy, or it commands other numbers than were recorded.
    """
    policy, before, after = _policy(pretrained, device)
    environment = MetaWorld(task, contract)
    columns = [(slot.name, slot.command_width) for slot in contract.slots if slot.present and slot.commanded]
    width = sum(count for _, count in columns)
    runs: list[dict[str, Any]] = []
    spent = time.perf_counter()
    try:
        for seed in seeds:
            environment.reset(seed)
            policy.reset()
            outcome, steps = Outcome.GOES_ON, 0
            while outcome is Outcome.GOES_ON and steps < max_steps:
                action = _acted(policy, before, after, environment.observe(), contract)
                if action.shape != (width,):
                    what = f"commands {action.shape[-1]} numbers, and the recordings' `action` has {width}"
                    raise UserError(what, pretrained, "train it on `action` alone: see the head of this file")
                parts = np.split(action, np.cumsum([count for _, count in columns])[:-1])
                outcome = environment.step({name: part for (name, _), part in zip(columns, parts, strict=True)})
                steps += 1
            runs.append({"seed": seed, "success": outcome is Outcome.SUCCESS, "steps": steps})
            done = sum(run["success"] for run in runs)
            print(f"\r{len(runs)} of {len(seeds)} episodes, {done} succeeded", end="", file=sys.stderr, flush=True)
    finally:
        environment.close()
        print(file=sys.stderr)
    successes = sum(run["success"] for run in runs)
    return {
        "policy": json.loads((pretrained / "config.json").read_text(encoding="utf-8")),
        "versions": {name: version(name) for name in LIBRARIES},
        "task": task,
        "successes": successes,
        "of": len(runs),
        "interval_95": list(success_interval(successes, len(runs))),
        "seconds": time.perf_counter() - spent,
        "runs": runs,
    }


def _policy(pretrained: Path, device: str) -> tuple[Any, Any, Any]:
    """LeRobot's policy, and what it does before and after: normalise, and undo that."""
    try:
        from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
        from lerobot.policies.factory import (  # pyright: ignore[reportMissingImports]
            get_policy_class,
            make_pre_post_processors,
        )
    except ImportError as error:
        raise UserError(f"cannot be imported ({error})", "lerobot", "see the head of this file for the lines") from None
    if not (pretrained / "config.json").is_file():
        raise UserError("holds no config.json", pretrained, "give a checkpoint's folder `pretrained_model`")
    config: Any = PreTrainedConfig.from_pretrained(pretrained)
    config.device, config.pretrained_path = device, pretrained
    policy: Any = get_policy_class(config.type).from_pretrained(pretrained, config=config)
    policy.eval()
    on = {"device_processor": {"device": device}}
    before, after = make_pre_post_processors(config, str(pretrained), preprocessor_overrides=on)
    return policy, before, after


def _acted(policy: Any, before: Any, after: Any, seen: dict[str, Any], contract: Contract) -> np.ndarray:
    """The next command, in the recordings' own numbers and order."""
    import torch

    state = np.concatenate([np.asarray(seen["state"][slot.name]) for slot in contract.slots if slot.present])
    batch: dict[str, Any] = {
        f"observation.images.{name}": torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
        for name, picture in seen["images"].items()
    }
    batch["observation.state"] = torch.from_numpy(state.astype(np.float32))[None]
    batch["task"] = [seen["prompt"]]
    with torch.inference_mode():
        return np.asarray(after(policy.select_action(before(batch)))[0].cpu(), np.float64)


if __name__ == "__main__":
    typer.run(main)
