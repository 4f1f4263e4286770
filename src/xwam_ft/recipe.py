"""The training recipe: a strict YAML schema. Everything that changes a result stands here or in the embodiment.

All mistakes of a file are reported at once, each with its place and, for a misspelt key, the nearest known one.
`--set a.b=c` overrides one value, parsed as YAML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from xwam_ft.errors import UserError, did_you_mean, listed

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Natural = Annotated[int, Field(ge=0)]
Schema = TypeVar("Schema", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneSpec(Section):
    """The pretrained video model: a diffusers-format folder or hub id, or the built-in `tiny`.

    `tiny-untrained` is that one without its video prior, to compare with.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    revision: str | None = None


class DataSpec(Section):
    shards: str
    clip_stride: PositiveInt = 4  # source frames between the starts of cached clips
    encode_batch: PositiveInt = 4  # clips a VAE call


class LoraSpec(Section):
    """LoRA through peft on the frozen backbone. `alpha / rank` scales the update (`alpha / sqrt(rank)` with rslora)."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 16.0
    rslora: bool = False
    dropout: Fraction = 0.0
    targets: list[Literal["attention", "feedforward"]] = ["attention", "feedforward"]


class DepthSpec(Section):
    """The depth branch: a copy of the last `blocks` transformer blocks that regresses clean depth latents.

    `train: lora` freezes the copied linears and trains LoRA on them, their modulation and the head;
    `train: full` trains the whole copy (1.64 B parameters at 5B size). `branch: none` leaves it out.
    """

    branch: Literal["copy", "none"] = "copy"
    blocks: PositiveInt = 10
    train: Literal["lora", "full"] = "lora"


class ModelSpec(Section):
    """`train` says what learns beside heads and depth branch: adapters on the transformer, nothing, or all of it."""

    train: Literal["lora", "heads", "full"] = "lora"
    lora: LoraSpec = LoraSpec()
    depth: DepthSpec = DepthSpec()
    gradient_checkpointing: bool = False


class NoiseSpec(Section):
    """Asynchronous Noise Sampling (X-WAM, section on ANS) and its two baselines; see model/noise.py."""

    schedule: Literal["asynchronous", "decoupled", "synchronous"] = "asynchronous"
    shift: PositiveFloat = 5.0
    clean_action_probability: Fraction = 0.5
    beta_alpha: PositiveFloat = 1.5
    beta_beta: PositiveFloat = 1.0


class LossSpec(Section):
    """Weights of the four terms; X-WAM trains with 1 everywhere."""

    video: float = Field(default=1.0, ge=0)
    action: float = Field(default=1.0, ge=0)
    proprio: float = Field(default=1.0, ge=0)
    depth: float = Field(default=1.0, ge=0)
    text_dropout: Fraction = 0.1


class OptimSpec(Section):
    """AdamW with linear warm-up and cosine to 0. Adapters, new heads and the depth branch have their own rates."""

    lr_lora: PositiveFloat = 1e-4
    lr_backbone: PositiveFloat = 1e-5  # of the whole transformer, with `model.train: full`
    lr_heads: PositiveFloat = 1e-4
    lr_depth: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: PositiveFloat = 1.0
    warmup_steps: Natural = 200
    ema_decay: Fraction | None = None  # None: no EMA is kept


class TrainerSpec(Section):
    max_steps: PositiveInt
    batch_size: PositiveInt = 16  # clips a device and micro-batch
    accumulate: PositiveInt = 1
    devices: int | Literal["auto"] = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    workers: Natural = 0  # DataLoader worker processes; the run does not depend on it
    threads: Natural = 0  # torch CPU threads; 0 leaves torch's own choice


class CheckpointSpec(Section):
    every_steps: PositiveInt = 500
    keep: PositiveInt = 3


class ValidationSpec(Section):
    every_steps: Natural = 500  # 0: never during training
    clips: PositiveInt = 16  # held-out clips, spread evenly over the split
    action_steps: PositiveInt = 10
    video_steps: PositiveInt = 50


class LoggingSpec(Section):
    every_steps: PositiveInt = 10


class Recipe(Section):
    """One training run."""

    backbone: BackboneSpec
    data: DataSpec
    model: ModelSpec = ModelSpec()
    noise: NoiseSpec = NoiseSpec()
    loss: LossSpec = LossSpec()
    optim: OptimSpec = OptimSpec()
    trainer: TrainerSpec
    checkpoint: CheckpointSpec = CheckpointSpec()
    validation: ValidationSpec = ValidationSpec()
    logging: LoggingSpec = LoggingSpec()
    seed: Natural = 0

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe.

    A relative `data.shards` or `backbone.path` is relative to the working directory, as typed paths are.

    Args:
        path: YAML file.
        overrides: `section.key=value` strings (the command line's --set), applied in order.

    Raises:
        UserError: file missing, not YAML, an override without "=", or any wrong key or value (all in one message).
    """
    tree = read_yaml(path)
    for override in overrides or []:
        _apply(tree, override)
    return parse(Recipe, tree, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; everything that is not one is a `UserError`."""
    try:
        tree: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "the file does not exist", path, "check the path; the recipes that ship are in recipes/"
        ) from None
    except IsADirectoryError:
        raise UserError("is a folder, not a YAML file", path, "give the file inside it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise UserError(f"is not valid YAML{line}", path, "mend the syntax there") from None
    if not isinstance(tree, dict):
        raise UserError(f"holds a {type(tree).__name__}, not a mapping of keys", path, "write `key: value` lines")
    return {str(key): value for key, value in tree.items()}  # pyright: ignore[reportUnknownVariableType]


def parse(schema: type[Schema], tree: dict[str, Any], path: Path) -> Schema:
    """Validate `tree` against a strict pydantic schema; every mistake goes into one `UserError`."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(_describe(schema, error), path, "correct each of them") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UserError(
            f"{override!r} is not of the form a.b=c", "--set", "write for example --set trainer.max_steps=100"
        )
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"the value {text!r} is not valid YAML", f"--set {name}", "quote it") from None
    *sections, key = name.strip().split(".")
    place: dict[str, Any] = tree
    for section in sections:
        below = place.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"{section!r} is a value, not a section", f"--set {name}", "name a key of a section")
        place = below
    place[key] = value


def _describe(schema: type[BaseModel], error: ValidationError) -> str:
    parts: list[str] = []
    for item in error.errors():
        location = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _keys_at(schema, item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1]), known) or f" (known: {listed(known)})"
            parts.append(f"unknown key {location!r}{hint}")
        elif item["type"] == "missing":
            parts.append(f"{location!r} is missing")
        else:
            given = f", not {item['input']!r}" if not isinstance(item["input"], dict | list) else ""
            message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            parts.append(f"{location!r}: {message[:1].lower() + message[1:]}{given}")
    count = f"{len(parts)} mistakes: " if len(parts) > 1 else ""
    return count + "; ".join(parts)


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at `location`, looked through lists, dicts and optional types."""

    def models(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [found for inner in get_args(annotation) for found in models(inner)]

    current = [schema]
    for step in location:
        fields = [found.model_fields[step] for found in current if isinstance(step, str) and step in found.model_fields]
        if fields:
            current = [found for field in fields for found in models(field.annotation)]
    return [name for found in current for name in found.model_fields]
