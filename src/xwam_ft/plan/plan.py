"""`xwam-ft plan`: what a run will hold, fill and take, before any weight is loaded.

Shapes come from the shard set's contract and the backbone's configuration files, on the meta device; a recipe whose
shapes do not go together is refused here. Memory is counted, apart from what CUDA itself takes; time is measured
(`--probe`) or said to be unknown.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.encode.cache import EMPTY_PROMPT, cache_place
from xwam_ft.encode.encode import wants_depth
from xwam_ft.errors import UserError
from xwam_ft.learn.apart import said_of_data
from xwam_ft.machine import cpu_has_bfloat16, free_memory, gigabytes
from xwam_ft.model.precision import chosen_precision, runs_on_gpu
from xwam_ft.model.sharding import Gathered, gathered_bytes, share
from xwam_ft.model.skeleton import Skeleton, read_skeleton
from xwam_ft.model.summary import SummaryRow, memory_need, summary_table
from xwam_ft.plan.acting import Acting, acting
from xwam_ft.plan.enough import too_few_clips
from xwam_ft.plan.host_memory import HostMemory, host_memory, too_little
from xwam_ft.plan.memory import CUDA_BYTES, Activations, count_activations, random_batch, savings
from xwam_ft.remote import url_of

if TYPE_CHECKING:
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.plan.probe import Probe
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet

SMALL_BATCH = 32
"""Clips an optimizer step below which losses are flat: noise levels differ too much from step to step."""

MANY_EPOCHS = 300
CHECKPOINTS, BATCH, ACTIVATIONS = "checkpoints", "latents and text of a micro-batch", "activations"
Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class PlanPart:
    """Bytes of one thing, in memory or on disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What is known of a run beforehand. Memory is of one device.

    Args:
        groups: parameters by group of modules.
        memory: parts of the peak.
        activations: of a clip, with and without gradient checkpointing.
        memory_available: free on this machine's device; None where the recipe's device is not here.
        host: what a machine of the run holds in its own memory; host_available: free here, None as before.
        disk: what will be written; `disk_free` where the shards lie, unless at a URL, and where the run will lie.
        batch_size, batch: clips a micro-batch, and an optimizer step over all devices.
        train_clips, held_out_clips: on the recipe's stride.
        latents, text: [C, Tl, V, h, w] and [S, Dt] of a clip.
        probe: measured seconds and memory; None where nothing was measured.
        largest_batch: what `--fit` found; None where it was not asked for.
        acting: of an action call without the future, where `model.future` is optional.
        warnings: sentences.
    """

    backbone: str
    groups: tuple[SummaryRow, ...]
    memory: tuple[PlanPart, ...]
    activations: Activations
    memory_available: int | None
    host: HostMemory
    host_available: int | None
    disk: tuple[PlanPart, ...]
    disk_free: tuple[PlanPart, ...]
    steps: int
    batch_size: int
    batch: int
    devices: int
    train_clips: int
    held_out_clips: int
    held_out_episodes: int
    latents: Shape
    text: tuple[int, int]
    warnings: tuple[str, ...]
    probe: Probe | None = None
    largest_batch: int | None = None
    acting: Acting | None = None

    @property
    def peak(self) -> int:
        return sum(part.bytes for part in self.memory)

    @property
    def epochs(self) -> float:
        return self.steps * self.batch / self.train_clips

    @property
    def seconds(self) -> float | None:
        """Training and encoding, validation and checkpoints apart; None without a probe."""
        if self.probe is None:
            return None
        clips = self.train_clips + self.held_out_clips
        return self.steps * self.probe.step_seconds + clips * self.probe.encode_seconds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak, "epochs": self.epochs, "seconds": self.seconds}


def make_plan(recipe: Recipe, shard_set: ShardSet, run: Path | None = None) -> Plan:
    """Plan a run of `recipe` on a shard set; loads no weight.

    Args:
        run: where the run will lie, for the space that is free there; default where the shards do.

    Raises:
        UserError: pictures, clips or a depth branch that the backbone cannot hold; no clips to train on.
    """
    contract, spec = shard_set.contract, recipe.trainer
    skeleton = read_skeleton(recipe.backbone.path, dtype=recipe.backbone.dtype, revision=recipe.backbone.revision)
    image, timing = contract.image, contract.timing
    latents = skeleton.backbone.latent_shape(len(contract.cameras), timing.clip_frames, image.height, image.width)
    text = skeleton.backbone.text_len, int(skeleton.backbone.transformer.config.text_dim)
    depth = wants_depth(recipe, contract)
    packed = skeleton.packed_away(recipe.backbone.quantize)  # before adapters are laid over the blocks
    network = shape_network(skeleton, recipe, shard_set)
    groups = tuple(_packed(row, packed) for row in summary_table(network))
    batch = random_batch(contract, latents, text, 1, "meta", depth=depth)
    on_gpu = runs_on_gpu(spec)
    mixed = chosen_precision(spec)[0] == "bf16-mixed"
    activations = count_activations(network, recipe, batch, scores=not on_gpu, mixed=mixed)
    train, held_out = (shard_set.clips(split, recipe.data.clip_stride) for split in ("train", "held_out"))
    if not train:
        raise UserError("holds no clips to train on", shard_set.folder, "prepare more or longer recordings")
    cached = len(train) * recipe.data.copies + len(held_out)
    devices = _devices(recipe)
    vae = sum(parameter.numel() for parameter in skeleton.backbone.vae.parameters()) * 4
    vae = vae if held_out or recipe.data.cache == "none" else 0
    texts = {text for episode in shard_set.index.episodes for text in (*episode.instructions, episode.instruction)}
    cut = devices if spec.strategy == "fsdp2" else 1
    held = tuple(summary_table(network, lambda parameter: share(parameter, cut))) if cut > 1 else groups
    gathered = gathered_bytes(network, mixed=mixed) if cut > 1 else None
    parts = _memory(recipe, held, activations, vae, _bytes_of(batch), gathered, on_gpu=on_gpu)
    beside = Path() if url_of(shard_set.folder) else shard_set.folder
    places = {"the shards": cache_place(recipe.data, shard_set.folder), "checkpoints": run or beside}
    known = {name: place for name, place in places.items() if not url_of(place)}  # a store says nothing of its room
    free = tuple(PlanPart(name, shutil.disk_usage(_existing(place)).free) for name, place in known.items())
    here = torch.cuda.is_available() or not on_gpu
    need = memory_need(list(groups), adamw_8bit=recipe.optim.adamw_8bit, average=recipe.optim.ema_decay is not None)
    plan = Plan(
        backbone=recipe.backbone.path,
        groups=groups,
        memory=parts,
        activations=activations,
        memory_available=free_memory(gpu=on_gpu) if here else None,
        host=host_memory(
            recipe,
            network,
            need,
            sum(part.bytes for part in parts),
            vae,
            max(devices // spec.nodes, 1),
            on_gpu=on_gpu,
            fits=skeleton.depth_blocks == recipe.model.depth.blocks and recipe.model.depth.branch == "adapter",
        ),
        host_available=free_memory(gpu=False) if here else None,
        disk=_disk(recipe, groups, latents, text, cached, len(texts | {*contract.prompts, EMPTY_PROMPT}), depth=depth),
        disk_free=free,
        steps=spec.max_steps,
        batch_size=spec.batch_size,
        batch=spec.batch_size * spec.accumulate * devices,
        devices=devices,
        train_clips=len(train),
        held_out_clips=len(held_out),
        held_out_episodes=len({ref.entry.episode for ref in held_out}),
        latents=latents,
        text=text,
        warnings=(),
        acting=acting(network.eval(), batch) if recipe.model.future == "optional" else None,
    )
    return replace(plan, warnings=tuple(warnings(plan, recipe, shard_set, run)))


def shape_network(skeleton: Skeleton, recipe: Recipe, shard_set: ShardSet) -> JointNetwork:
    """The network that training would build, on the meta device.

    Raises:
        UserError: a depth branch of more blocks than the transformer has.
    """
    from xwam_ft.model.trainable import trainable_network

    with_depth = shard_set.contract.depth.kind != "none"
    if with_depth and skeleton.depth_blocks == recipe.model.depth.blocks and recipe.model.depth.branch == "auto":
        kept = recipe.model.depth.model_copy(update={"branch": "copy"})
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"depth": kept})})
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return trainable_network(skeleton.backbone, recipe, shard_set.contract)


def warnings(plan: Plan, recipe: Recipe, shard_set: ShardSet, run: Path | None = None) -> list[str]:
    """What is likely to disappoint, a sentence each with the value to change."""
    spec, timing = recipe.trainer, shard_set.contract.timing
    said: list[str] = []
    if plan.batch < SMALL_BATCH:
        more = math.ceil(SMALL_BATCH / (spec.batch_size * plan.devices))
        said.append(
            f"{plan.batch} clips an optimizer step: below {SMALL_BATCH} losses flatten early, since noise levels "
            f"differ from step to step; set trainer.accumulate={more}"
        )
    rounded = any("bfloat16" in row.dtypes for row in plan.groups)  # what trains is float32
    if rounded and not runs_on_gpu(spec) and not cpu_has_bfloat16():
        said.append(
            "what does not train computes in bfloat16, which this CPU has no instructions for: a step took ten times "
            "as long; set backbone.dtype=float32"
        )
    if not recipe.loss.action:
        said.append("loss.action=0: actions are not learned: a bundle acts as what the run starts from, or by chance")
    if recipe.model.depth.branch == "auto" and shard_set.contract.depth.kind == "none":
        said.append(
            "the shards hold no depth, so no depth branch is trained: actions and video alone; prepare with --depth "
            "for one"
        )
    lengths = [entry.frames for entry in shard_set.index.episodes]
    short = sum(length < timing.span for length in lengths)
    if 2 * short > len(lengths):
        said.append(
            f"a clip spans {timing.span} frames and most episodes are shorter (median {median(lengths):.0f}): "
            "their last frame is held; prepare with a smaller clip_frames or frame_skip"
        )
    if plan.held_out_episodes == 0:
        said.append("nothing is held out, so nothing is validated; prepare with held_out above 0")
    elif plan.held_out_episodes < 3:
        said.append(
            f"{plan.held_out_episodes} held-out episode{'s' if plan.held_out_episodes > 1 else ''}: held-out "
            "numbers say little about others; hold out at least 3"
        )
    if 0 < plan.held_out_clips < recipe.validation.clips:
        clips = f"{plan.held_out_clips} held-out clip{'' if plan.held_out_clips == 1 else 's'}"
        said.append(f"{clips}, fewer than validation.clips={recipe.validation.clips}")
    for free in plan.disk_free:
        place = "checkpoint.keep" if free.name == "checkpoints" else "data.clip_stride"
        size = sum(part.bytes for part in plan.disk if (part.name == CHECKPOINTS) == (place == "checkpoint.keep"))
        if size > free.bytes:
            change = "raise" if place == "data.clip_stride" else "lower"
            said.append(
                f"{gigabytes(size)} will be written where {free.name} lie, and "
                f"{gigabytes(free.bytes)} are free; {change} {place}, or free some space"
            )
    if plan.memory_available is not None and plan.peak > plan.memory_available:
        said.append(
            f"{gigabytes(plan.peak)} of memory are needed and {gigabytes(plan.memory_available)} are free: "
            f"{savings(recipe)}"
        )
    if plan.host_available is not None:
        sentence = too_little(plan.host, plan.host_available, recipe)
        said += [] if sentence is None else [sentence]
    if plan.epochs < 1:
        said.append(f"not every training clip will be seen ({plan.epochs:.2f} epochs); raise trainer.max_steps")
    elif plan.epochs > MANY_EPOCHS:
        said.append(
            f"every training clip is seen {plan.epochs:.0f} times: watch the held-out losses, and record more or lower "
            "trainer.max_steps once they rise"
        )
    if (sentence := too_few_clips(plan.steps * plan.batch, shard_set)) is not None:
        said.append(sentence)
    said += said_of_data(recipe, shard_set, run)
    if recipe.optim.warmup_steps >= spec.max_steps:
        said.append(f"optim.warmup_steps={recipe.optim.warmup_steps} lasts the whole run of {spec.max_steps} steps")
    if recipe.checkpoint.every_steps > spec.max_steps:
        said.append("the only checkpoint is the last step's; lower checkpoint.every_steps")
    return said


def fitting_batch(plan: Plan, recipe: Recipe, available: int) -> int:
    """The largest micro-batch whose estimate stays below 90 % of `available` bytes; 0 where not even one clip fits."""
    from xwam_ft.plan.probe import MOST, largest

    growing = sum(part.bytes for part in plan.memory if part.name in (BATCH, ACTIVATIONS))
    growing -= plan.activations.once(recipe)
    rest, a_clip = plan.peak - growing, growing / plan.batch_size
    return largest(lambda count: rest + count * a_clip <= 0.9 * available, MOST)


def _memory(
    recipe: Recipe,
    groups: tuple[SummaryRow, ...],
    activations: Activations,
    vae: int,
    clip: int,
    gathered: Gathered | None,
    *,
    on_gpu: bool,
) -> tuple[PlanPart, ...]:
    """Parts of the peak, of one device; the text encoder is never in it, since the cache holds its embeddings.

    Args:
        groups: what the device holds of each; under FSDP2 its share.
        gathered: under FSDP2, what is whole for a while.
    """
    optim = recipe.optim
    need = memory_need(list(groups), adamw_8bit=optim.adamw_8bit, average=optim.ema_decay is not None)
    frozen = sum(row.bytes for row in groups if not row.trainable)
    communication: list[PlanPart] = []
    if gathered is not None:
        step = gathered.weights + gathered.gradients + clip * recipe.trainer.batch_size + activations.of(recipe)
        more = max(gathered.network - step, 0) if vae else 0
        communication = [
            PlanPart("gathered: two blocks, and what lies outside", gathered.weights),
            PlanPart("whole gradients of a block, and of what lies outside", gathered.gradients),
            PlanPart("the whole network in validation, beyond a step's need", more),
        ]
    elif _devices(recipe) > 1:
        communication = [
            PlanPart("gradients to be summed over devices", need.gradients)
        ]  # DDP's buckets, a copy of all
    parts = [
        PlanPart("frozen weights", frozen),
        PlanPart("weights that train, and their groups", need.weights - frozen),
        PlanPart("gradients", need.gradients),
        PlanPart("AdamW", need.optimizer),
        PlanPart("averaged weights", need.average),
        *communication,
        PlanPart(BATCH, clip * recipe.trainer.batch_size),
        PlanPart(ACTIVATIONS, activations.of(recipe)),
        PlanPart("VAE" if recipe.data.cache == "none" else "VAE, from the first validation on", vae),
        PlanPart("CUDA itself, assumed", CUDA_BYTES if on_gpu else 0),
    ]
    return tuple(part for part in parts if part.bytes)


def _disk(
    recipe: Recipe,
    groups: tuple[SummaryRow, ...],
    latents: Shape,
    text: tuple[int, int],
    clips: int,
    prompts: int,
    *,
    depth: bool,
) -> tuple[PlanPart, ...]:
    size = 2 if recipe.backbone.dtype == "bfloat16" else 4
    of_clip = math.prod(latents) * size * (2 if depth else 1) + (math.prod(latents[1:]) if depth else 0)
    need = memory_need(list(groups), adamw_8bit=recipe.optim.adamw_8bit, average=recipe.optim.ema_decay is not None)
    trained = 4 * sum(row.trainable for row in groups)
    kept = recipe.checkpoint.keep + (recipe.checkpoint.keep_best if recipe.validation.every_steps else 0)
    written = min(kept + 1, -(-recipe.trainer.max_steps // recipe.checkpoint.every_steps))
    cache = (PlanPart("latent cache", clips * of_clip), PlanPart("text embeddings", prompts * math.prod(text) * size))
    return (
        *(cache if recipe.data.cache != "none" else ()),
        PlanPart(CHECKPOINTS, written * (trained + need.optimizer + need.average)),
    )


def _packed(row: SummaryRow, saved: int) -> SummaryRow:
    return replace(row, bytes=row.bytes - saved) if row.group == "transformer" else row


def _bytes_of(batch: Any) -> int:
    tensors = (value for value in vars(batch).values() if isinstance(value, torch.Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _devices(recipe: Recipe) -> int:
    devices = recipe.trainer.devices
    if isinstance(devices, int):
        return max(devices, 1) * recipe.trainer.nodes
    here = max(torch.cuda.device_count(), 1) if recipe.trainer.accelerator != "cpu" else 1
    return here * recipe.trainer.nodes


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
