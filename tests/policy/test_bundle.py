"""The bundle: nothing in it can change unnoticed, and what is read is what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xwam_ft.errors import UserError
from xwam_ft.observation import EncodedObservation
from xwam_ft.policy import bundle as bundles
from xwam_ft.policy import selfcheck
from xwam_ft.policy.bundle import FILES, MANIFEST, OPTIONAL, verify_bundle
from xwam_ft.policy.policy import Policy


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_it_holds_exactly_these_files(bundle: Path, trained_run: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == sorted([*FILES, *OPTIONAL, MANIFEST])
    assert (bundle / "contract.json").read_bytes() == (trained_run / "contract.json").read_bytes()


SEALED = [name for name in (*FILES, *OPTIONAL) if name != "README.md"]


@pytest.mark.parametrize("name", [*SEALED, MANIFEST])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_one_byte_changed_is_refused_by_name(copy: Path, name: str, where: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(where * len(data))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        verify_bundle(copy)
    assert str(copy / name) in str(error.value)


@pytest.mark.parametrize("name", SEALED)
def test_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: the file is missing"):
        Policy.load(copy)


def test_a_foreign_file_and_a_foreign_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "weights.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"not exported: weights\.pkl"):
        verify_bundle(copy)
    (copy / "weights.pkl").unlink()
    (copy / ".gitattributes").touch()
    verify_bundle(copy)
    with pytest.raises(UserError, match="is not a bundle"):
        verify_bundle(tmp_path)


def test_its_card_may_be_edited_and_a_licence_added(copy: Path) -> None:
    card = copy / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n" + card.read_text())
    (copy / "LICENSE").write_text("Apache-2.0")
    (copy / "notes.txt").write_text("trained on Monday's recordings")
    verify_bundle(copy)
    card.unlink()
    verify_bundle(copy)
    (copy / "readme.py").write_text("")
    with pytest.raises(UserError, match=r"not exported: readme\.py"):
        verify_bundle(copy)


def test_another_network_fails_the_self_check(bundle: Path) -> None:
    policy = Policy.load(bundle, "cpu")
    check = selfcheck.load(bundle / "selfcheck.safetensors", policy)
    assert check.difference(policy) == 0.0
    with torch.no_grad():
        policy.network.action_decoder[2].weight.mul_(1.5)
    with pytest.raises(UserError) as error:
        check.require(policy, "float32", bundle / "selfcheck.safetensors")
    assert "gives another action here" in str(error.value)
    assert "do not run it on a robot" in str(error.value)


class Constant:
    """Stands in for a policy on some device: gives the recorded action with one number changed."""

    def __init__(self, action: np.ndarray, change: float, device: str) -> None:
        self.action, self.device = action.copy(), torch.device(device)
        self.action[1, 2] += change

    def infer_batch(self, inputs: object, seeds: object) -> np.ndarray:
        return self.action[None]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("dtype", "device", "bound"),
    [("float32", "cpu", 1e-3), ("float32", "cuda", 5e-3), ("bfloat16", "cpu", 0.1), ("bfloat16", "cuda", 0.1)],
)
def test_the_self_check_bounds_every_single_number(
    dtype: str, device: str, bound: float, sign: int, tmp_path: Path
) -> None:
    action = np.random.default_rng(0).normal(size=(8, 7))
    check = selfcheck.SelfCheck(EncodedObservation(*[np.zeros(1)] * 3, ""), 0, action, "cpu")
    inside: Any = Constant(action, sign * 0.98 * bound, device)
    assert check.require(inside, dtype, tmp_path) == pytest.approx(0.98 * bound)
    outside: Any = Constant(action, sign * 1.02 * bound, device)
    with pytest.raises(UserError, match="gives another action here"):
        check.require(outside, dtype, tmp_path)


def test_a_self_check_that_gives_nan_fails(bundle: Path) -> None:
    policy = Policy.load(bundle, "cpu")
    check = selfcheck.load(bundle / "selfcheck.safetensors", policy)
    with torch.no_grad():
        policy.network.action_decoder[2].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="gives another action"):
        check.require(policy, "bfloat16", bundle / "selfcheck.safetensors")


@pytest.mark.parametrize(
    ("has", "room", "dtype"),
    [(False, 1 << 40, torch.float32), (True, 1 << 40, torch.bfloat16), (False, 1, torch.bfloat16)],
)
def test_a_cpu_without_bfloat16_computes_in_float32_where_that_fits(
    copy: Path, monkeypatch: pytest.MonkeyPatch, has: bool, room: int, dtype: torch.dtype
) -> None:
    stored = load_file(copy / "model.safetensors")
    name = next(name for name in stored if name.endswith("blocks.0.attn1.to_q.weight"))
    stored[name] = stored[name].bfloat16()
    save_file(stored, copy / "model.safetensors")
    monkeypatch.setattr(bundles, "cpu_has_bfloat16", lambda: has)
    monkeypatch.setattr(bundles, "free_memory", lambda *, gpu: room)
    policy = bundles.read_parts(copy, json.loads((copy / "config.json").read_text()), "cpu")
    weight = policy.network.state_dict()[name.removeprefix("network.")]
    assert weight.dtype == dtype
    assert torch.equal(weight.bfloat16(), stored[name])


def test_a_bundle_says_how_long_an_action_prefix_it_was_trained_with(bundle: Path) -> None:
    assert verify_bundle(bundle)["action_prefix"] == 2
    assert Policy.load(bundle, "cpu", selfcheck=False).action_prefix == 2


@pytest.mark.parametrize("device", ["foo", "meta:what"])
def test_a_device_that_is_not_there_is_one_sentence(bundle: Path, device: str) -> None:
    with pytest.raises(UserError, match=f"device: is '{device}', and there is no such device here"):
        Policy.load(bundle, device)


def test_a_policy_at_work_is_not_changed_by_a_bundle_copied_over_its_own(copy: Path) -> None:
    """`cp` and `rsync --inplace` write into the very files that were read, which safetensors maps into memory."""
    policy = Policy.load(copy, "cpu", selfcheck=False)

    def tensors() -> dict[str, torch.Tensor]:
        parts: dict[str, Any] = {"network": policy.network, "vae": policy.codec.vae}
        held = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
        return {**held, **policy.prompts}

    before = {name: tensor.clone() for name, tensor in tensors().items()}
    for name in ("model.safetensors", "prompts.safetensors"):
        size = (copy / name).stat().st_size
        with (copy / name).open("r+b") as file:
            file.seek(size // 4)
            file.write(b"\x11" * (size - size // 4))
    assert [name for name, tensor in tensors().items() if not torch.equal(tensor, before[name])] == []
