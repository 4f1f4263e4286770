"""What a CPU computes in: bfloat16 pays only where it has instructions for it.

Without them torch widens and rounds every number by hand, and a step takes about eight times as long as in float32.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from xwam_ft.errors import UserError
from xwam_ft.machine import cpu_has_bfloat16, gpu_has_bfloat16

if TYPE_CHECKING:
    from xwam_ft.recipe import TrainerSpec

Precision: TypeAlias = Literal["32-true", "bf16-mixed"]


def runs_on_gpu(spec: TrainerSpec) -> bool:
    return spec.accelerator == "gpu" or (spec.accelerator == "auto" and torch.cuda.is_available())


def chosen_precision(spec: TrainerSpec) -> tuple[Precision, str | None]:
    """The precision of a run on this machine, and a sentence where it was chosen here or will be slow.

    Raises:
        UserError: bf16-mixed on a GPU that has no bfloat16.
    """
    on_gpu = runs_on_gpu(spec)
    if spec.precision == "32-true":
        return "32-true", None
    asked = "trainer.precision is auto"
    if on_gpu and not gpu_has_bfloat16():
        name = torch.cuda.get_device_name()
        if spec.precision == "auto":
            return "32-true", f"{asked}: 32-true, since {name} does not compute in bfloat16"
        raise UserError(
            f"is bf16-mixed, and {name} does not compute in bfloat16 (GPUs from Ampere on do)",
            "trainer.precision",
            "set it to auto or 32-true",
        )
    if on_gpu or cpu_has_bfloat16():
        device = "GPU" if on_gpu else "CPU"
        said = f"{asked}: bf16-mixed, since this {device} computes in bfloat16"
        return "bf16-mixed", said if spec.precision == "auto" else None
    lacks = "this CPU has no instructions for bfloat16 (AVX512-BF16 or AMX)"
    if spec.precision == "auto":
        return "32-true", f"{asked}: 32-true, since {lacks}"
    return "bf16-mixed", f"{lacks}: a step takes about eight times as long; set trainer.precision to auto or 32-true"


def uses_tf32(spec: TrainerSpec) -> bool:
    """Whether products that stay float32 round what they multiply to 10 bits (TF32), which a GPU does 8 times as fast.

    `auto`: where all others are rounded to 7 bits anyway; who asks for float32 gets it.
    """
    if not runs_on_gpu(spec):
        return False
    return chosen_precision(spec)[0] == "bf16-mixed" if spec.tf32 == "auto" else spec.tf32


@contextmanager
def float32_products(spec: TrainerSpec) -> Generator[None]:
    """Compute products that stay float32 as the recipe says, meanwhile; on a CPU nothing is changed."""
    before = torch.get_float32_matmul_precision()
    if runs_on_gpu(spec):
        torch.set_float32_matmul_precision("high" if uses_tf32(spec) else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fast_autocast() -> AbstractContextManager[object]:
    """Mixed precision on a CPU that has bfloat16, float32 elsewhere."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if cpu_has_bfloat16() else nullcontext()
