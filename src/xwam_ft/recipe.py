"""The training recipe: a strict YAML schema. Everything that changes a result stands here or in the embodiment.

`--set a.b=c` overrides one value, parsed as YAML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from xwam_ft.arguments import checked
from xwam_ft.bundled import named_file
from xwam_ft.errors import listed
from xwam_ft.recipe_model import ModelSpec
from xwam_ft.strict_yaml import Fraction, Natural, Overrides, Section, apply_overrides, parse, read_yaml

BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class BackboneSpec(Section):
    """The pretrained video model: a diffusers-format folder or hub id, or the built-in `tiny`.

    `tiny-untrained` is that one without its video prior, to compare with. `quantize` holds the frozen linears of its
    blocks in 8 or 4 bits while adapters train; it wants the [quant] extra.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantize: Literal["int8", "nf4"] | None = None
    revision: str | None = None


class AugmentSpec(Section):
    """Augmented copies of every training clip in the latent cache; off unless something of it is set.

    `crop` takes the contract's crop at a random place, not the centre, of each view (X-WAM does); `zoom` has it keep
    1 - x .. 1 + x of that height and width, at most the whole picture. Brightness, contrast and saturation are
    multiplied by 1 - x .. 1 + x, hues turned by up to x of the circle, for all views alike. `codec` is the share of
    copies that are compressed once more, by H.264 or JPEG of a random quality, before they are cropped.
    """

    crop: bool = False
    zoom: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    codec: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    copies: PositiveInt = 4  # of every clip; each time a clip comes up, one of them is drawn

    @property
    def changes_colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def active(self) -> bool:
        return self.crop or self.changes_colour or self.codec > 0

    @model_validator(mode="after")
    def _zooms_crops(self) -> AugmentSpec:
        if self.zoom and not self.crop:
            raise ValueError(f"zoom {self.zoom:g} is of random crops, and crop is false: set crop: true as well")
        return self


class ShardSource(Section):
    """One shard set of several. `weight` is its share of the clips that are shown, relative to the other sets'."""

    path: str
    weight: PositiveFloat | None = None


class EpisodeWeight(Section):
    """How often clips of some episodes are shown; where several rules fit an episode, their weights multiply.

    `instruction` and `source` are patterns (`pick *`) of what index.json says of the episode. Weight 0 leaves it out.
    """

    instruction: str = "*"
    source: str = "*"
    success: bool | None = None  # None: either
    weight: float = Field(ge=0)


class DataSpec(Section):
    """What is trained on; see docs/data.md.

    `cache`: `auto` makes the latent cache where it is missing, `require` refuses to train without, `none` trains from
    pixels. `on_corrupt: skip` leaves damaged shards out, named and counted, where `stop` refuses them.
    """

    shards: str | Annotated[list[ShardSource], Field(min_length=1)]
    episode_weights: list[EpisodeWeight] = Field(default=[])
    on_corrupt: Literal["stop", "skip"] = "stop"
    cache: Literal["auto", "require", "none"] = "auto"
    cache_dir: str | None = None  # where latent caches lie; None: each in its shard set
    local_gb: PositiveFloat = 50.0  # of this machine's disk for copies of what is read from URLs (copies.py)
    clip_stride: PositiveInt = 4  # source frames between the starts of clips
    still_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0  # of clips in whose actions nothing moves
    encode_batch: PositiveInt = 4  # clips a VAE call
    augment: AugmentSpec = AugmentSpec()

    @model_validator(mode="after")
    def _all_weighted_or_none(self) -> DataSpec:
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("give every shard set a weight, or none: without, each clip is shown equally often")
        if len({source.path for source in self.sources}) < len(self.sources):
            raise ValueError("a shard set is listed twice; give it a weight instead")
        return self

    @property
    def sources(self) -> tuple[ShardSource, ...]:
        return (ShardSource(path=self.shards),) if isinstance(self.shards, str) else tuple(self.shards)

    @property
    def where(self) -> str:
        """The shard sets, for sentences."""
        return listed([source.path for source in self.sources])

    @property
    def copies(self) -> int:
        """Copies of every training clip; held-out clips have one, the centre crop."""
        return self.augment.copies if self.augment.active else 1


