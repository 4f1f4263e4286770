"""`--format xwam`: the network under the reference implementation's names, in the form of its own checkpoints.

    OUT/checkpoints/last.ckpt/checkpoint/mp_rank_00_model_states.pt
        {"module": {"model.*", "vae.*", "text_encoder.*"}}
    OUT/config.yaml      constructor values; timing and quantiles where the slots are X-WAM's
    OUT/contract.json

The `.pt` is a dict of tensors alone, the one file of that kind we write, tensor by tensor (torch_file.py). Its VAE and
text encoder are copies from the user's own Wan files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from xwam_ft.convert.frozen import text_name, vae_name
from xwam_ft.convert.released import ACTION, PROPRIO
from xwam_ft.errors import UserError, listed
from xwam_ft.export.torch_file import write_torch
from xwam_ft.files import read_json, write_bytes_atomic, write_text_atomic
from xwam_ft.model.backbone import MAX_TEXT_LEN, locate_backbone
from xwam_ft.model.joint import Layout
from xwam_ft.model.reference import reference_name
from xwam_ft.model.tensor_files.source import STATES, Stored, open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece, require_written
from xwam_ft.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from xwam_ft.contract import Contract
    from xwam_ft.export.weights import RunWeights

FILE = Path("checkpoints") / "last.ckpt" / "checkpoint" / STATES
_SUFFIXES = (".pth", ".pt", ".safetensors")
_CLOSE = 1e-2
"""Relative difference that rounding to bfloat16 may make between two copies of a VAE."""


def write(
    weights: RunWeights, contract: Contract, dtype: torch.dtype, wan: Path | None, folder: Path, console: Console
) -> list[tuple[str, str]]:
    """Write all of it into `folder`, read it back, and return what was proved.

    Raises:
        UserError: files of Wan missing, ambiguous, or of another VAE or text encoder than the run's backbone has.
    """
    assert wan is not None, "checked with the options"
    frozen = frozen_parts(weights.recipe.backbone.path, weights.recipe.backbone.revision, wan)
    pieces = reference_pieces(weights, dtype, frozen)
    size = sum(piece.bytes for piece in pieces)
    with progress_bar(console, "write", "bytes", size) as advance:
        digests = write_torch(folder / FILE, "module", pieces, advance)
    require_written(open_checkpoint(folder / FILE).tensors, digests, folder / FILE)
    config, sentence = reference_config(weights, contract)
    write_text_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_bytes_atomic(folder / "contract.json", contract.to_bytes())
    return [
        ("network", f"{len(pieces) - len(frozen)} tensors under the reference's names"),
        ("VAE and text encoder", f"{len(frozen)} tensors from {wan}"),
        ("read back, every tensor is", "equal"),
        ("config.yaml", sentence),
    ]


def reference_pieces(weights: RunWeights, dtype: torch.dtype, frozen: Mapping[str, Stored]) -> list[Piece]:
    """Every tensor of the `.pt`, made when its turn comes."""
    network = [
        Piece(f"model.{reference_name(piece.name)}", piece.shape, piece.dtype, piece.make)
        for piece in weights.pieces(dtype, merged=True)
    ]
    return network + [Piece(name, stored.shape, stored.dtype, stored.read) for name, stored in frozen.items()]


def reference_config(weights: RunWeights, contract: Contract) -> tuple[dict[str, Any], str]:
    """What config.yaml holds, and a sentence about it: the constructor's values, and the data's where they fit."""
    values, network, spec = weights.transformer, weights.config, weights.recipe.backbone
    tokenizer = locate_backbone(spec.path, ("text",), spec.revision) / "tokenizer" / "tokenizer_config.json"
    text_len = min(int(read_json(tokenizer).get("model_max_length", MAX_TEXT_LEN)), MAX_TEXT_LEN)
    model = constructor_values(values, network.to_dict(), text_len)
    config: dict[str, Any] = {"model": model, "use_depth": network.has_depth}
    layout = Layout.of(contract)
    if (layout.proprio, layout.action) != (PROPRIO, ACTION):
        return config, "constructor values alone: the robot's slots are not X-WAM's two arms (see contract.json)"
    if contract.action_scaling != "chunk":
        return config, "constructor values alone: X-WAM has no scale for each step of a chunk (see contract.json)"
    timing, image = contract.timing, contract.image
    config["dataset"] = {
        "sequence_length": timing.clip_frames,
        "frame_skip": timing.frame_skip,
        "action_skip": timing.action_skip,
        "video_size": [image.height, image.width],
        "crop_ratio": image.crop,
        "normalize_depths_per_view": contract.depth.clip_normalised,
        "statistics": {"q01": _bounds(contract, "low"), "q99": _bounds(contract, "high")},
    }
    return config, "constructor values, timing and quantiles"


def constructor_values(transformer: Mapping[str, Any], network: Mapping[str, Any], text_len: int) -> dict[str, Any]:
    """The reference constructor's values from diffusers' and ours."""
    depth = network["depth_blocks"] > 0 or network["depth_head"]
    return {
        "model_type": "ti2v",
        "num_modalities": 2 if depth else 1,
        "num_views": network["num_views"],
        "patch_size": list(transformer["patch_size"]),
        "text_len": text_len,
        "in_dim": transformer["in_channels"],
        "dim": transformer["num_attention_heads"] * transformer["attention_head_dim"],
        "ffn_dim": transformer["ffn_dim"],
        "freq_dim": transformer["freq_dim"],
        "text_dim": transformer["text_dim"],
        "action_dim": network["action_dim"],
        "action_num": network["actions_per_frame"],
        "proprio_dim": network["proprio_dim"],
        "out_dim": transformer["out_channels"],
        "num_heads": transformer["num_attention_heads"],
        "num_layers": transformer["num_layers"],
        "num_extra_layers": network["depth_blocks"],
    }


def _bounds(contract: Contract, end: str) -> dict[str, list[float]]:
    """One end of the quantiles under X-WAM's names: 8 numbers of proprio and 7 of action an arm."""
    proprio: tuple[float, ...] = getattr(contract.quantiles, f"proprio_{end}")
    action: tuple[float, ...] = getattr(contract.quantiles, f"action_{end}")
    return {
        "proprio_left_ee_xyz": list(proprio[0:3]),
        "proprio_right_ee_xyz": list(proprio[8:11]),
        "gripper_pos": [proprio[7]],
        "action_left_ee_xyz": list(action[0:3]),
        "action_left_ee_axisangle": list(action[3:6]),
        "action_right_ee_xyz": list(action[7:10]),
        "action_right_ee_axisangle": list(action[10:13]),
        "gripper_action": [action[6]],
    }


