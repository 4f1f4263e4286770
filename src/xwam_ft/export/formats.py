"""The adapter alone: a folder that `peft` loads, or a video LoRA that diffusers' `WanPipeline` loads.

Both hold the transformer's adapter and nothing of X-WAM's own parts: a policy is more than that, a bundle holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError
from xwam_ft.export.weights import lora_scale
from xwam_ft.model.adapters import stable_name, write_peft_adapter
from xwam_ft.model.branch import DEPTH

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.export.weights import RunWeights

TRANSFORMER = "transformer."
DEPTH_FOLDER = "depth"


def write(format: str, weights: RunWeights, folder: Path) -> list[tuple[str, str]]:
    """Write "peft" or "diffusers" into `folder`; returns what to tell about it.

    Raises:
        UserError: the run has no adapter on the transformer, or one that the format cannot say.
    """
    names = [name for name in weights.trained if name.startswith(TRANSFORMER) and ".lora_" in name]
    if not names:
        raise UserError(
            f"has no adapter on the transformer, so --format {format} has nothing to write",
            weights.source,
            "export a bundle",
        )
    adapters = str(sum(".lora_A." in name for name in names))
    rows = [("adapters on the transformer", adapters), ("heads and depth branch", "left out: a bundle holds them")]
    if format == "peft":
        return rows + _peft(weights, folder)
    return rows + _diffusers(weights, names, folder)


def _peft(weights: RunWeights, folder: Path) -> list[tuple[str, str]]:
    """`adapter_config.json` and `adapter_model.safetensors`; a depth adapter on the same blocks in `depth/`."""
    network = weights.skeleton(merged=False)
    state = {
        raw: weights.trained[stable].read()
        for raw, _ in network.named_parameters()
        if (stable := stable_name(network, raw)) in weights.trained and ".lora_" in raw
    }
    network.load_state_dict(state, strict=False, assign=True)
    base = weights.recipe.backbone.path
    write_peft_adapter(network, folder, base)
    if DEPTH not in network.transformer.peft_config:
        return []
    write_peft_adapter(network, folder / DEPTH_FOLDER, base, adapter=DEPTH)
    return [("the depth branch's adapter on the same blocks", f"{DEPTH_FOLDER}/")]


def _diffusers(weights: RunWeights, names: list[str], folder: Path) -> list[tuple[str, str]]:
    """`pytorch_lora_weights.safetensors`, the scale alpha / rank (or alpha / sqrt(rank)) multiplied into lora_B."""
    lora = weights.recipe.model.lora
    if lora.dora:
        raise UserError(
            "is DoRA, and diffusers' loader drops its magnitudes without a word",
            weights.source,
            "use --format peft, or export a bundle",
        )
    scale = lora_scale(lora)
    tensors: dict[str, torch.nn.Module | Tensor] = {}
    for name in names:
        tensor = weights.trained[name].read()
        tensors[name.removeprefix(TRANSFORMER)] = (tensor * scale if ".lora_B." in name else tensor).contiguous()
    from diffusers import WanPipeline

    WanPipeline.save_lora_weights(folder, transformer_lora_layers=tensors)
    return [("scale multiplied into lora_B", f"{scale:.4g}")]
