"""What of a clip counts: nothing of an arm that is not there, nothing past the recording's end."""

from __future__ import annotations

from collections.abc import Callable

import torch

from xwam_ft.contract import Contract
from xwam_ft.encode.augment import centred
from xwam_ft.encode.clip_tensors import depth_shown, motion_tensors
from xwam_ft.shards import Segment, cut_clip


def test_nothing_of_an_absent_arm_counts(contract_with: Callable[..., Contract], segment: Segment) -> None:
    plain = contract_with()
    absent = plain.slot("tool").model_copy(update={"present": False})
    contract = contract_with(slots=(absent, plain.slot("gripper")))
    tensors = motion_tensors(cut_clip(segment, 4, contract.timing), contract)
    assert tensors["proprio_mask"].sum(dim=0).tolist() == [0.0] * 7 + [5.0]
    assert tensors["action_mask"].sum(dim=0).tolist() == [0.0] * 6 + [8.0]


def test_depth_of_a_held_picture_does_not_count(contract: Contract, segment: Segment) -> None:
    """29 frames, 5 pictures 2 apart: from 24 on three are recorded, half of the later latent frame; from 26 on two."""
    change = centred(2, 32, 64, contract.image.crop)
    counted: list[list[int]] = []
    for start in (4, 24, 26):
        _, mask = depth_shown(cut_clip(segment, start, contract.timing), contract, change, 16)
        assert mask.shape == (2, 2, 2, 4)
        counted.append(torch.count_nonzero(mask.flatten(1), dim=1).tolist())
    assert counted == [[16, 16], [16, 16], [16, 0]]
