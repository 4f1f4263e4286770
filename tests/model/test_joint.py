"""Imported heads, views and depth branch on networks of other sizes: kept by name, zero where new."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import CONFIG, Batch, make_batch, make_network, make_transformer, outputs

from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.files import json_bytes
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import Backbone
from xwam_ft.model.joint import JointWeights, Layout, read_joint
from xwam_ft.model.network import NetworkConfig

LAYOUT = Layout(
    proprio=("arm.x", "arm.y", "arm.z", "grip.g", "base.u", "base.v"),
    action=("arm.dx", "arm.dy", "arm.dz", "grip.g", "base.u"),
    cameras=("left", "right"),
    conventions={"arm": "delta_to_state", "grip": "absolute"},
)


@pytest.fixture(scope="module")
def joint() -> JointWeights:
    state = make_network(seed=7).state_dict()
    own = {name: tensor for name, tensor in state.items() if not name.startswith("transformer.")}
    return JointWeights(CONFIG, own, LAYOUT)


@pytest.fixture(scope="module")
def backbone(joint: JointWeights) -> Backbone:
    return Backbone("toy", make_transformer(7), None, None, None, 7, True, lambda part: part, joint=joint)


def test_the_same_sizes_give_the_same_network(backbone: Backbone, batch: Batch) -> None:
    report: list[str] = []
    network = build_network(backbone, CONFIG, seed=0, layout=LAYOUT, report=report).eval()
    with torch.no_grad():
        wanted, ours = outputs(batch.run(make_network(seed=7))), outputs(batch.run(network))
    for name, tensor in wanted.items():
        assert torch.equal(ours[name], tensor), name
    assert report == [
        "views: 2 of 2 kept by name",
        "proprio: 6 of 6 numbers kept by name",
        "action: 5 of 5 numbers kept by name",
        "depth branch: 2 blocks and head kept",
    ]


def test_numbers_and_views_follow_their_names(backbone: Backbone, joint: JointWeights) -> None:
    """Another order, some gone, some new: what both know gives the same tokens and the same decoded numbers."""
    layout = Layout(
        proprio=("grip.g", "hand.a", "arm.x", "arm.y", "arm.z"),
        action=("hand.a", "grip.g", "arm.dz", "arm.dy", "arm.dx", "hand.b"),
        cameras=("top", "right", "left"),
        conventions={"arm": "step_delta", "grip": "absolute", "hand": "absolute"},
    )
    config = dataclasses.replace(CONFIG, num_views=3, action_dim=6, proprio_dim=5, actions_per_frame=4)
    report: list[str] = []
    network = build_network(backbone, config, seed=0, layout=layout, report=report)
    original = make_network(seed=7)
    with torch.no_grad():
        known = torch.randn(4, 6)
        known[:, 4:] = 0  # what the new robot lacks
        mine = torch.stack([known[:, 3], torch.randn(4), known[:, 0], known[:, 1], known[:, 2]], dim=1)
        torch.testing.assert_close(network.proprio_encoder(mine), original.proprio_encoder(known))
        tokens = torch.randn(4, network.width)
        theirs, ours = original.action_decoder(tokens), network.action_decoder(tokens)
        torch.testing.assert_close(ours[:, [4, 3, 2, 1]], theirs[:, :4])
        assert torch.all(ours[:, [0, 5]] == 0)
    views = joint.tensors["view_embedding.weight"]
    assert torch.equal(network.view_embedding.weight[1:], views.flip(0))
    plain = build_network(dataclasses.replace(backbone, joint=None), config, seed=0)
    assert torch.equal(network.view_embedding.weight[0], plain.view_embedding.weight[0])  # as drawn
    assert report == [
        "views: 2 of 3 kept by name, 1 new",
        "proprio: 4 of 5 numbers kept by name, new and zero: hand; not used: base",
        "action: 4 of 6 numbers kept by name, new and zero: hand; not used: base",
        "action arm: kept, but it means step_delta here and meant delta_to_state in the imported weights",
        "actions: 4 a frame here, 2 in the imported weights, which learned that rhythm",
        "depth branch: 2 blocks and head kept",
    ]


def test_a_new_column_learns_at_once(backbone: Backbone) -> None:
    """Zero is no dead end: the new rows and columns have gradients from the first step."""
    layout = dataclasses.replace(LAYOUT, action=("arm.dx", "arm.dy", "hand.a", "hand.b", "hand.c"))
    network = build_network(backbone, CONFIG, seed=0, layout=layout)
    make_batch().run(network).action.square().sum().backward()
    assert torch.all(network.action_encoder[0].weight.grad[:, 2:].abs().sum(0) > 0)
    network.zero_grad()
    (make_batch().run(network).action - 1).square().sum().backward()
    assert torch.all(network.action_decoder[2].weight.grad[2:].abs().sum(1) > 0)


def test_unknown_cameras_and_unnamed_numbers(backbone: Backbone, joint: JointWeights) -> None:
    config = dataclasses.replace(CONFIG, num_views=1, action_dim=3)
    report: list[str] = []
    network = build_network(backbone, config, seed=0, report=report)
    assert torch.equal(network.view_embedding.weight, joint.tensors["view_embedding.weight"][:1])
    assert torch.equal(network.proprio_encoder[0].weight, joint.tensors["proprio_encoder.0.weight"])
    assert torch.all(network.action_decoder[2].weight == 0)
    assert report[0] == "views: 1 of 1 kept by order"
    assert report[2] == "action: 0 of 3 numbers kept by name, new and zero: all, since nobody named them"


def test_views_by_order_say_which_camera_takes_which(backbone: Backbone) -> None:
    report: list[str] = []
    layout = dataclasses.replace(LAYOUT, cameras=("head", "wrist"))
    build_network(backbone, CONFIG, seed=0, layout=layout, report=report)
    said = "views: 2 of 2 kept by order, since no camera has the same name: head as left, wrist as right"
    assert report[0] == said


@pytest.mark.parametrize(
    ("depth_blocks", "sentence"),
    [
        (0, "depth branch: imported, and not used by this network"),
        (1, "depth branch: new, since this network's (1 blocks) is not built like the imported one (2)"),
    ],
)
def test_a_depth_branch_of_another_length_is_said(backbone: Backbone, depth_blocks: int, sentence: str) -> None:
    report: list[str] = []
    config = dataclasses.replace(CONFIG, depth_blocks=depth_blocks)
    network = build_network(backbone, config, seed=0, layout=LAYOUT, report=report)
    assert report[-1] == sentence
    assert (network.depth_branch is None) == (depth_blocks == 0)


def test_the_backbone_keeps_its_own_tensors(backbone: Backbone, joint: JointWeights) -> None:
    before = {name: tensor.clone() for name, tensor in joint.tensors.items()}
    network = build_network(backbone, CONFIG, seed=0, layout=LAYOUT)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert all(torch.equal(tensor, joint.tensors[name]) for name, tensor in before.items())


def test_a_contract_names_its_numbers(contract_with: Callable[..., Contract]) -> None:
    contract = contract_with()
    layout = Layout.of(contract)
    assert layout.proprio[-2:] == ("tool.qz", "gripper.width")
    assert layout.action == (
        "tool.dx", "tool.dy", "tool.dz", "tool.rx", "tool.ry", "tool.rz", "gripper.width",
    )  # fmt: skip
    assert (len(layout.proprio), len(layout.action)) == (contract.state_dim, contract.action_dim)
    assert layout.cameras == ("front", "wrist")
    assert layout.conventions == {"tool": "relative_to_chunk_start", "gripper": "absolute"}
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def write(joint: JointWeights, folder: Path) -> Path:
    (folder / "joint").mkdir(parents=True)
    described = {"network": joint.config.to_dict(), "layout": joint.layout.to_dict()}
    (folder / "joint" / "config.json").write_bytes(json_bytes(described))
    save_file({name: tensor.contiguous() for name, tensor in joint.tensors.items()}, folder / "joint" / "a.safetensors")
    return folder / "joint"


def test_joint_weights_are_read_back_and_checked(joint: JointWeights, tmp_path: Path) -> None:
    place = write(joint, tmp_path)
    back = read_joint(tmp_path)
    assert back is not None
    assert (back.config, back.layout) == (CONFIG, LAYOUT)
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in joint.tensors.items())
    assert read_joint(tmp_path / "joint") is None
    tensors = load_file(place / "a.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "action_decoder.2.weight"}, place / "a.safetensors")
    with pytest.raises(UserError, match=r"holds no action_decoder\.2\.weight of 5\. Fix: import the checkpoint again"):
        read_joint(tmp_path)
    (place / "a.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be read"):
        read_joint(tmp_path)
    (place / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no description of joint weights \('network'\)"):
        read_joint(tmp_path)


def test_another_width_is_refused(joint: JointWeights) -> None:
    other = make_transformer(num_attention_heads=3)
    backbone = Backbone("toy", other, None, None, None, 7, True, lambda part: part, joint=joint)
    with pytest.raises(UserError, match="its weights are 24 wide, and the transformer is 36"):
        build_network(backbone, NetworkConfig(2, 5, 6, 2, 0), seed=0)
