"""A joint network from a loaded backbone, or from its description and weights alone (no backbone at hand)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.joint import Layout, graft
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.model.reference import check_state

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.model.backbone import Backbone


def build_network(
    backbone: Backbone,
    config: NetworkConfig,
    seed: int,
    *,
    layout: Layout | None = None,
    report: list[str] | None = None,
) -> JointNetwork:
    """The joint network on a backbone's transformer, its new parts drawn from `seed`.

    Where the backbone was imported from X-WAM weights, its own encoders, decoders, views and depth branch take the
    place of what was drawn, as far as they fit (joint.py).

    The network has a copy of the transformer's module tree on the same frozen tensors, so adapters injected into
    one network are not in the backbone, and no weight is held twice.

    Args:
        layout: names of the network's numbers and cameras: what of imported weights still means the same.
        report: collects sentences about what was kept of imported weights.

    Raises:
        UserError: a depth branch of more blocks than the transformer has.
    """
    assert backbone.transformer is not None, "the backbone was loaded without its transformer"
    blocks = len(backbone.transformer.blocks)
    if config.depth_blocks > blocks:
        raise UserError(
            f"model.depth.blocks is {config.depth_blocks}, but backbone {backbone.name} has {blocks} blocks",
            "the recipe",
            f"choose at most {blocks}",
        )
    network = JointNetwork(
        _shared_copy(backbone.transformer),
        config,
        torch.Generator().manual_seed(seed),
        deferred=backbone.deferred is not None,
    )
    if backbone.joint is not None:
        sentences = graft(network, backbone.joint, layout)
        if report is not None:
            report.extend(sentences)
    elif backbone.view_embedding is not None:  # views that it knows; further ones keep their drawn values
        known = min(len(backbone.view_embedding), config.num_views)
        with torch.no_grad():
            network.view_embedding.weight[:known] = backbone.view_embedding[:known]
    return network


def network_config_dict(network: JointNetwork) -> dict[str, Any]:
    """What `empty_network` needs, as plain JSON values: {"transformer": {...}, "network": {...}}."""
    described = dict(network.transformer.config)
    transformer = {key: value for key, value in described.items() if not key.startswith("_")}
    transformer["patch_size"] = list(transformer["patch_size"])
    return {"transformer": transformer, "network": network.config.to_dict()}


def empty_network(transformer_config: Mapping[str, Any], config: NetworkConfig) -> JointNetwork:
    """A network without weights (on the meta device): fill it with `load_network_state`, or `to_empty`."""
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    values = dict(transformer_config)
    values["patch_size"] = tuple(values["patch_size"])
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**values)
        network = JointNetwork(transformer, config)
    # The tables of diffusers' own rotary embedding are no weights: nothing would ever fill them.
    transformer.rope = WanRotaryPosEmbed(
        values["attention_head_dim"], values["patch_size"], values.get("rope_max_seq_len", 1024)
    )
    return network


def load_network_state(network: JointNetwork, state: Mapping[str, Tensor], where: object) -> JointNetwork:
    """Give an empty network its weights, each in the dtype it was stored in; frozen, in evaluation mode.

    Raises:
        UserError: missing, unexpected, misshapen or non-finite tensors; `where` names their file.
    """
    check_state(state, network.state_dict(), where)
    network.load_state_dict(dict(state), assign=True)
    return network.eval().requires_grad_(False)


def _shared_copy(module: Any) -> Any:
    """Deep copy of a module tree whose parameters and buffers stay the very same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
