"""What a checkpoint's names and shapes say about its network: X-WAM, Wan2.2-TI2V, or one that is not supported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from xwam_ft.errors import UserError
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.tensor_files.source import SUPPORTED

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 128
"""Numbers a head has in every published Wan model; shapes do not tell."""

_OTHERS = {
    (1536, 16): "Wan2.1-T2V-1.3B", (5120, 16): "a Wan T2V-14B (2.1, or one half of 2.2's A14B)",
    (5120, 36): "a Wan I2V-14B (2.1, or one half of 2.2's A14B)", (1536, 96): "Wan2.1-VACE-1.3B or Fun-1.3B",
}  # fmt: skip
_FOREIGN = {
    "img_emb.": "a Wan2.1 image-to-video model", "vace_blocks.": "a Wan VACE model",
    "motion_encoder.": "a Wan Animate model", "casual_audio_encoder.": "a Wan speech-to-video model",
}  # fmt: skip


def refuse_other_wan(shapes: Shapes, where: object) -> None:
    """Raise a `UserError` naming the model where this is another member of the Wan family."""
    for prefix, model in _FOREIGN.items():
        if any(name.startswith(prefix) for name in shapes):
            raise _other(model, where)
    patch = shapes.get("patch_embedding.weight", ())
    if len(patch) == 5 and (model := _OTHERS.get((patch[0], patch[1]))):
        raise _other(model, where)
    if len(patch) == 5 and patch[1] == 16:
        raise _other("a Wan model on Wan2.1's VAE (16 latent channels)", where)


def is_joint(shapes: Shapes) -> bool:
    """Whether X-WAM's own parts are among the names (some may be missing)."""
    new = ("view_embedding.", "action_", "proprio_", "extra_")
    return any(name.startswith(new) for name in shapes)


def transformer_config(
    shapes: Shapes, config: Mapping[str, Any], heads: int | None, where: object
) -> tuple[dict[str, Any], str | None]:
    """Constructor values of diffusers' `WanTransformer3DModel`; and, where the heads were assumed, a sentence.

    Args:
        shapes: by the reference's names.
        config: constructor values that came with the checkpoint (`num_heads`, `eps`), where there were any.
        heads: number of attention heads; shapes do not tell it.

    Raises:
        UserError: a tensor that gives a size is missing, or the number of heads does not divide the width.
    """
    try:
        width, channels, *patch = shapes["patch_embedding.weight"]
        sizes = {
            "patch_size": patch,
            "in_channels": channels,
            "out_channels": shapes["head.head.weight"][0] // math.prod(patch),
            "text_dim": shapes["text_embedding.0.weight"][1],
            "freq_dim": shapes["time_embedding.0.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "num_layers": _blocks(shapes, "blocks"),
        }
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "its shapes make no network"
        raise UserError(
            f"holds no Wan transformer under the names of Wan or X-WAM ({missing})", where, f"give one: {SUPPORTED}"
        ) from None
    given = heads or config.get("num_heads")
    note = None if given else f"{width // HEAD_DIM} attention heads assumed, of {HEAD_DIM} numbers as in all Wan models"
    count = int(given or width // HEAD_DIM)
    if count < 1 or width % count or (width // count) % 2:
        raise UserError(
            f"its width of {width} does not divide into {count} attention heads", where, "give their number: --heads"
        )
    sizes |= {"num_attention_heads": count, "attention_head_dim": width // count}
    sizes |= {"cross_attn_norm": True, "eps": float(config.get("eps", 1e-6))}
    return sizes, note


def network_config(shapes: Shapes, actions_per_frame: int, where: object) -> NetworkConfig:
    """What X-WAM adds to its transformer."""
    try:
        depth_blocks = _blocks(shapes, r"extra_blocks\.0")
        return NetworkConfig(
            num_views=shapes["view_embedding.weight"][0],
            action_dim=shapes["action_encoder.0.weight"][1],
            proprio_dim=shapes["proprio_encoder.0.weight"][1],
            actions_per_frame=actions_per_frame,
            depth_blocks=depth_blocks,
            depth_head=depth_blocks == 0 and "extra_heads.0.head.weight" in shapes,
        )
    except (KeyError, IndexError) as error:
        raise UserError(
            f"is an X-WAM checkpoint without {error.args[0]}", where, "give a whole one, as it was published"
        ) from None


def _blocks(shapes: Shapes, stack: str) -> int:
    pattern = re.compile(rf"{stack}\.(\d+)\.")
    return 1 + max((int(match[1]) for name in shapes if (match := pattern.match(name))), default=-1)


def _other(model: str, where: object) -> UserError:
    return UserError(f"is {model}", where, f"give another: {SUPPORTED}")
