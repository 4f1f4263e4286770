"""What a run holds in a machine's own memory, counted: where networks are loaded and checkpoints are written.

On a GPU little of a run stays there; what decides is the moment before weights have gone to their devices, times the
processes of a machine, and the first process, which writes checkpoints. Not counted: `encode` before it (UMT5 of the 5B
is 11.4 GB in the first process, which has let go of it by then), loaders' workers, and pages of mapped files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xwam_ft.learn.start import why_whole
from xwam_ft.machine import gigabytes
from xwam_ft.model.deferred import BRANCH

if TYPE_CHECKING:
    from torch import nn

    from xwam_ft.model.summary import MemoryNeed
    from xwam_ft.recipe import Recipe

PROCESS_BYTES = 1_500_000_000
"""What Python and its libraries take in a process; assumed (1.0 GB was measured on a CPU, before CUDA's own)."""
MORE = "take a machine with more, or fewer trainer.devices of it"


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory.

    Args:
        process: of each process at most, but for the first.
        first: of the first one at most.
        processes: on a machine.
        whole: what makes each of them load the whole network under FSDP2 (`why_whole`).
    """

    process: int
    first: int
    processes: int
    whole: str | None = None

    @property
    def machine(self) -> int:
        return self.first + self.process * (self.processes - 1)


def host_memory(
    recipe: Recipe,
    network: nn.Module,
    need: MemoryNeed,
    device_peak: int,
    vae: int,
    processes: int,
    *,
    on_gpu: bool,
    fits: bool = False,
) -> HostMemory:
    """Count it.

    Args:
        network: of the recipe, on any device.
        need: of all that trains, whole.
        device_peak: of a device (plan.py), which on a CPU is this memory too.
        vae: bytes of the VAE that is loaded for validation.
        processes: on a machine.
        fits: a depth branch that the backbone brings is fitted by an adapter, which takes whole weights.
    """
    sizes = {name: p.numel() * p.element_size() for name, p in network.named_parameters()}
    whole = sum(sizes.values())
    drawn = sum(size for name, size in sizes.items() if not in_files(name))
    why = why_whole(recipe, fits=fits)
    by_rank = recipe.trainer.strategy == "fsdp2" and why is None
    loading = drawn + _largest_share(network, processes * recipe.trainer.nodes) if by_rank else whole
    beginning = whole if recipe.init_from is not None else loading
    # A file's tensors; there are as many gradients as weights that train. On a CPU they are written where they lie.
    copied = on_gpu or recipe.trainer.strategy == "fsdp2"
    saving = max(need.gradients, need.optimizer, need.average) if copied else 0
    run = 0 if on_gpu else device_peak
    return HostMemory(
        process=PROCESS_BYTES + max(run, loading, vae if on_gpu else 0),
        first=PROCESS_BYTES + max(run + saving, beginning, vae if on_gpu else 0),
        processes=processes,
        whole=why,
    )


def in_files(name: str) -> bool:
    """Whether a parameter of a network, by its name, is one that a backbone's files hold."""
    return name.startswith(("transformer.", BRANCH)) and ".lora_" not in name


def _largest_share(network: nn.Module, processes: int) -> int:
    """Bytes of the largest part that is read at once, on its way to a device."""
    return max(-(-p.numel() // processes) * p.element_size() for _, p in network.named_parameters())


def too_little(host: HostMemory, available: int, recipe: Recipe) -> str | None:
    """A sentence where a machine's memory will not do."""
    if host.machine <= available:
        return None
    of = f"{host.processes} process{'es' if host.processes > 1 else ''}, the first {gigabytes(host.first)}"
    said = (
        f"{gigabytes(host.machine)} of host memory are needed on a machine ({of}, which writes checkpoints), and "
        f"{gigabytes(available)} are free: "
    )
    sharded = recipe.trainer.strategy == "fsdp2"
    if host.processes > 1 and not sharded and recipe.backbone.quantize is None and not recipe.optim.adamw_8bit:
        return f"{said}set trainer.strategy=fsdp2, where each process reads its share of the backbone alone"
    if host.whole is not None:
        return f"{said}with {host.whole} every process loads the whole network; leave that, or {MORE}"
    if recipe.init_from is not None:
        return f"{said}what init_from names is worked out on a whole network; take a machine with more"
    return f"{said}{MORE}"