class ActionPrefixSpec(Section):
    """Chunks that go on from known actions, for real-time chunking; `max` 0 trains none.

    With `probability` the first 1..`max` actions of a clip, each number equally often, are given clean and not scored.
    """

    max: Natural = 0
    probability: Fraction = 0.5


class NoiseSpec(Section):
    """Asynchronous Noise Sampling (X-WAM, section on ANS) and its two baselines; see model/noise.py."""

    schedule: Literal["asynchronous", "decoupled", "synchronous"] = "asynchronous"
    shift: PositiveFloat = 5.0
    clean_action_probability: Fraction = 0.5
    beta_alpha: PositiveFloat = 1.5
    beta_beta: PositiveFloat = 1.0
    action_prefix: ActionPrefixSpec = ActionPrefixSpec()


class LossSpec(Section):
    """Weights of the four terms; X-WAM trains with 1 everywhere."""

    video: float = Field(default=1.0, ge=0)
    action: float = Field(default=1.0, ge=0)
    proprio: float = Field(default=1.0, ge=0)
    depth: float = Field(default=1.0, ge=0)
    text_dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _some_loss(self) -> LossSpec:
        if not any((self.video, self.action, self.proprio, self.depth)):
            raise ValueError("every term weighs 0, so nothing would be learned; give one a weight")
        return self


class OptimSpec(Section):
    """AdamW with linear warm-up. Adapters, new heads and the depth branch have their own rates.

    `schedule` is what comes after the warm-up: a cosine to 0, nothing, or the full rates until the last `decay_share`
    of the steps takes them to 0; until then a run can be made longer without its rates rising again.

    `fused` takes torch's one-kernel step: `auto` on a GPU only. `adamw_8bit` keeps AdamW's moments in 8 bits ([quant]).
    """

    lr_lora: PositiveFloat = 1e-4
    lr_backbone: PositiveFloat = 1e-5  # of the whole transformer, with `model.train: full`
    lr_heads: PositiveFloat = 1e-4
    lr_depth: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    clip_norm: PositiveFloat = 1.0
    schedule: Literal["cosine", "constant", "warmup-stable-decay"] = "cosine"
    warmup_steps: Natural = 200
    decay_share: Fraction = 0.2  # of the steps, under warmup-stable-decay
    ema_decay: Fraction | None = None  # None: no EMA is kept
    fused: bool | Literal["auto"] = "auto"
    adamw_8bit: bool = False

    @model_validator(mode="after")
    def _one_kind_of_adamw(self) -> OptimSpec:
        if self.adamw_8bit and self.fused is True:
            raise ValueError("adamw_8bit has no fused form; set fused: auto")
        return self


class TrainerSpec(Section):
    """`devices` are those of one machine, `nodes` the machines. `fsdp2` cuts weights, gradients and AdamW's state over
    all of them, where `ddp` holds the whole on each.

    `callbacks` and `loggers` name CODE that is imported and run: Lightning callbacks and loggers by `my.module:Name`,
    each made by a call without arguments.
    """

    max_steps: PositiveInt
    batch_size: PositiveInt = 16  # clips a device and micro-batch
    accumulate: PositiveInt = 1
    devices: PositiveInt | Literal["auto"] = 1
    nodes: PositiveInt = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "auto"] = "32-true"
    tf32: bool | Literal["auto"] = "auto"  # products that stay float32 on a GPU; auto: under bf16-mixed
    workers: Natural = 0  # DataLoader worker processes; the run does not depend on it
    threads: Natural = 0  # torch CPU threads; 0 leaves torch's own choice
    callbacks: list[str] = Field(default=[])
    loggers: list[str] = Field(default=[])


class CheckpointSpec(Section):
    every_steps: PositiveInt = 500
    keep: PositiveInt = 3  # the newest
    keep_best: Natural = 1  # and those of the lowest held-out loss, of steps that were validated


