"""What export proves before it writes: the adapter is there, and merging it did not lose it.

Outputs are compared on a recorded observation at fixed noise, at a noisy and at a half-clean moment of sampling:
|merged - adapter| must be small against |adapter - base|, on actions and on video. Base is the same network, trained
heads included, with its adapters switched off.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.files import json_bytes
from xwam_ft.model.adapters import zero_adapters
from xwam_ft.model.branch import lora_layers
from xwam_ft.model.network import Prediction
from xwam_ft.model.sampler import Conditions
from xwam_ft.model.streams import Streams
from xwam_ft.policy.bundle import read_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.model.tensor_files.source import Stored
    from xwam_ft.observation import EncodedObservation
    from xwam_ft.policy.policy import Policy

MERGE_LIMIT = 0.05
"""Largest share of the adapter's effect that merging may change."""

TEXT_LIMITS = {"bfloat16": 0.05, "int8": 0.15}
"""Largest share of an instruction's embedding that storing the text encoder may change."""

MOMENTS = ((990.0, 960.0), (950.0, 500.0))
"""(video, action) timesteps at which outputs are compared."""


@dataclass(frozen=True)
class MergeProof:
    """Root-mean-square differences of one output."""

    stream: str
    adapter: float  # |adapter - base|
    merge: float  # |merged - adapter|

    @property
    def share(self) -> float:
        return self.merge / self.adapter if self.adapter else float("inf")

    @property
    def holds(self) -> bool:
        return self.share <= MERGE_LIMIT


def require_adapter(trained: Mapping[str, Stored], where: Path) -> int:
    """Raise a `UserError` if an adapter has stayed where it began, at zero; returns how many there are."""
    ups = [name for name in trained if ".lora_B." in name]
    adapters = len(ups)
    still = [found for name in ups for found in zero_adapters({name: trained[name].read()})[0]]
    if still:
        raise UserError(
            f"{len(still)} of {adapters} adapters are zero, so they would change nothing: {listed(still, 3)}",
            where,
            "train on, or find out why they got no gradient",
        )
    return adapters


def adapted_streams(trained: Iterable[str]) -> list[str]:
    """The outputs that adapters of these trained tensors have a part in: the transformer's all, the branch's depth."""
    names = [name for name in trained if ".lora_B." in name]
    main = ["action", "video"] if any(name.startswith("transformer.") for name in names) else []
    return main + (["depth"] if any(name.startswith("depth_branch.") for name in names) else [])


@torch.no_grad()
def outputs(network: JointNetwork, policy: Policy, inputs: EncodedObservation) -> list[Prediction]:
    """Predictions at the fixed moments, from the observation's own condition and fixed noise."""
    latents = policy.condition(inputs.pictures[None])
    timing = policy.contract.timing
    shapes = (
        (1, latents.shape[1], timing.latent_frames, *latents.shape[2:]),
        (1, timing.action_steps, policy.contract.action_dim),
        (1, timing.clip_frames, policy.contract.state_dim),
    )
    streams = Streams.normal(shapes, torch.Generator().manual_seed(0)).to(policy.device)
    Conditions(latents, torch.from_numpy(inputs.proprio)[None].to(streams.proprio)).write_back(streams, None)
    text = policy.embedding(inputs.prompt)[None]
    return [
        network(*streams.parts, text, *(torch.full((1,), t, device=policy.device) for t in moment))
        for moment in MOMENTS
    ]


def merge_proofs(
    base: list[Prediction], adapter: list[Prediction], merged: list[Prediction], streams: list[str]
) -> list[MergeProof]:
    """Compare the three on these outputs."""
    return [
        MergeProof(stream, _difference(adapter, base, stream), _difference(merged, adapter, stream))
        for stream in streams
    ]


def require_merge(proofs: list[MergeProof], dtype: str, where: Path, *, merged: bool = True) -> None:
    """Raise a `UserError` for the first output whose adapter was lost in rounding."""
    for proof in proofs:
        if not proof.holds:
            what = f"merging in {dtype}" if merged else "reading the bundle back"
            raise UserError(f"{what} changes {proof.stream} by {_beyond(proof.share)}", where, _way_out(dtype, merged))


def require_beside(folder: Path, contract: Contract, config: Mapping[str, Any], prompts: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` unless what a bundle holds beside its model is what was meant, byte for byte."""
    stored = read_prompts(folder)
    same = {
        "contract.json": (folder / "contract.json").read_bytes() == contract.to_bytes(),
        "config.json": (folder / "config.json").read_bytes() == json_bytes(config),
        "prompts.safetensors": stored.keys() == prompts.keys()
        and all(torch.equal(stored[text], embedding) for text, embedding in prompts.items()),
    }
    for name, equal in same.items():
        if not equal:
            raise UserError(f"{name} reads back changed", folder.parent, "export again; check the disk")


def worst_rounding(rounding: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    """The block of which rounding took the largest share of the adapters' update, and that share.

    What was lost is counted against the adapter's own product, not the merge, so that a wrong merge shows as well.
    For inputs whose numbers do not depend on each other it is, layer by layer, |merged - adapter| / |adapter - base| of
    the outputs: what can be proved of a network that this machine has no memory to run.

    Args:
        rounding: per block, squared norms of what was lost of the update, and of the update.
    """
    shares = {name: (lost / whole) ** 0.5 if whole else float("inf") for name, (lost, whole) in rounding.items()}
    name = max(shares, key=lambda name: shares[name])
    return name, shares[name]


def require_text(difference: float, kind: str, where: Path) -> None:
    """Raise a `UserError` if the bundle's text encoder says something else of a known instruction than training's."""
    limit = TEXT_LIMITS[kind]
    if not difference <= limit:
        raise UserError(
            f"the text encoder in {kind} changes an embedding by {difference:.0%} ({limit:.0%} is the limit)",
            where,
            "use --with-text-encoder bfloat16" if kind == "int8" else "export again; check the library versions",
        )


def require_rounding(block: str, share: float, dtype: str, where: Path) -> None:
    """Raise a `UserError` if rounding took more than `MERGE_LIMIT` of a block's update."""
    if share > MERGE_LIMIT:
        raise UserError(f"merging in {dtype} changes {block} by {_beyond(share)}", where, _way_out(dtype, True))


def _beyond(share: float) -> str:
    return f"{share:.0%} of what the adapter does ({MERGE_LIMIT:.0%} is the limit)"


def _way_out(dtype: str, merged: bool) -> str:
    if not merged:
        return "export again; check the disk and the library versions"
    wider = ", or export with --dtype float32" if dtype != "float32" else ""
    return f"keep the adapter beside its base with --unmerged{wider}"


@contextmanager
def adapters_off(network: JointNetwork) -> Generator[None]:
    """The network without its adapters, for comparison."""
    layers = lora_layers(network)
    try:
        for layer in layers:
            layer._disable_adapters = True  # peft's `enable_adapters` would change what trains as well
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _difference(left: list[Prediction], right: list[Prediction], stream: str) -> float:
    parts = [(getattr(a, stream) - getattr(b, stream)).double().flatten() for a, b in zip(left, right, strict=True)]
    return float(torch.cat(parts).square().mean().sqrt())
