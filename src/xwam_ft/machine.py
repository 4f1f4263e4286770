"""What this machine is: libraries against those that were tried, memory that is free, what its CPU and GPU compute in.

Importing it loads no torch; what asks torch does so when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError, listed

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NUMERIC = ("torch", "diffusers", "transformers", "peft", "lightning", "ftfy")
"""Those whose version decides about numbers, or whether weights are loaded at all."""
ABSENT = "not installed"
REINSTALL = "run `pip install -U xwam-ft` in this environment"
BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""Flags of CPUs that multiply bfloat16 numbers, as torch names them."""


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each of these packages; `ABSENT` where it is not installed as one."""
    return {name: _version(name) for name in names}


def requirements(package: str = "xwam-ft", extra: str = "") -> list[Requirement]:
    """What a package asks for on this machine, or one of its extras beside that.

    Raises:
        PackageNotFoundError: it runs from a plain checkout, without being installed, and asks for nothing.
    """
    from packaging.requirements import Requirement

    asked = [Requirement(line) for line in requires(package) or ()]
    plain = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return plain if not extra else [one for one in asked if one not in plain and one.marker.evaluate({"extra": extra})]  # pyright: ignore[reportOptionalMemberAccess]


def unmet(asked: Requirement) -> str | None:
    """What is wrong with a library that is asked for, as a clause; None where it is as asked."""
    found = _version(asked.name)
    if found == ABSENT:
        return f"{asked.name} is not installed"
    if asked.specifier.contains(found, prereleases=True):
        return None
    return f"{asked.name} is {found}, and {asked.name}{asked.specifier} was tried"


def require_supported() -> None:
    """Raise a `UserError` that names each numeric library that is absent or of a version that was never tried.

    The bounds are the package's own (pyproject.toml); code that runs from a plain checkout is not held back.
    """
    try:
        asked = requirements()
    except PackageNotFoundError:
        return
    wrong = [found for one in asked if one.name in NUMERIC and (found := unmet(one))]
    if wrong:
        raise UserError(listed(wrong, len(wrong)), "the installed libraries", REINSTALL)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16 (AVX512-BF16 or AMX; on ARM, BF16)."""
    flags = cpu_flags()
    return any(flags.get(name, False) for name in BFLOAT16)


def cpu_flags() -> Mapping[str, Any]:
    """What this machine's CPU can do, as torch names it; before torch 2.11 of bfloat16 alone."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {name: getattr(torch.cpu, function)() for name, function in asked.items()}


def gpu_has_bfloat16() -> bool:
    """Whether this machine's GPU computes in bfloat16 by itself; True where there is none to ask."""
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def free_memory(*, gpu: bool | None = None) -> int:
    """Bytes that a device can still give: of the GPU, or of the machine; None takes the GPU where there is one."""
    if gpu is not False:
        import torch

        if gpu or torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0]
    import psutil

    return int(psutil.virtual_memory().available)


def gpu_driver() -> str | None:
    """The version of NVIDIA's kernel driver; None where none is loaded (nvidia-smi may be absent in a container)."""
    place = Path("/sys/module/nvidia/version")
    return place.read_text(encoding="ascii").strip() if place.is_file() else None


def gigabytes(count: int) -> str:
    """Bytes as people read them: `1.25 GB`, `640.0 MB`."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def cores() -> int:
    """CPU cores that this process may use; a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
