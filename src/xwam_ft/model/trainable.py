"""The network that a recipe trains on a backbone: new heads, adapters and depth branch, the rest frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import prepare_for_training
from xwam_ft.model.assemble import build_network
from xwam_ft.model.joint import Layout
from xwam_ft.model.merge import fit_depth_adapter, share_branch
from xwam_ft.model.network import NetworkConfig

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe


def trainable_network(
    backbone: Backbone, recipe: Recipe, contract: Contract, report: list[str] | None = None
) -> JointNetwork:
    """The network of a recipe on a backbone, its new parts and adapters drawn from the recipe's seed.

    A depth branch that the backbone brings is taken over as copies, or where the recipe says `adapter`, as the
    nearest adapter. `report` collects sentences about what was kept of imported X-WAM weights.

    Raises:
        UserError: that adapter cannot hold it, or the base is quantised: such blocks can be neither copied nor fitted.
    """
    model, brought = recipe.model, brings_depth(backbone, recipe.model.depth.blocks)
    form = model.branch_on(depth=contract.depth.kind != "none", brought=brought)
    if brought and form != "none" and recipe.backbone.quantize is not None:
        raise UserError(
            f"is {recipe.backbone.quantize!r}, and {backbone.name} brings a depth branch, which cannot be laid on that",
            "backbone.quantize",
            "remove it, or set model.depth.branch to none",
        )
    config = NetworkConfig(
        num_views=len(contract.cameras),
        action_dim=contract.action_dim,
        proprio_dim=contract.state_dim,
        actions_per_frame=contract.timing.actions_per_frame,
        depth_blocks=0 if form == "none" else model.depth.blocks,
        depth_shared=form == "adapter" and not brought,
    )
    network = build_network(backbone, config, recipe.seed, layout=Layout.of(contract), report=report)
    turned = contract.recorded.hemispheres if contract.recorded else {}
    if backbone.joint is not None and turned and report is not None:
        slots = ", ".join(turned)
        report.append(
            f"quaternions of {slots}: shown with another sign than the w >= 0 these weights know; to keep that, "
            "prepare with `quaternion: w_positive` in the slot"
        )
    network.gradient_checkpointing = model.gradient_checkpointing
    copies = share_branch(network) if form == "adapter" and brought else None
    prepare_for_training(network, model.lora, model.depth, train=model.train, seed=recipe.seed)
    if copies is not None:
        worst = max(fit_depth_adapter(network, copies), key=lambda fit: fit.error)
        if report is not None:
            lost = f"at most {worst.error:.2g} of what a layer learned is lost ({worst.name})"
            report.append(f"depth branch: held by an adapter, {lost}")
    return network


def brings_depth(backbone: Backbone, blocks: int) -> bool:
    """Whether the backbone is an imported X-WAM with a trained depth branch of this many blocks."""
    return backbone.joint is not None and backbone.joint.config.depth_blocks == blocks
