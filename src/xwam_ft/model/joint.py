"""X-WAM's own parts of an imported checkpoint: kept in a backbone's `joint/`, grafted onto a network of other sizes.

joint/config.json      {"network": NetworkConfig, "layout": names of every number and camera}
joint/*.safetensors    view embedding, encoders and decoders, depth branch, under our names
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.model.stored_part import JOINT

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.contract import Contract

STREAMS = ("proprio", "action")


@dataclass(frozen=True)
class Layout:
    """What the numbers of a network's vectors and its views stand for.

    Args:
        proprio, action: names of every number, "slot.element".
        cameras: in the order of the views; empty where nobody said.
        conventions: of the commanded slots, by name.
    """

    proprio: tuple[str, ...]
    action: tuple[str, ...]
    cameras: tuple[str, ...] = ()
    conventions: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, contract: Contract) -> Layout:
        """A contract's; what belongs to slots that this robot lacks counts too: the contract says it is there."""
        return cls(
            proprio=tuple(f"{slot.name}.{name}" for slot in contract.slots for name in slot.elements),
            action=tuple(f"{slot.name}.{name}" for slot in contract.slots for name in slot.action_elements),
            cameras=tuple(contract.camera_names),
            conventions={
                slot.name: slot.convention + ("" if contract.action_scaling == "chunk" else ", scaled by step")
                for slot in contract.slots
                if slot.convention is not None
            },
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        names = {key: tuple(map(str, values[key])) for key in ("proprio", "action", "cameras")}
        return cls(**names, conventions=dict(values["conventions"]))

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclass(frozen=True)
class JointWeights:
    """Weights of everything a joint network adds to its transformer, under `JointNetwork`'s names."""

    config: NetworkConfig
    tensors: Mapping[str, Tensor]
    layout: Layout


def read_joint(folder: Path) -> JointWeights | None:
    """What a backbone folder's `joint/` holds; None where it has none. Tensors stay mapped to their files.

    Raises:
        UserError: a part of it is missing, damaged, or of other sizes than its config says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = folder / JOINT
    if not place.is_dir():
        return None
    values = read_json(place / "config.json")
    again = "import the checkpoint again (data_tools/import_xwam.py)"
    try:
        config, layout = NetworkConfig.from_dict(values["network"]), Layout.from_dict(values["layout"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is no description of joint weights ({error})", place / "config.json", again) from None
    tensors: dict[str, Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot be read ({error})", file, again) from None
    wanted = {
        "view_embedding.weight": config.num_views,
        "action_encoder.0.weight": config.action_dim,
        "action_decoder.2.weight": config.action_dim,
        "proprio_encoder.0.weight": config.proprio_dim,
        "proprio_decoder.2.weight": config.proprio_dim,
    }
    for name, size in wanted.items():
        if name not in tensors or size not in tensors[name].shape:
            raise UserError(f"holds no {name} of {size}", place, again)
    for stream in STREAMS:
        if len(getattr(layout, stream)) != getattr(config, f"{stream}_dim"):
            raise UserError(f"names {len(getattr(layout, stream))} numbers of {stream}", place / "config.json", again)
    return JointWeights(config, tensors, layout)


@torch.no_grad()
def graft(
    network: JointNetwork,
    joint: JointWeights,
    layout: Layout | None = None,
    *,
    of: str = "the imported weights",
    depth: bool = True,
) -> list[str]:
    """Put imported weights into a fresh network, in place, where they mean the same.

    Columns of encoders and rows of decoders are kept by name and zero where a number is new; views are kept by camera
    name, or by order where no name is known, and new ones stay as drawn; a depth branch is kept where the network has
    blocks of its own for it, as many as the weights.

    Args:
        layout: of the network; without it, vectors of equal width are taken to mean the same.
        of: what the weights are, for the sentences.
        depth: the depth branch too.

    Returns:
        Sentences that say what was kept and what is new.
    """
    width = joint.tensors["view_embedding.weight"].shape[1]
    if width != network.width:
        raise UserError(
            f"its weights are {width} wide, and the transformer is {network.width}", JOINT, "import it again"
        )
    report = [_graft_views(network, joint, layout)]
    report += [_graft_stream(network, joint, layout, stream) for stream in STREAMS]
    report += _other_conventions(joint, layout, of)
    ours, theirs = network.config.actions_per_frame, joint.config.actions_per_frame
    if ours != theirs:
        report.append(f"actions: {ours} a frame here, {theirs} in {of}, which learned that rhythm")
    if depth and (sentence := _graft_depth(network, joint)) is not None:
        report.append(sentence)
    return report


def _graft_views(network: JointNetwork, joint: JointWeights, layout: Layout | None) -> str:
    weight, known = network.view_embedding.weight, joint.tensors["view_embedding.weight"]
    theirs = joint.layout.cameras
    ours = () if layout is None else layout.cameras
    pairs = [(index, theirs.index(name)) for index, name in enumerate(ours) if name in theirs]
    by = "name"
    if not pairs:
        pairs, by = [(index, index) for index in range(min(len(weight), len(known)))], "order"
    for index, source in pairs:
        weight[index] = known[source].to(weight)
    fresh = len(weight) - len(pairs)
    sentence = f"views: {len(pairs)} of {len(weight)} kept by {by}" + (f", {fresh} new" if fresh else "")
    if by == "order" and ours and theirs:
        sentence += f", since no camera has the same name: {', '.join(f'{ours[i]} as {theirs[j]}' for i, j in pairs)}"
    return sentence


def _graft_stream(network: JointNetwork, joint: JointWeights, layout: Layout | None, stream: str) -> str:
    encoder, decoder = getattr(network, f"{stream}_encoder"), getattr(network, f"{stream}_decoder")
    size = encoder[0].in_features
    theirs: Sequence[str] = getattr(joint.layout, stream)
    if layout is not None:
        ours: Sequence[str] = getattr(layout, stream)
        assert len(ours) == size, f"{len(ours)} names for {size} numbers of {stream}"
    else:
        ours = theirs if len(theirs) == size else ("",) * size
    kept = [index for index, name in enumerate(ours) if name in theirs]
    source = [theirs.index(ours[index]) for index in kept]

    def known(part: str) -> Tensor:
        return joint.tensors[f"{stream}_{part}"].float()

    encoder[0].weight.zero_()
    encoder[0].weight[:, kept] = known("encoder.0.weight")[:, source]
    encoder[0].bias.copy_(known("encoder.0.bias"))
    decoder[2].weight.zero_()
    decoder[2].bias.zero_()
    decoder[2].weight[kept] = known("decoder.2.weight")[source]
    decoder[2].bias[kept] = known("decoder.2.bias")[source]
    for layer, part in ((encoder[2], "encoder.2"), (decoder[0], "decoder.0")):
        layer.weight.copy_(known(f"{part}.weight"))
        layer.bias.copy_(known(f"{part}.bias"))
    fresh = sorted({name.split(".")[0] for index, name in enumerate(ours) if index not in kept})
    idle = sorted({name.split(".")[0] for name in theirs} - {name.split(".")[0] for name in ours})
    sentence = f"{stream}: {len(kept)} of {size} numbers kept by name"
    if len(kept) < size:
        sentence += f", new and zero: {', '.join(fresh) if any(fresh) else 'all, since nobody named them'}"
    return sentence + (f"; not used: {', '.join(idle)}" if idle and layout is not None else "")


def _other_conventions(joint: JointWeights, layout: Layout | None, of: str) -> list[str]:
    """Slots that both have, but whose actions mean something else: a start that training must move."""
    pairs = {
        slot: (convention, joint.layout.conventions[slot])
        for slot, convention in ({} if layout is None else layout.conventions).items()
        if slot in joint.layout.conventions
    }
    return [
        f"action {slot}: kept, but it means {ours} here and meant {theirs} in {of}"
        for slot, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def _graft_depth(network: JointNetwork, joint: JointWeights) -> str | None:
    prefix = "depth_branch."
    theirs = {name: tensor for name, tensor in joint.tensors.items() if name.startswith(prefix)}
    ours = {name: tensor for name, tensor in network.named_parameters() if name.startswith(prefix)}
    if not ours:
        return "depth branch: imported, and not used by this network" if theirs else None
    if ours.keys() != theirs.keys():
        here, there = network.config.depth_blocks, joint.config.depth_blocks
        return f"depth branch: new, since this network's ({here} blocks) is not built like the imported one ({there})"
    for name, parameter in ours.items():
        parameter.copy_(theirs[name])
    return f"depth branch: {joint.config.depth_blocks} blocks and head kept"
