"""A backbone's shapes without its weights: configuration files alone are read, modules lie on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xwam_ft import hub
from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.model.backbone import CLIPS_FILE, Backbone, cast_weights, read_clip_lengths
from xwam_ft.model.folder_check import (
    KINDS,
    MAX_TEXT_LEN,
    refuse_unimported,
    require_kin,
    text_positions,
)
from xwam_ft.model.load_part import make_vae
from xwam_ft.model.published import WAN22_5B_TRANSFORMER, WAN22_5B_VAE
from xwam_ft.model.stored_part import JOINT, PUBLISHED
from xwam_ft.model.tiny import TINY, UNTRAINED, tiny_folder

if TYPE_CHECKING:
    from xwam_ft.model.quantize import Quantize

CONFIGS = (
    "transformer/config.json",
    "vae/config.json",
    "tokenizer/tokenizer_config.json",
    f"{JOINT}/config.json",
    CLIPS_FILE,
)
ABSENT = (
    f"check the path; Wan's weights are fetched by `hf download {PUBLISHED} --local-dir FOLDER`, X-WAM's imported by "
    f"data_tools/import_xwam.py; to plan before you have either, backbone.path={PUBLISHED}"
)
"""What to do where there is no such folder."""
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes a packed number of a block's Linear takes, its scales included (int8: one a row, too few to count)."""


@dataclass(frozen=True)
class Skeleton:
    """What a plan needs of a backbone.

    Args:
        backbone: transformer and VAE on the meta device; no text encoder, no fingerprint.
        depth_blocks: of a depth branch that an imported X-WAM brings; 0 without.
    """

    backbone: Backbone
    depth_blocks: int

    def packed_away(self, quantize: Quantize | None) -> int:
        """Bytes that quantising the blocks' linears saves against the dtype they have here."""
        if quantize is None:
            return 0
        linears = [module for module in self.backbone.transformer.blocks.modules() if isinstance(module, nn.Linear)]
        return round(sum(m.weight.numel() * (m.weight.element_size() - QUANTIZED_BYTES[quantize]) for m in linears))


def read_skeleton(path: str, *, dtype: str, revision: str | None = None) -> Skeleton:
    """Read the configurations of a backbone (of a hub id, they alone are fetched; the published 5B's are known).

    Raises:
        UserError: no such folder or hub id, or configurations of another model.
    """
    from diffusers import WanTransformer3DModel

    transformer, vae, text_len, depth_blocks, clip_lengths = _configurations(path, revision)
    try:
        with torch.device("meta"):
            modules: tuple[Any, Any] = WanTransformer3DModel.from_config(transformer), make_vae(vae)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"its configurations make no Wan transformer and VAE ({reason})", path, f"give a folder like {PUBLISHED}"
        ) from error
    frozen: list[Any] = [module.eval().requires_grad_(False) for module in modules]
    backbone = Backbone(
        name=path,
        transformer=cast_weights(frozen[0], getattr(torch, dtype)),
        vae=frozen[1],
        text_encoder=None,
        tokenizer=None,
        text_len=text_len,
        trained=path != UNTRAINED,
        _fingerprint=lambda part: f"shapes of {path}, {part}",
        clip_lengths=clip_lengths,
    )
    return Skeleton(backbone, depth_blocks)


def _configurations(
    path: str, revision: str | None
) -> tuple[dict[str, Any], dict[str, Any], int, int, tuple[int, ...] | None]:
    """Of transformer and VAE; text positions; blocks of a depth branch that it brings; clip lengths it knows."""
    if path == PUBLISHED:
        return WAN22_5B_TRANSFORMER, WAN22_5B_VAE, MAX_TEXT_LEN, 0, None
    if path in (TINY, UNTRAINED):
        folder = tiny_folder()
    else:
        refuse_unimported(Path(path))
        folder = hub.folder_of(path, revision, [*CONFIGS, *KINDS], ABSENT)
        require_kin(folder, f"give a folder like {PUBLISHED}")
    for name in CONFIGS[:3]:
        if not (folder / name).is_file():
            raise UserError(
                f"has no {name}", folder, f"give a complete folder in diffusers layout, such as {PUBLISHED}"
            )
    transformer, vae, tokenizer = (dict(read_json(folder / name)) for name in CONFIGS[:3])
    joint = folder / CONFIGS[3]
    depth_blocks = int(read_json(joint)["network"]["depth_blocks"]) if joint.is_file() else 0
    return transformer, vae, text_positions(tokenizer.get("model_max_length")), depth_blocks, read_clip_lengths(folder)
