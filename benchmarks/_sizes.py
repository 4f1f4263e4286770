"""The two sizes that are measured, with random weights: Wan2.2-TI2V-5B in X-WAM's released setting, and `tiny`.

Legend as in model/network.py. Weights do not change how long anything takes, so none are fetched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Camera, Contract, DepthCode, Image, Quantiles, Slot, Timing
from xwam_ft.model.backbone import Backbone, cast_weights
from xwam_ft.model.folder_check import Part
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.published import WAN22_5B_TRANSFORMER, WAN22_5B_VAE
from xwam_ft.model.tiny import tiny_folder

VIEWS = 3
ARMS = ("left", "right")
PROMPT = "put the cup on the shelf"


@dataclass(frozen=True)
class Size:
    """Configurations of the parts, in the terms of diffusers and transformers, and of a clip."""

    name: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    text_len: int
    height: int
    width: int
    clip_frames: int
    depth_blocks: int

    @property
    def contract(self) -> Contract:
        """Three cameras and two arms with grippers: 16 numbers of proprio, 14 of action, 4 actions a clip frame."""
        slots = [slot for arm in ARMS for slot in (_pose(arm), _gripper(arm))]
        low, high = (-0.5,) * 3 + (-1.0,) * 4 + (0.0,), (0.5,) * 3 + (1.0,) * 4 + (0.08,)
        return Contract(
            embodiment="benchmark",
            cameras=tuple(
                Camera(name=f"view-{view}", source_height=self.height, source_width=self.width) for view in range(VIEWS)
            ),
            image=Image(height=self.height, width=self.width),
            timing=Timing(fps=30.0, frame_skip=4, action_skip=1, clip_frames=self.clip_frames),
            slots=tuple(slots),
            depth=DepthCode(kind="metric", near=0.2, far=3.0, source="sensor"),
            quantiles=Quantiles(
                proprio_low=low * 2,
                proprio_high=high * 2,
                action_low=(*(-0.2,) * 6, 0.0) * 2,
                action_high=(*(0.2,) * 6, 0.08) * 2,
            ),
            prompts=(PROMPT,),
        )

    @property
    def network(self) -> NetworkConfig:
        """What the joint network adds."""
        contract = self.contract
        return NetworkConfig(
            num_views=VIEWS,
            action_dim=contract.action_dim,
            proprio_dim=contract.state_dim,
            actions_per_frame=contract.timing.actions_per_frame,
            depth_blocks=self.depth_blocks,
        )


def _pose(arm: str) -> Slot:
    return Slot(
        name=f"{arm}-arm", kind="pose", columns=tuple(f"{arm}.{name}" for name in POSE_ELEMENTS),
        elements=POSE_ELEMENTS, units=POSE_UNITS, frame="base", convention="relative_to_chunk_start",
    )  # fmt: skip


def _gripper(arm: str) -> Slot:
    return Slot(
        name=f"{arm}-gripper", kind="gripper", columns=(f"{arm}.width",), elements=("width",), units=("m",),
        convention="absolute", gripper_open=0.08, gripper_closed=0.0,
    )  # fmt: skip


def _tiny() -> Size:
    def config(part: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((tiny_folder() / part / "config.json").read_text())
        return {key: value for key, value in values.items() if not key.startswith("_")}

    transformer = config("transformer")
    transformer["patch_size"] = tuple(transformer["patch_size"])
    return Size("tiny", transformer, config("vae"), config("text_encoder"), 64, 96, 128, 5, 2)


def _wan22_5b() -> Size:
    """The published configurations of Wan2.2-TI2V-5B-Diffusers; the VAE's latent statistics are left at 0 and 1."""
    return Size(
        name="5b",
        transformer=WAN22_5B_TRANSFORMER,
        vae=WAN22_5B_VAE,
        text={
            "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
        text_len=512, height=256, width=320, clip_frames=9, depth_blocks=10,
    )  # fmt: skip


SIZES = {"tiny": _tiny, "5b": _wan22_5b}


def random_backbone(
    size: Size, device: str, dtype: torch.dtype, parts: tuple[Part, ...] = ("transformer", "vae", "text")
) -> Backbone:
    """Transformer and text encoder in `dtype`, the VAE in float32, all with random weights (none on meta)."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    made: dict[str, Any] = dict.fromkeys(("transformer", "vae", "text"))
    with torch.device("meta"):
        if "transformer" in parts:
            made["transformer"] = cast_weights(WanTransformer3DModel(**size.transformer), dtype)
        if "vae" in parts:
            made["vae"] = AutoencoderKLWan(**size.vae)
        if "text" in parts:
            made["text"] = cast_weights(UMT5EncoderModel(UMT5Config(**size.text)), dtype)
    filled = {part: None if module is None else _filled(module, device) for part, module in made.items()}
    return Backbone(
        name=f"random {size.name}",
        transformer=filled["transformer"],
        vae=filled["vae"],
        text_encoder=filled["text"],
        tokenizer=None,
        text_len=size.text_len,
        trained=False,
        _fingerprint=lambda part: f"random {size.name} {part}",
    )


@torch.no_grad()
def _filled(module: nn.Module, device: str) -> nn.Module:
    if device != "meta":
        module.to_empty(device=device)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0.0, 0.02)
    return module.eval().requires_grad_(False)


def token_ids(size: Size, device: str) -> torch.Tensor:
    """A prompt's token ids [1, S], all positions used: what a text encoder computes does not depend on them."""
    return torch.ones(1, size.text_len, dtype=torch.long, device=device)


def command(script: str, **options: object) -> str:
    """The command line that repeats a run."""
    said = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    return f"python benchmarks/{Path(script).name} {said}"
