"""The contract keeps its bytes, refuses what contradicts itself, and names both files when two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xwam_ft.contract import (
    POSE_ELEMENTS,
    POSE_UNITS,
    Camera,
    Contract,
    DepthCode,
    Image,
    Limits,
    Quantiles,
    Slot,
    Timing,
    load_contract,
    require_same,
)
from xwam_ft.errors import UserError
from xwam_ft.kinematics import Chain, ChainJoint

Make = Callable[..., Contract]
EYE = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
CHAIN = Chain(
    urdf="a.urdf",
    urdf_sha256="0" * 64,
    base="base",
    tip="tip",
    joints=(ChainJoint(name="j", type="revolute", origin=EYE, axis=(0.0, 0.0, 1.0), lower=-1.0, upper=0.1 + 0.2),),
    order=("j",),
)


def slot(**fields: Any) -> Slot:
    plain: dict[str, Any] = {"name": "s", "kind": "joints", "columns": ("a",), "elements": ("a",), "units": ("rad",)}
    return Slot(**(plain | fields))


def pose(**fields: Any) -> Slot:
    plain: dict[str, Any] = {"kind": "pose", "columns": POSE_ELEMENTS, "elements": POSE_ELEMENTS, "units": POSE_UNITS}
    return slot(**(plain | fields))


def timing(**fields: Any) -> Timing:
    return Timing(**({"fps": 10.0, "frame_skip": 4, "action_skip": 1, "clip_frames": 9} | fields))


def test_bytes_and_hash_survive_the_disk(contract: Contract, tmp_path: Path) -> None:
    contract.save(tmp_path / "contract.json")
    data = (tmp_path / "contract.json").read_bytes()
    back = load_contract(tmp_path / "contract.json")
    assert back == contract
    assert back.to_bytes() == data == contract.to_bytes()
    assert back.sha256 == contract.sha256 == hashlib.sha256(data).hexdigest()


def test_a_chain_and_limits_survive_too(contract_with: Make) -> None:
    tool = pose(
        name="tool", columns=("j",), transform="forward_kinematics", chain=CHAIN, convention="step_delta",
        limits=Limits(low=(0.1, -0.2, 1e-17), high=(1.0, 1.0, 1.0)),
    )  # fmt: skip
    contract = contract_with(slots=(tool, contract_with().slot("gripper")))
    assert Contract.model_validate_json(contract.to_bytes()) == contract


def test_contracts_from_before_speeds_keep_their_hash() -> None:
    """The hash was taken from the package before `limits` had speeds."""
    limited = {"limits": Limits(low=(-1.0, -1.0, 0.25), high=(1.0, 1.0, 1.0))}
    slots = (
        pose(name="tool", convention="step_delta", **limited),
        slot(name="gripper", kind="gripper", columns=("w",), elements=("w",), units=("m",), convention="absolute"),
    )
    old = Contract(
        embodiment="old", cameras=(Camera(name="front", source_height=32, source_width=64),),
        image=Image(height=32, width=64), timing=timing(frame_skip=2, clip_frames=5), slots=slots,
        depth=DepthCode(kind="none"), prompts=("a",),
        quantiles=Quantiles(
            proprio_low=(-1.0,) * 8, proprio_high=(1.0,) * 8, action_low=(-1.0,) * 7, action_high=(1.0,) * 7
        ),
    )  # fmt: skip
    assert old.sha256 == "5d05bc01f117295e098c4a55d8a2068c1372cdca5423ba9c91f6a7075226daf6"
    assert b"speed" not in old.to_bytes()
    assert Contract.model_validate_json(old.to_bytes()) == old


def test_speeds_survive_the_disk_and_change_the_hash(contract_with: Make) -> None:
    plain = contract_with()
    tool = plain.slot("tool").model_copy(update={"limits": Limits(speed=(0.25, 1.5))})
    fast = contract_with(slots=(tool, plain.slot("gripper")))
    back = Contract.model_validate_json(fast.to_bytes())
    assert back == fast
    assert back.slot("tool").limits == Limits(low=None, high=None, speed=(0.25, 1.5))
    assert fast.sha256 != plain.sha256


def test_any_change_changes_the_hash(contract: Contract, contract_with: Make) -> None:
    assert contract_with().sha256 == contract.sha256
    assert contract_with(embodiment="other").sha256 != contract.sha256


def test_widths_and_times_follow_from_the_slots(contract: Contract) -> None:
    assert (contract.state_dim, contract.command_dim, contract.action_dim) == (8, 8, 7)
    released = timing()
    assert (released.actions_per_frame, released.action_steps, released.span, released.latent_frames) == (4, 32, 33, 3)
    assert released.action_period == 0.1
    observed = pose(convention=None)
    assert (observed.state_width, observed.command_width, observed.action_width) == (7, 0, 0)


def moved(contract: Contract, **changes: object) -> dict[str, object]:
    return {name: getattr(contract, name) for name in Contract.model_fields} | changes


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: timing(action_skip=3), "frame_skip 4 is not a multiple of action_skip 3"),
        (lambda: timing(clip_frames=8), "clip_frames 8 is not 4n+1 with n >= 1"),
        (lambda: timing(clip_frames=1), "clip_frames 1 is not 4n+1 with n >= 1"),
        (lambda: timing(fps=float("inf")), "finite number"),
        (lambda: pose(elements=("x",), units=("m",)), "a pose slot has the elements"),
        (lambda: pose(convention="absolute"), "a pose is commanded relative to something"),
        (lambda: slot(units=("rad", "rad")), "2 units for 1 elements"),
        (lambda: pose(transform="forward_kinematics"), "`chain` and transform `forward_kinematics` belong together"),
        (lambda: pose(chain=CHAIN), "`chain` and transform `forward_kinematics` belong together"),
        (lambda: slot(columns=("a", "b")), "2 columns for 1 elements"),
        (
            lambda: slot(transform="mean", columns=("a", "b"), elements=("a", "b"), units=("1", "1")),
            "a mean of columns is one number",
        ),
        (
            lambda: slot(transform="mean", columns=("a", "b"), convention="absolute"),
            "a mean of columns cannot be commanded unless `expand`",
        ),
        (lambda: slot(limits=Limits(low=(0.0, 0.0), high=(1.0,))), "limits of 2 and 1 numbers, not 1"),
        (lambda: pose(limits=Limits(low=(0.0,) * 7, high=(1.0,) * 7)), "limits of 7 and 7 numbers, not 3"),
        (lambda: Limits(low=(0.0,)), "`low` and `high` go together"),
        (lambda: Limits(), "limits without a number"),
        (lambda: Limits(speed=(0.0,)), "Input should be greater than 0"),
        (lambda: slot(limits=Limits(speed=(1.0, 1.0))), "a speed of 2 numbers, not 1"),
        (lambda: pose(limits=Limits(speed=(1.0,))), "a speed of 1 numbers, not 2: metres and radians a second"),
        (
            lambda: slot(command_units=("1",), convention="absolute", limits=Limits(speed=(1.0,))),
            "limits of speed are for commands in the state's units",
        ),
        (lambda: slot(name="Left.Arm"), "should match pattern"),
        (
            lambda: Quantiles(proprio_low=(0.0,), proprio_high=(0.0,), action_low=(), action_high=()),
            "proprio quantiles are not finite pairs with low < high",
        ),
        (
            lambda: Quantiles(proprio_low=(), proprio_high=(), action_low=(0.0,), action_high=(1.0, 2.0)),
            "action quantiles are not finite pairs with low < high",
        ),
    ],
)  # fmt: skip
def test_parts_that_contradict_themselves(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        build()
    assert sentence in str(caught.value)


def test_contracts_that_contradict_themselves(contract: Contract, contract_with: Make) -> None:
    front, wrist = contract.cameras
    lost = wrist.model_copy(update={"mount": "gripper"})
    for changes, sentence in [
        ({"cameras": (front, front)}, "two cameras share a name: ['front', 'front']"),
        ({"slots": (*contract.slots, contract.slots[0])}, "two slots share a name"),
        ({"slots": contract.slots[:1]}, "the quantiles do not fit the slots"),
        ({"cameras": (lost,)}, "camera 'wrist' is mounted on 'gripper', which is not a pose slot"),
        ({"cameras": ()}, "at least 1 item"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ]:
        with pytest.raises(ValidationError) as caught:
            contract_with(**changes)
        assert sentence in str(caught.value)


def test_camera_names_can_stand_in_file_names() -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        Camera(name="cam.high", source_height=2, source_width=2)


def test_files_that_are_no_contract(contract: Contract, tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    with pytest.raises(UserError, match=r"contract\.json: the file is missing"):
        load_contract(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"contract\.json: is not valid JSON"):
        load_contract(path)
    tree = json.loads(contract.to_bytes())
    tree["schema_version"] = 7
    tree["timing"]["clip_frames"] = 6
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError) as caught:
        load_contract(path)
    assert "schema_version: Input should be 1" in str(caught.value)
    assert "timing: Value error, clip_frames 6 is not 4n+1" in str(caught.value)
    assert "make it again with `xwam-ft prepare`" in caught.value.fix


def test_two_contracts_that_differ_are_both_named(contract: Contract, contract_with: Make) -> None:
    require_same(contract, Path("run/contract.json"), contract_with(), Path("shards/contract.json"))
    with pytest.raises(UserError) as caught:
        require_same(
            contract, Path("run/contract.json"), contract_with(embodiment="so101"), Path("shards/contract.json")
        )
    assert str(caught.value).startswith("run/contract.json: does not hold the contract of shards/contract.json")
    assert "embodiment is 'test-arm' there and 'so101' in shards/contract.json" in str(caught.value)
    other = contract_with(cameras=contract.cameras[:1], prompts=())
    with pytest.raises(UserError, match="they differ in cameras, prompts"):
        require_same(contract, Path("a"), other, Path("b"))


def test_a_camera_may_have_its_own_depth_range(contract: Contract) -> None:
    near = contract.cameras[0].model_copy(update={"depth_range": (0.05, 2.0)})
    metric = contract.depth.model_copy(update={"kind": "metric", "near": 0.5, "far": 5.0})
    changed = contract.model_copy(update={"cameras": (near, *contract.cameras[1:]), "depth": metric})
    assert (changed.depth_of(near).near, changed.depth_of(near).far) == (0.05, 2.0)
    assert changed.depth_of(contract.cameras[1]) == metric
    relative = changed.model_copy(update={"depth": metric.model_copy(update={"kind": "relative"})})
    assert relative.depth_of(near) == relative.depth


def test_a_text_is_a_path_as_well(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contract\.json"):
        load_contract(str(tmp_path / "contract.json"))
