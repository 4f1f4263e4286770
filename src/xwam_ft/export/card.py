"""The bundle's README.md: what it is, what it learned from and how well, how to serve and call it; and its picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.evaluate.imagine import UNTRAINED, make_pair, pair_rows
from xwam_ft.evaluate.open_loop import figure, open_loop
from xwam_ft.evaluate.pictures import contact_sheet
from xwam_ft.export import pictures_proof
from xwam_ft.export.hub_card import header
from xwam_ft.policy.bundle import PICTURE
from xwam_ft.policy.policy import clip_observation

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.policy.policy import Policy
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet


@dataclass(frozen=True)
class Shown:
    """What was measured of the policy as the bundle reads back.

    Args:
        metrics: of `evaluate.open_loop`; None where nothing is held out.
        picture: a PNG, recorded above imagined; empty where the model was not run.
        split: of the clip in the picture, "held_out" or "train"; None where the model was not run.
        proof: rows of what that clip proved: reconstructed and imagined within plausible bounds.
    """

    metrics: Mapping[str, Any] | None
    picture: bytes
    split: str | None
    proof: tuple[tuple[str, str], ...] = ()


NOT_RUN = Shown(None, b"", None)


def measure(policy: Policy, shards: ShardSet, clips: int) -> Shown:
    """Held-out errors on `clips` clips, and one clip imagined beside recorded.

    Raises:
        UserError: that clip is reconstructed or imagined as no sound model would.
    """
    from PIL import Image

    held_out = shards.clips("held_out", 1)
    refs = held_out or shards.clips(None, 1)
    clip = shards.read_clip(refs[len(refs) // 2])
    contract = policy.contract
    proof = [pictures_proof.reconstructed(policy, clip, shards.folder)]
    imagined = policy.imagine(clip_observation(contract, clip), policy.settings.seed)
    proof.append(pictures_proof.imagined(imagined, clip, shards.folder))
    pair = make_pair(contract, clip, imagined)
    metrics = open_loop(policy, shards, clips=clips).metrics() if held_out else None
    rows = pair_rows(contract, pair, None if policy.trained else UNTRAINED)
    step = contract.timing.frame_skip / contract.timing.fps
    notes = [f"+{index * step:.2f} s" for index in range(len(pair.states))]
    stream = io.BytesIO()
    Image.fromarray(np.asarray(contact_sheet(rows, contract.camera_names, notes))).save(stream, "PNG")
    return Shown(metrics, stream.getvalue(), "held_out" if held_out else "train", tuple(proof))


def readme(
    contract: Contract,
    config: Mapping[str, Any],
    recipe: Recipe,
    prompts: Sequence[str],
    shards: ShardSet,
    shown: Shown,
    name: str | None = None,
) -> str:
    """The text of README.md; `name`: of the bundle on the Hub, where it goes there."""
    place, title = name or "PATH_OF_THIS_FOLDER", f"A policy for {contract.embodiment}"
    timing = contract.timing
    slots = "\n".join(
        f"- `{slot.name}` ({slot.kind}): {len(slot.columns)} numbers: {', '.join(slot.columns)}"
        + (f"; commanded, {slot.convention}" if slot.commanded else "; observed only")
        for slot in contract.slots
        if slot.present
    )
    known = "\n".join(f"- {prompt}" for prompt in prompts if prompt)
    if kind := config.get("text_encoder"):
        known += f"\n\nAny other text too: it holds its own text encoder ({kind}), under its backbone's licence."
    backbone = config["backbone"]["path"] + ("" if config["backbone_trained"] else " (untrained)")
    return f"""{header(contract, recipe, shown.metrics, title)}
# {title}

An xwam-ft bundle: X-WAM fine-tuned on backbone {backbone}, run {config["run"]}, step {config["step"]}. Weights:
{_weights(config)}

## Serve it, call it

```
xwam-ft serve {place}
```

```python
from xwam_ft import Policy

policy = Policy.load("{place}")  # or without a server, in your own process
out = policy.infer({{"images": {{camera: rgb}}, "state": {{slot: numbers}}, "prompt": text}})
out.commands.slots  # {timing.action_steps} steps, {timing.action_period:.4g} s apart; metres and radians
```

Cameras (uint8 RGB, any size): {", ".join(contract.camera_names)}.

State slots (SI units, in this order):
{slots}

Prompts it knows (case, a trailing period and spaces do not matter):
{known}

## Data

{_data(shards)}

## Recipe

{_recipe(recipe)}

## Numbers

{_numbers(shown)}

Every file's hash is in `manifest.json`; loading checks them and repeats a recorded request.
"""


def _weights(config: Mapping[str, Any]) -> str:
    if config.get("adapters"):
        return "the base and its adapters beside each other, applied at load."
    return f"adapters merged, in {config['dtype']}."


def _data(shards: ShardSet) -> str:
    rows = ["| split | episodes | seconds |", "|---|---|---|"]
    for split in ("train", "held_out"):
        entries = [entry for entry in shards.index.episodes if entry.split == split]
        seconds = sum(entry.frames for entry in entries) / shards.contract.timing.fps
        rows.append(f"| {split.replace('_', '-')} | {len(entries)} | {seconds:.1f} |")
    return "\n".join(rows)


def _recipe(recipe: Recipe) -> str:
    model, trainer, optim = recipe.model, recipe.trainer, recipe.optim
    lora = model.lora
    kind = "DoRA" if lora.dora else "LoRA"
    what = f"{kind} of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}; new heads"
    trains = {"lora": what, "heads": "the new heads alone", "full": "every weight"}[model.train]
    rows = [
        f"- trains: {trains}; depth branch: {model.depth.branch}",
        f"- {trainer.max_steps} steps of {trainer.batch_size * trainer.accumulate} clips a device, seed {recipe.seed}",
        f"- learning rates: LoRA {optim.lr_lora:g}, heads {optim.lr_heads:g}, depth {optim.lr_depth:g}",
    ]
    return "\n".join(rows)


def _numbers(shown: Shown) -> str:
    if shown.split is None:
        return "Not measured: the machine that exported it was too small to run the model."
    which = "A held-out clip" if shown.split == "held_out" else "A training clip (nothing was held out)"
    picture = f"![Imagined beside recorded]({PICTURE})\n\n*{which}: recorded above, imagined below.*"
    if shown.metrics is None:
        return f"Errors were not measured: nothing was held out.\n\n{picture}"
    rows = [
        f"Open-loop errors on {shown.metrics['clips']} held-out clips, beside the training split's mean action and",
        "holding still. A low error says that the policy imitates, not that the robot succeeds.",
        "",
        "| slot | unit | policy | mean action | hold still |",
        "|---|---|---|---|---|",
    ]
    for slot, quantities in shown.metrics["slots"].items():
        for name, row in quantities.items():
            numbers = " | ".join(figure(row[method]) for method in ("policy", "mean_action", "hold_still"))
            rows.append(f"| {slot} {name} | {row['unit']} | {numbers} |")
    return "\n".join(rows) + f"\n\n{picture}"
