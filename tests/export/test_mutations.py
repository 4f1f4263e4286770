"""Each proof of export is broken on purpose, and each time export refuses in one sentence and leaves no bundle.

What a checkpoint or a contract may hold wrong stands in test_export.py; here it is files and code that go wrong. Where
a proof needs no answers of the network, the machine is made to look too small for it: such a machine proves it too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shared import QUIET
from xwam_ft import observation
from xwam_ft.contract import Contract, load_contract
from xwam_ft.errors import UserError
from xwam_ft.export import export, proof, served, weights
from xwam_ft.files import read_json
from xwam_ft.model.backbone import locate_backbone, part_fingerprints
from xwam_ft.policy import messages, selfcheck, wire
from xwam_ft.policy.bundle import read_prompts
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.policy import Policy
from xwam_ft.recipe_model import LoraSpec
from xwam_ft.shards import ShardSet


def refused(run: Path, out: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        export.export_run(run, out, console=QUIET, **options)
    assert list(out.parent.glob(f"*{out.name}*")) == [], "a bundle or a draft was left"
    return str(error.value)


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "transformer"),
        ("vae/diffusion_pytorch_model.safetensors", "VAE"),
        ("text_encoder/model.safetensors", "text encoder"),
        ("tokenizer/added_tokens.json", "text encoder"),
    ],
)
def test_a_file_of_the_base_changed_since_training(trained_run: Path, tmp_path: Path, file: str, part: str) -> None:
    base = Path(shutil.copytree(locate_backbone("tiny", ("transformer", "vae", "text")), tmp_path / "base"))
    assert part_fingerprints(str(base), ("transformer",)) == part_fingerprints("tiny", ("transformer",))
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["backbone"]["path"] = str(base)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flip(base / file)
    message = refused(run, tmp_path / "bundle")
    assert f"is not the backbone this run was trained on: the fingerprint of its {part} is" in message
    assert str(base) in message


def change_tensor(draft: Path) -> None:
    flip(draft / "model.safetensors")


def change_prompt(draft: Path) -> None:
    path = draft / "prompts.safetensors"
    with safe_open(path, "pt") as stored:
        about = stored.metadata()
    tensors = load_file(path)
    # Two instructions trade places: each is a good embedding, of the other task.
    save_file({"00000": tensors["00000"], "00001": tensors["00002"], "00002": tensors["00001"]}, path, about)


def change_config(draft: Path) -> None:
    config = json.loads((draft / "config.json").read_text())
    config["sampling"]["action_steps"] += 1
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def swap_cameras(draft: Path) -> None:
    contract = load_contract(draft / "contract.json")
    swapped = contract.model_copy(update={"cameras": contract.cameras[::-1]})
    (draft / "contract.json").write_bytes(swapped.to_bytes())


def move_quantile(draft: Path) -> None:
    tree = json.loads((draft / "contract.json").read_text())
    tree["quantiles"]["action_high"][0] += 1e-6
    (draft / "contract.json").write_bytes(Contract.model_validate(tree).to_bytes())


BESIDE = [
    (change_prompt, "prompts.safetensors"),
    (change_config, "config.json"),
    (swap_cameras, "contract.json"),
    (move_quantile, "contract.json"),
]


@pytest.mark.parametrize(("change", "named"), BESIDE)
def test_what_lies_beside_the_model_reads_back_changed(
    bundle: Path, tmp_path: Path, change: Callable[[Path], None], named: str
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    meant = load_contract(copy / "contract.json"), read_json(copy / "config.json"), read_prompts(copy)
    proof.require_beside(copy, *meant)
    change(copy)
    with pytest.raises(UserError, match=f"{named} reads back changed"):
        proof.require_beside(copy, *meant)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "named"), [(change_tensor, "tensor 'vae."), (swap_cameras, "contract.json")])
def test_what_was_written_reads_back_changed(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    named: str,
) -> None:
    write = export.write_parts

    def writes_wrongly(folder: Path, *parts: Any) -> dict[str, str]:
        digests = write(folder, *parts)
        change(folder)
        return digests

    monkeypatch.setattr(export, "free_memory", lambda: 0)
    monkeypatch.setattr(export, "write_parts", writes_wrongly)
    message = refused(trained_run, tmp_path / "bundle")
    assert named in message
    assert "reads back changed" in message


def wrong_scale(base: torch.Tensor, exact: torch.Tensor, times: float = 1.1) -> torch.Tensor:
    return base.float() + times * (exact - base.float())


@pytest.mark.slow
@pytest.mark.parametrize("small", [False, True])
def test_a_merge_with_a_wrong_scale(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    merge = weights.merged_weight
    monkeypatch.setattr(weights, "merged_weight", lambda base, *lora: wrong_scale(base, merge(base, *lora)))
    if small:
        monkeypatch.setattr(export, "free_memory", lambda: 0)
    message = refused(trained_run, tmp_path / "bundle")
    changed = "blocks." if small else "action"
    assert "merging in float32 changes " in message
    assert changed in message
    assert "by 10% of what the adapter does (5% is the limit)" in message


def test_a_merge_within_the_limit_passes_and_just_beyond_does_not() -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    lora = {"lora_A.weight": torch.randn(2, 5), "lora_B.weight": torch.randn(6, 2)}
    for spec in (LoraSpec(rank=2, alpha=7), LoraSpec(rank=2, alpha=7, rslora=True)):
        update = weights.lora_scale(spec) * lora["lora_B.weight"] @ lora["lora_A.weight"]
        exact = weights.merged_weight(base, lora, spec)
        torch.testing.assert_close(exact, base + update)
        for times, fits in ((1.04, True), (1.06, False)):
            lost = float((wrong_scale(base, exact, times) - base - update).square().sum())
            share = proof.worst_rounding({"block": [lost, float(update.square().sum())]})[1]
            assert share == pytest.approx(times - 1, rel=1e-3)
            assert (share <= proof.MERGE_LIMIT) is fits


@pytest.mark.slow
def test_another_recorded_answer(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = selfcheck.save

    def saves_wrongly(check: selfcheck.SelfCheck, path: Path) -> None:
        save(replace(check, action=check.action + np.float32(0.01)), path)

    monkeypatch.setattr(selfcheck, "save", saves_wrongly)
    message = refused(trained_run, tmp_path / "bundle")
    assert "the recorded request gives another action here: they differ by 0.01" in message


@pytest.mark.slow
def test_a_file_changed_after_the_bundle_was_sealed(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = export.seal

    def sealed_then_changed(folder: Path, *about: Any) -> None:
        seal(folder, *about)
        flip(folder / "model.safetensors")

    monkeypatch.setattr(export, "seal", sealed_then_changed)
    message = refused(trained_run, tmp_path / "bundle")
    assert "model.safetensors: is not the file that was exported" in message


@pytest.mark.slow
def test_a_served_answer_that_differs(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = messages.answer
    monkeypatch.setattr(messages, "answer", lambda *about: nudged(answer(*about), "actions"))
    message = refused(trained_run, tmp_path / "bundle")
    assert "a served answer is not the one given in process: they differ in actions" in message


def nudged(said: dict[str, Any], *path: str) -> dict[str, Any]:
    """An answer of which one number is the next there is."""
    place = said
    for key in path[:-1]:
        place = place[key]
    array = np.array(place[path[-1]])
    array.flat[0] = np.nextafter(array.flat[0], np.inf)
    place[path[-1]] = array
    return said


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Policy:
    return Policy.load(bundle, "cpu", selfcheck=False)


def test_nothing_is_changed_and_all_is_proved(policy: Policy, shard_set: ShardSet, tmp_path: Path) -> None:
    assert [result for _, result in served.prove(policy, shard_set, tmp_path)] == [
        "as in training (2 recorded observations)",
        "as in process (2 recorded observations)",
    ]


def commands_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = messages.answer
    monkeypatch.setattr(messages, "answer", lambda *about: nudged(answer(*about), "commands", "gripper"))


def client_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = PolicyClient.infer

    def rounds(self: PolicyClient, *about: Any, **options: Any) -> dict[str, Any]:
        said = infer(self, *about, **options)
        return said | {"actions": said["actions"].astype(np.float32)}

    monkeypatch.setattr(PolicyClient, "infer", rounds)


def server_swaps_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = wire.unpack

    def swaps(data: bytes, *, bounded: bool = True) -> Any:
        said = unpack(data, bounded=bounded)
        if bounded:  # what the server reads
            front, wrist = said["images"]["front"], said["images"]["wrist"]
            said["images"] |= {"front": wrist, "wrist": front}
        return said

    monkeypatch.setattr(wire, "unpack", swaps)


def robot_s_cameras_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = observation.encode

    def swaps(*about: Any) -> observation.EncodedObservation:
        inputs = encode(*about)
        return replace(inputs, pictures=inputs.pictures[::-1])

    monkeypatch.setattr(observation, "encode", swaps)


def robot_s_state_in_millimetres(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = observation.encode

    def scales(contract: Contract, request: Any) -> observation.EncodedObservation:
        tool = np.array(request["state"]["tool"], dtype=np.float64)
        tool[:3] *= 1000
        return encode(contract, {**request, "state": {**request["state"], "tool": tool}})

    monkeypatch.setattr(observation, "encode", scales)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (commands_differ, "they differ in commands.gripper"),
        (client_rounds, "they differ in actions"),
        (server_swaps_cameras, "a served answer is not the one given in process"),
        (robot_s_cameras_swapped, "a robot's camera 'front' is not read as in training"),
        (robot_s_state_in_millimetres, "a robot's slot 'tool' is not read as in training"),
    ],
)
def test_the_way_to_the_robot_is_broken(
    policy: Policy,
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    named: str,
) -> None:
    change(monkeypatch)
    with pytest.raises(UserError, match="is") as error:
        served.prove(policy, shard_set, tmp_path)
    assert named in str(error.value)