def frozen_parts(backbone: str, revision: str | None, wan: Path) -> dict[str, Stored]:
    """`vae.*` and `text_encoder.*` of Wan's own files, compared with the run's backbone.

    Raises:
        UserError: no such file, several, unknown names, other shapes, or another VAE's numbers.
    """
    folder = locate_backbone(backbone, ("vae", "text"), revision)
    vae = _named(wan, "vae", "VAE (Wan2.2_VAE.pth)")
    text = _named(wan, "t5", "text encoder (models_t5_umt5-xxl-enc-bf16.pth)")
    vae_tensors, text_tensors = _bare(vae), _bare(text)
    ours = open_checkpoint(folder / "vae").tensors
    _require_same_shapes(vae_tensors, ours, vae_name, vae)
    for name, stored in vae_tensors.items():
        wanted = ours[str(vae_name(name))].read().float()
        if not torch.allclose(stored.read().float(), wanted, rtol=_CLOSE, atol=_CLOSE * float(wanted.abs().max())):
            raise UserError(f"{name} is not the VAE of {backbone}", vae, "give the Wan files this backbone is made of")
    theirs = dict(open_checkpoint(folder / "text_encoder").tensors)
    if "shared.weight" not in theirs and "encoder.embed_tokens.weight" in theirs:
        theirs["shared.weight"] = theirs["encoder.embed_tokens.weight"]
    theirs.pop("encoder.embed_tokens.weight", None)  # the same as `shared.weight`
    _require_same_shapes(text_tensors, theirs, text_name, text)
    values = read_json(folder / "vae" / "config.json")
    found = {f"vae.model.{name}": stored for name, stored in vae_tensors.items()}
    for ours_, name in (("latents_mean", "vae.mean"), ("latents_std", "vae.std")):
        tensor = torch.tensor(values[ours_])
        found[name] = Stored(tuple(tensor.shape), tensor.dtype, tensor.clone)
    return found | {f"text_encoder.model.{name}": stored for name, stored in text_tensors.items()}


def _named(folder: Path, part: str, what: str) -> Path:
    if not folder.is_dir():
        raise UserError("no such folder", folder, "give the folder of Wan's own files")
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and part in path.name.lower())
    if len(files) != 1:
        found = f"{len(files)} files ({listed(path.name for path in files)})" if files else "no file"
        raise UserError(f"holds {found} of the {what}", folder, "give the folder of Wan's own files")
    return files[0]


def _bare(path: Path) -> dict[str, Stored]:
    return dict(open_checkpoint(path).tensors)


def _require_same_shapes(
    given: Mapping[str, Stored], wanted: Mapping[str, Stored], translate: Callable[[str], str | None], where: Path
) -> None:
    shapes = {str(translate(name)): stored.shape for name, stored in given.items()}
    expected = {name: stored.shape for name, stored in wanted.items()}
    if shapes != expected:
        odd = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise UserError(
            f"differs from the backbone's in {len(odd)} tensors: {listed(odd, 3)}",
            where,
            "give the Wan files this backbone is made of",
        )
