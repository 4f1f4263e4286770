"""The `model` section of a recipe: what trains, by which adapters, and the form of the depth branch."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from xwam_ft.errors import did_you_mean, listed
from xwam_ft.strict_yaml import Section

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "attention": tuple(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in _PROJECTIONS),
    "feedforward": ("ffn.net.0.proj", "ffn.net.2"),
}
"""Presets of `lora.targets`, and between them every linear layer of a Wan block (attn2 is the text's)."""


class LoraSpec(Section):
    """LoRA through peft on the frozen backbone. `alpha / rank` scales the update (`alpha / sqrt(rank)` with rslora).

    `dora` learns the length of every output's weights beside their direction (arXiv 2402.09353). `targets` are presets
    (`attention`, `feedforward`), layers of a block (`attn1.to_q`), or patterns of them (`attn1.*`, `*.to_v`).
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    rslora: bool = False
    dora: bool = False
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: list[str] = Field(default=["attention", "feedforward"], min_length=1)

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: list[str]) -> list[str]:
        layers = [name for names in LORA_TARGETS.values() for name in names]
        for target in targets:
            if not _layers_of(target):
                hint = did_you_mean(target, [*LORA_TARGETS, *layers])
                raise ValueError(f"{target!r} is no layer of a block{hint}; known: {listed([*LORA_TARGETS, *layers])}")
        return targets

    @property
    def layers(self) -> list[str]:
        """The linear layers of a block that `targets` name, each once."""
        return list(dict.fromkeys(name for target in self.targets for name in _layers_of(target)))


def _layers_of(target: str) -> list[str]:
    if target in LORA_TARGETS:
        return list(LORA_TARGETS[target])
    return [name for names in LORA_TARGETS.values() for name in names if fnmatchcase(name, target)]


class DepthSpec(Section):
    """The depth branch, which regresses clean depth latents: the last `blocks` transformer blocks once more.

    `branch: adapter` runs the frozen blocks themselves a second time under LoRA weights of the branch's own; `copy`
    holds copies of them; `none` leaves it out. `auto` is `none` on shards without depth, `copy` where the backbone
    brings a trained depth branch, where the backbone itself trains, or with `train: full`; otherwise `adapter`.
    `train: lora` trains LoRA, modulation tables and head; `train: full` every weight of a copy (1.64 B parameters at
    5B size).
    """

    branch: Literal["auto", "adapter", "copy", "none"] = "auto"
    blocks: PositiveInt = 10
    train: Literal["lora", "full"] = "lora"

    @model_validator(mode="after")
    def _whole_only_of_a_copy(self) -> DepthSpec:
        if self.branch == "adapter" and self.train == "full":
            raise ValueError(
                "branch 'adapter' holds no blocks that train: full could train; set branch: copy, or train: lora"
            )
        return self


class ModelSpec(Section):
    """`train` says what learns beside heads and depth branch: adapters on the transformer, nothing, or all of it.

    `future: optional` hides the frames after the first from actions, states and the first frame in a share of the
    samples, so that actions can be asked for without imagining; `joint` never does (X-WAM).
    """

    train: Literal["lora", "heads", "full"] = "lora"
    lora: LoraSpec = LoraSpec()
    depth: DepthSpec = DepthSpec()
    future: Literal["joint", "optional"] = "joint"
    future_hidden_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5  # of the samples, where it is optional
    gradient_checkpointing: bool = False
    compile: bool = False  # blocks by torch.compile while training; the first step takes minutes

    @model_validator(mode="after")
    def _shared_blocks_are_frozen(self) -> ModelSpec:
        if self.train == "full" and self.depth.branch == "adapter":
            raise ValueError(
                "with train: full the blocks that a depth branch 'adapter' shares would move with the video; "
                "set depth.branch: copy"
            )
        return self

    @property
    def hidden_share(self) -> float | None:
        """The share of samples whose future is hidden; None where the future is joint."""
        return self.future_hidden_share if self.future == "optional" else None

    @property
    def branch(self) -> Literal["adapter", "copy", "none"]:
        """`depth.branch` with `auto` decided, for shards with depth and a backbone without a branch of its own."""
        return self.branch_on(depth=True)

    def branch_on(self, *, depth: bool, brought: bool = False) -> Literal["adapter", "copy", "none"]:
        """`depth.branch` with `auto` decided.

        Args:
            depth: whether the shards hold depth.
            brought: whether the backbone brings a trained depth branch.
        """
        if self.depth.branch != "auto":
            return self.depth.branch
        if not depth:
            return "none"
        return "copy" if brought or self.train == "full" or self.depth.train == "full" else "adapter"
