"""Names of reference checkpoints both ways, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from toy import make_network

from xwam_ft.errors import UserError
from xwam_ft.model.reference import build_from_reference, check_state, from_reference, to_reference

GOLDEN = Path(__file__).parents[1] / "golden" / "xwam_tiny.safetensors"


@pytest.fixture(scope="module")
def golden() -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(GOLDEN, framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("weight.")]  # noqa: SIM118
        weights = {name.removeprefix("weight."): stored.get_tensor(name) for name in names}
        return json.loads(stored.metadata()["config"]), weights


def test_names_go_there_and_back_for_a_whole_state_dict(golden) -> None:
    config, weights = golden
    ours = from_reference(weights)
    assert to_reference(ours).keys() == weights.keys()
    network = build_from_reference(config, weights)
    assert network.state_dict().keys() == ours.keys()
    for name, tensor in to_reference(network.state_dict()).items():
        assert torch.equal(tensor, weights[name])


def test_our_networks_names_go_there_and_back() -> None:
    state = make_network().state_dict()
    assert from_reference(to_reference(state)).keys() == state.keys()


def test_the_norms_swap_their_numbers() -> None:
    ones = torch.ones(1)
    assert list(from_reference({"blocks.0.norm3.weight": ones})) == ["transformer.blocks.0.norm2.weight"]
    assert list(to_reference({"depth_branch.blocks.7.attn2.to_out.0.bias": ones})) == [
        "extra_blocks.0.7.cross_attn.o.bias"
    ]


@pytest.mark.parametrize("name", ["vae.encoder.conv1.weight", "blocks.0.attn1.to_q.weight", "blocks.0.ffn.1.weight"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^here: unknown weight names {name}\. Fix: "):
        from_reference({name: torch.ones(1)}, "here")


def test_a_config_without_its_values_is_refused(golden) -> None:
    config, weights = golden
    lacking = {key: value for key, value in config.items() if key not in ("dim", "num_views")}
    with pytest.raises(UserError, match="its config has no num_views, dim"):
        build_from_reference(lacking, weights)
    with pytest.raises(UserError, match="num_modalities is 3"):
        build_from_reference(config | {"num_modalities": 3}, weights)
    with pytest.raises(UserError, match="its config describes no network"):
        build_from_reference(config | {"num_extra_layers": 9}, weights)


def test_all_complaints_about_a_state_come_in_one_sentence() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}
    given = {"a": torch.tensor([1.0, torch.nan]), "b": torch.zeros(3), "d": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        check_state(given, wanted, "file.safetensors")
    assert str(caught.value).startswith(
        "file.safetensors: 1 tensors missing: c; 1 tensors unexpected: d; "
        "1 tensors of another shape: b [3] (wanted [2]); 1 tensors not finite: a. Fix: "
    )