class ValidationSpec(Section):
    """Losses and action errors every `every_steps`; imagined video and each camera black every `imagine_every_steps`.

    Both also after the last step; 0 leaves it at that. Where looks have taken more than `budget` of the time that
    training took, the next ones are left out until it has caught up; never the last.
    """

    every_steps: Natural = 500
    imagine_every_steps: Natural = 0
    clips: PositiveInt = 16  # held-out clips, spread evenly over the split
    imagine_clips: Natural = 4  # of one held-out episode; 0: nothing is imagined, no camera is black
    action_steps: PositiveInt = 10
    video_steps: PositiveInt = 50
    budget: Fraction | None = 0.1  # None: no bound


class WandbSpec(Section):
    """Where a run is shown on W&B; what is not said is taken from WANDB_PROJECT, WANDB_ENTITY and WANDB_NAME."""

    project: str | None = None  # None, and no variable: xwam-ft
    entity: str | None = None  # None, and no variable: the login's own
    name: str | None = None  # None, and no variable: the run folder's


class LoggingSpec(Section):
    """Where metrics go, beside `metrics.jsonl`; `wandb` wants the [wandb] extra, and a login or WANDB_MODE=offline."""

    every_steps: PositiveInt = 10
    to: list[Literal["tensorboard", "csv", "wandb"]] = Field(default=["tensorboard"])
    wandb: WandbSpec = WandbSpec()


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
    init_from: str | None = None  # RUN, RUN@STEP or BUNDLE: what it learned is started from
    init_quantiles: Literal["auto", "keep", "refit"] = "auto"  # whose ranges: auto keeps the old ones where they fit
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _quantized_is_frozen(self) -> Recipe:
        if self.backbone.quantize is not None:
            if self.model.train == "full":
                raise ValueError(
                    "backbone.quantize holds a frozen base, and model.train: full trains it; set one of them"
                )
            if self.model.branch == "copy":
                raise ValueError(
                    "backbone.quantize cannot be copied for the depth branch; set model.depth.branch: adapter"
                )
        return self

    @model_validator(mode="after")
    def _sharded_is_plain(self) -> Recipe:
        if self.trainer.strategy == "fsdp2" and (self.backbone.quantize is not None or self.optim.adamw_8bit):
            raise ValueError(
                "trainer.strategy: fsdp2 shards plain tensors; remove backbone.quantize and optim.adamw_8bit"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


@checked()
def load_recipe(path: str | Path, overrides: Overrides | None = None) -> Recipe:
    """Read, override and check a recipe.

    A relative `data.shards` or `backbone.path` is relative to the working directory, as typed paths are; one that the
    file holds and that is not there is looked for beside the file.

    Args:
        path: YAML file, or the name of a recipe that ships (`tiny_cpu`, `metaworld/lora_prior`).
        overrides: applied in order; texts are the command line's --set.

    Raises:
        UserError: file missing, not YAML, an override without "=", or any wrong key or value (all in one message).
    """
    path = named_file(Path(path), "recipes")
    tree = read_yaml(path)
    _beside(tree, path.parent)
    apply_overrides(tree, overrides or ())
    return parse(Recipe, tree, path, overrides or ())


def overridden(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with other values, checked as a file's are."""
    tree = recipe.model_dump(mode="json")
    apply_overrides(tree, overrides)
    return parse(Recipe, tree, Path("recipe"), overrides)


def _beside(tree: dict[str, Any], folder: Path) -> None:
    """Paths of a recipe's tree that are not where one stands, and are beside the recipe, made to lead there."""

    def found(value: object) -> object:
        if isinstance(value, str) and value and not Path(value).exists() and (folder / value).exists():
            return str(folder / value)
        return value

    data, backbone = tree.get("data"), tree.get("backbone")
    if isinstance(backbone, dict) and "path" in backbone:
        backbone["path"] = found(backbone["path"])
    if isinstance(origin := tree.get("init_from"), str) and not Path(origin).exists():
        at = origin.rpartition("@")[0]
        there = any((folder / name).exists() for name in (origin, at) if name)
        tree["init_from"] = str(folder / origin) if there and not (at and Path(at).exists()) else origin
    if isinstance(data, dict) and "shards" in data:
        shards: object = data["shards"]
        for source in shards if isinstance(shards, list) else []:
            if isinstance(source, dict) and "path" in source:
                source["path"] = found(source["path"])
        data["shards"] = found(shards)
