"""Precision by the CPU's flags: chosen where the recipe leaves it open, said where it will be slow."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from xwam_ft.machine import cpu_has_bfloat16
from xwam_ft.model.precision import (
    chosen_precision,
    fast_autocast,
    float32_products,
    uses_tf32,
)
from xwam_ft.recipe import TrainerSpec


@pytest.fixture(params=[False, True])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    found = {"avx2": True, "avx512_bf16": request.param, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)  # torch 2.11 and later
    return request.param


def test_auto_follows_the_flags_and_says_so(flags: bool) -> None:
    assert cpu_has_bfloat16() == flags
    precision, said = chosen_precision(TrainerSpec(max_steps=1, accelerator="cpu", precision="auto"))
    assert precision == ("bf16-mixed" if flags else "32-true")
    assert said is not None
    assert precision in said
    assert isinstance(fast_autocast(), nullcontext) != flags


def test_what_was_asked_for_is_kept_with_a_warning_where_it_is_slow(flags: bool) -> None:
    spec = TrainerSpec(max_steps=1, accelerator="cpu", precision="bf16-mixed")
    precision, said = chosen_precision(spec)
    assert precision == "bf16-mixed"
    assert (said is None) == flags
    assert said is None or "eight times" in said
    on_gpu = spec.model_copy(update={"accelerator": "gpu"})
    assert chosen_precision(on_gpu) == ("bf16-mixed", None)
    assert chosen_precision(on_gpu.model_copy(update={"precision": "auto"}))[0] == "bf16-mixed"
    assert chosen_precision(spec.model_copy(update={"precision": "32-true"})) == ("32-true", None)


@pytest.mark.parametrize(
    ("accelerator", "precision", "tf32", "wanted"),
    [
        ("gpu", "bf16-mixed", "auto", True),
        ("gpu", "32-true", "auto", False),  # who asks for float32 gets it
        ("gpu", "32-true", True, True),
        ("gpu", "bf16-mixed", False, False),
        ("cpu", "bf16-mixed", "auto", False),
        ("cpu", "32-true", True, False),
    ],
)
def test_float32_products_are_rounded_where_the_recipe_says_so(
    accelerator: str, precision: str, tf32: object, wanted: bool
) -> None:
    given = {"max_steps": 1, "accelerator": accelerator, "precision": precision, "tf32": tf32}
    spec = TrainerSpec.model_validate(given)
    assert uses_tf32(spec) == wanted
    before = torch.get_float32_matmul_precision()
    assert before == "highest"
    with float32_products(spec):
        assert torch.get_float32_matmul_precision() == ("high" if wanted else "highest")
    assert torch.get_float32_matmul_precision() == before
