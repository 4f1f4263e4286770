"""Names of X-WAM's own checkpoints <-> ours, key by key, and a network built from such weights.

The reference names the Wan blocks as Wan's original code does; ours are diffusers' names under `transformer.`
and `depth_branch.`. Encoders, decoders and the view embedding have the same names in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.model.deferred import held_part
from xwam_ft.model.network import JointNetwork, NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}

_IN_BLOCK = {
    **{f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm3": "norm2",
    "norm2": "norm3",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}

_OUTSIDE = {
    "patch_embedding": "transformer.patch_embedding",
    "text_embedding.0": "transformer.condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "transformer.condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "transformer.condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "transformer.condition_embedder.time_embedder.linear_2",
    "time_projection.1": "transformer.condition_embedder.time_proj",
    "head.head": "transformer.proj_out",
    "head.modulation": "transformer.scale_shift_table",
    "extra_heads.0.head": "depth_branch.proj_out",
    "extra_heads.0.modulation": "depth_branch.scale_shift_table",
    "view_embedding": "view_embedding",
    **{
        name: name
        for name in (
            f"{stream}_{way}.{layer}"
            for stream in ("action", "proprio")
            for way in ("encoder", "decoder")
            for layer in (0, 2)
        )
    },
}

_BLOCKS = {"blocks": "transformer.blocks", "extra_blocks.0": "depth_branch.blocks"}

# A leaf is a parameter itself (modulation) or its module's weight or bias.
_LEAF = re.compile(r"(?P<module>.+?)(?P<leaf>\.weight|\.bias)?$")


def _translator(blocks: Mapping[str, str], inside: Mapping[str, str], outside: Mapping[str, str]):
    block = re.compile(rf"(?P<stack>{'|'.join(re.escape(name) for name in blocks)})\.(?P<index>\d+)\.(?P<rest>.+)$")

    def translate(name: str) -> str | None:
        match = block.match(name)
        if match is not None:
            rest = _translated(match["rest"], inside)
            return None if rest is None else f"{blocks[match['stack']]}.{match['index']}.{rest}"
        return _translated(name, outside)

    return translate


def _translated(name: str, table: Mapping[str, str]) -> str | None:
    match = _LEAF.match(name)
    if match is None or match["module"] not in table:
        return None
    return table[match["module"]] + (match["leaf"] or "")


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}


_to_ours = _translator(_BLOCKS, _IN_BLOCK, _OUTSIDE)
_to_reference = _translator(_inverse(_BLOCKS), _inverse(_IN_BLOCK), _inverse(_OUTSIDE))


def from_reference(weights: Mapping[str, Tensor], where: object = "the checkpoint") -> dict[str, Tensor]:
    """A reference state dict under our names; raises `UserError` on a name it does not know."""
    return _renamed(weights, _to_ours, where, "X-WAM")


def to_reference(weights: Mapping[str, Tensor], where: object = "the network") -> dict[str, Tensor]:
    """Our state dict (adapters merged) under the reference's names; the inverse of `from_reference`."""
    return _renamed(weights, _to_reference, where, "our")


def reference_name(name: str) -> str:
    """The reference's name of one of our tensors (adapters merged)."""
    translated = _to_reference(name)
    assert translated is not None, f"{name} is no tensor of a merged network"
    return translated


def _renamed(
    weights: Mapping[str, Tensor], translate: Callable[[str], str | None], where: object, whose: str
) -> dict[str, Tensor]:
    names = {name: translate(name) for name in weights}
    unknown = [name for name, new in names.items() if new is None]
    if unknown:
        raise UserError(
            f"unknown weight names {listed(unknown, 4)}",
            where,
            f"give a network under {whose} names without adapters, VAE or text encoder in it",
        )
    return {str(new): weights[name] for name, new in names.items()}


_REQUIRED = (
    "num_views", "patch_size", "in_dim", "out_dim", "dim", "ffn_dim", "freq_dim", "text_dim",
    "action_dim", "action_num", "proprio_dim", "num_heads", "num_layers", "num_extra_layers",
)  # fmt: skip


def build_from_reference(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], where: object = "the checkpoint"
) -> JointNetwork:
    """The network that a reference constructor's values and state dict describe, in float32.

    Args:
        config: the reference's constructor values (`dim`, `num_layers`, `num_extra_layers`, ...).
        weights: its state dict, under its own names.
        where: the file both came from, for messages.

    Raises:
        UserError: values missing or without meaning here, unknown, missing or misshapen weights.
    """
    from diffusers import WanTransformer3DModel

    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise UserError(f"its config has no {listed(missing)}", where, "store the constructor's values in `config`")
    modalities = int(config.get("num_modalities", 2))
    if modalities not in (1, 2):
        raise UserError(
            f"num_modalities is {modalities}", where, "give a network of video alone (1) or video and depth (2)"
        )
    ours = from_reference(weights, where)
    depth_blocks = int(config["num_extra_layers"]) if modalities == 2 else 0
    network_config = NetworkConfig(
        num_views=int(config["num_views"]),
        action_dim=int(config["action_dim"]),
        proprio_dim=int(config["proprio_dim"]),
        actions_per_frame=int(config["action_num"]),
        depth_blocks=depth_blocks,
        # With no extra blocks a head may still stand alone, on the last video tokens.
        depth_head=depth_blocks == 0 and any(name.startswith("depth_branch.") for name in ours),
    )
    try:
        with torch.device("cpu"):
            transformer = WanTransformer3DModel(
                patch_size=tuple(config["patch_size"]),
                num_attention_heads=config["num_heads"],
                attention_head_dim=config["dim"] // config["num_heads"],
                in_channels=config["in_dim"],
                out_channels=config["out_dim"],
                text_dim=config["text_dim"],
                freq_dim=config["freq_dim"],
                ffn_dim=config["ffn_dim"],
                num_layers=config["num_layers"],
                cross_attn_norm=config.get("cross_attn_norm", True),
                eps=config.get("eps", 1e-6),
            )
            network = JointNetwork(transformer, network_config)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"its config describes no network ({error})", where, "store the constructor's values") from None
    check_state(weights, to_reference(network.state_dict()), where)
    network.load_state_dict({name: tensor.float() for name, tensor in ours.items()})
    return network


def check_state(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: object) -> None:
    """Raise one `UserError` for absent, unexpected, misshapen or non-finite tensors of a state dict."""
    complaints = [
        _complaint("missing", (name for name in wanted if name not in given)),
        _complaint("unexpected", (name for name in given if name not in wanted)),
        _complaint(
            "of another shape",
            (
                f"{name} {list(given[name].shape)} (wanted {list(wanted[name].shape)})"
                for name in wanted
                if name in given and given[name].shape != wanted[name].shape
            ),
        ),
        _complaint(
            "not finite",
            (name for name in wanted if name in given and not bool(_held(given[name], wanted[name]).isfinite().all())),
        ),
    ]
    complaints = [complaint for complaint in complaints if complaint]
    if complaints:
        raise UserError(
            "; ".join(complaints), where, "use weights that were saved from a network of this configuration"
        )


def _held(given: Tensor, wanted: Tensor) -> Tensor:
    return held_part(given, wanted) if given.shape == wanted.shape else given


def _complaint(what: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)} tensors {what}: {listed(names, 4)}" if names else ""
