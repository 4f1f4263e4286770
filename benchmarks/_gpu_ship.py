"""Parts of a GPU day about what leaves it: export, the same bundle on two devices, two processes, the whole job."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

import xwam_ft
from _gpu_work import Cell, Day, Found, NotHere, Say, figure
from _measure import synchronize
from _sizes import PROMPT
from xwam_ft.export.proof import adapters_off
from xwam_ft.export.weights import RunWeights
from xwam_ft.files import read_json, write_json_atomic, write_text_atomic
from xwam_ft.learn.optimizer import trained_parameters
from xwam_ft.model.adapters import trainable_state
from xwam_ft.model.sharding import shard, whole_number
from xwam_ft.model.tensor_files.source import Stored
from xwam_ft.model.tensor_files.stream import Piece
from xwam_ft.observation import encode
from xwam_ft.policy import selfcheck
from xwam_ft.policy.bundle import MANIFEST, SELFCHECK, bundle_config, load_policy, read_parts, seal, write_parts
from xwam_ft.policy.policy import NO_TEXT, Settings
from xwam_ft.policy.request import example_observation

FORMS = {"merged": True, "unmerged": False}
SEED = 0
STEPS = 2
"""Action steps of these bundles: a CPU must answer one, too."""
ONE_WAY = 0.02
"""How far the gradient's norm of two processes may be from one's: sums in another order, and blocks in bfloat16."""
PROCESSES = 2


def export(day: Day, say: Say) -> Found:
    """Bundles with adapters merged and beside the base: seconds to write, to load, to answer; are they one policy?"""
    found = Found()
    say("a network with adapters of random numbers")
    trained = Trained.of(day)
    rows: list[list[Cell]] = []
    actions: dict[str, Any] = {}
    for name, merged in FORMS.items():
        say(f"{name}: writing")
        folder = _place(day, name)
        began = time.perf_counter()
        trained.write(folder, merged=merged)
        written = time.perf_counter() - began
        size = (folder / "model.safetensors").stat().st_size / 1e9
        say(f"{name}: loading and answering")
        began = time.perf_counter()
        policy = load_policy(folder, day.device, selfcheck=False)
        synchronize(day.device)
        loaded = time.perf_counter() - began
        request = encode(policy.contract, example_observation(policy.contract, PROMPT))
        actions[name] = policy.infer_batch([request], [SEED])[0]
        with adapters_off(policy.network):
            actions["base"] = policy.infer_batch([request], [SEED])[0]
        answer = 1e3 * day.seconds(lambda policy=policy, request=request: policy.infer_batch([request], [SEED]))
        rows.append([name, size, written, loaded, answer])
        del policy
        day.free()
    columns = ("bundle", "GB", "writing, s", "checking and loading, s", f"a request of {STEPS} steps, ms")
    found.table("export", columns, rows, "Written tensor by tensor, hashed, sealed; the proofs of `export` not run.")
    apart, effect = (float(abs(actions[one] - actions["unmerged"]).max()) for one in ("merged", "base"))
    allowed = selfcheck.TOLERANCE[str(day.dtype).removeprefix("torch."), day.device]
    text = f"merged and unmerged answer apart by {figure(apart)} of the action's range, and adapters move it by "
    found.say(text + figure(effect), apart <= min(allowed, effect / 4))
    return found


def devices(day: Day, say: Say) -> Found:
    """A request recorded on the CPU, repeated on the GPU by the same bundle."""
    found, folder = Found(), _place(day, "merged")
    if not (folder / MANIFEST).is_file():
        say("a bundle")
        Trained.of(day).write(folder, merged=True)
    config = read_json(folder / "config.json")
    say("asking the bundle on the CPU")
    began = time.perf_counter()
    on_cpu = read_parts(folder, config, "cpu")
    request = encode(on_cpu.contract, example_observation(on_cpu.contract, PROMPT))
    selfcheck.save(selfcheck.record(on_cpu, request, SEED), folder / SELFCHECK)
    (folder / MANIFEST).unlink()
    seal(folder, on_cpu.contract, config["backbone"])
    spent = time.perf_counter() - began
    del on_cpu
    rows: list[list[Cell]] = []
    for device in ("cpu", "cuda"):
        say(f"again on {device}")
        allowed = selfcheck.TOLERANCE[config["dtype"], device]
        if device == "cuda" and day.toy:
            rows.append([device, "not measured: --toy runs on the CPU", allowed])
            continue
        policy = load_policy(folder, device, selfcheck=False)
        difference = selfcheck.load(folder / SELFCHECK, policy).difference(policy)
        rows.append([device, difference, allowed])
        found.say(f"a bundle's self-check from the CPU on {device}: {figure(difference)}", difference <= allowed)
    note = f"Largest difference of a normalised action; recorded in {spent:.0f} s."
    found.table("self-check across devices", ("repeated on", "differs by", "allowed"), rows, note)
    return found


def ranks(day: Day, say: Say) -> Found:
    """A training step on two processes (FSDP2; NCCL on two GPUs, gloo on a CPU) against the same clips on one."""
    if not day.toy and torch.cuda.device_count() < PROCESSES:
        raise NotHere(f"{torch.cuda.device_count()} GPU is here, and two are needed")
    found = Found()
    place = day.out / "work" / "ranks"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    say("two processes")
    # Nothing has been computed here yet, so that a CPU's processes may be forks, which need no new imports.
    start_processes(_rank, (day, place), nprocs=PROCESSES, start_method="fork" if day.toy else "spawn")
    told = read_json(place / "told.json")
    one, two = told["one"], told["two"]
    rows: list[list[Cell]] = [
        ["gradient's norm, one process", one["norm"]],
        ["gradient's norm, two processes", two["norm"]],
        ["step of two clips on one process, ms", 1e3 * one["seconds"]],
        ["step of a clip on each of two, ms", 1e3 * two["seconds"]],
        ["clips/s, two processes over one", one["seconds"] / two["seconds"]],
    ]
    found.table(f"two processes, {told['backend']}, FSDP2", ("what", "value"), rows)
    apart = abs(two["norm"] / one["norm"] - 1)
    found.say(
        f"two processes ({told['backend']}): the gradient's norm within {figure(apart)} of one's", apart <= ONE_WAY
    )
    return found


def job(day: Day, say: Say) -> Found:
    """The verbs themselves, one after another: encode, train, export twice, load, infer."""
    if day.weights is None:
        raise NotHere("encode and export refuse random weights, rightly; give --weights")
    found, work = Found(), day.out / "work"
    rows: list[list[Cell]] = []

    def timed(name: str, call: Callable[[], Any]) -> Any:
        say(name)
        began = time.perf_counter()
        result = call()
        rows.append([name, time.perf_counter() - began])
        return result

    for old in ("run", "job", "job-unmerged"):
        shutil.rmtree(work / old, ignore_errors=True)
    steps = 2 if day.toy else 10
    recipe = day.recipe(
        f"trainer.max_steps={steps}", "optim.warmup_steps=0",
        # A few steps at usual rates teach adapters less than a bfloat16 base resolves: export would rightly refuse.
        "optim.lr_lora=1e-2", f"data.clip_stride={day.shards.contract.timing.span}", "data.encode_batch=1",
        "validation.every_steps=0", "validation.clips=1", "validation.imagine_clips=0", "logging.to=[]",
        *(["validation.action_steps=2", "validation.video_steps=2"] if day.toy else []),
    )  # fmt: skip
    timed("encode", lambda: xwam_ft.encode(day.shards.folder, recipe))
    run = timed(f"train, {steps} steps, and a last look", lambda: xwam_ft.train(recipe, run=work / "run"))
    bundle = timed("export, merged, with its proofs", lambda: xwam_ft.export(run, work / "job"))
    timed("export, unmerged, with its proofs", lambda: xwam_ft.export(run, work / "job-unmerged", merged=False))
    policy = timed("load: hashes, and the recorded request", lambda: xwam_ft.Policy.load(bundle.path, day.device))
    answer = timed("infer", lambda: policy.infer(example_observation(policy.contract, PROMPT), seed=SEED))
    finite = all(bool(torch.isfinite(torch.as_tensor(values)).all()) for values in answer.commands.slots.values())
    found.table("the whole job", ("verb", "s"), rows, "A few made-up episodes: what it learns means nothing.")
    found.say(f"encode, train, export, load and infer ran, {sum(float(row[1]) for row in rows):.0f} s in all", finite)
    return found


def _rank(rank: int, day: Day, place: Path) -> None:
    """One of the processes; the first one takes the step alone before, and writes down what both came to."""
    backend = "gloo" if day.toy else "nccl"
    device = torch.device("cpu") if day.toy else torch.device("cuda", rank)
    if not day.toy:
        torch.cuda.set_device(device)
    store = f"file://{place}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=PROCESSES)
    try:
        module = day.module(day.recipe("optim.warmup_steps=0"))
        clips = [replace(day.clips(1), positions=(number,), keys=(str(number),)) for number in range(PROCESSES)]

        def of(batches: list[Any]) -> torch.Tensor:
            for parameter in trained_parameters(module.network).values():
                parameter.grad = None
            for batch in batches:
                with torch.autocast(device.type, torch.bfloat16, enabled=day.precision != "32-true"):
                    loss = module.training_step(batch, 0) / len(batches)
                loss.backward()
            held = list(trained_parameters(module.network).values())
            return whole_number(torch.nn.utils.clip_grad_norm_(held, float("inf")))

        def timed(batches: list[Any]) -> dict[str, float]:
            norm = float(of(batches))
            return {"norm": norm, "seconds": day.seconds(lambda: of(batches))}

        one = timed(clips)
        dist.barrier()
        shard(module.network, device, PROCESSES, mixed=day.precision != "32-true")
        two = timed([clips[rank]])
        if rank == 0:
            write_json_atomic(place / "told.json", {"backend": backend, "one": one, "two": two})
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Trained:
    """A network with adapters of random numbers, on the CPU: what a run would leave, without a run."""

    day: Day
    weights: RunWeights
    vae: Any

    @classmethod
    def of(cls, day: Day) -> Trained:
        recipe = day.recipe()
        backbone = day.backbone("transformer", "vae", device="cpu")
        base = {name: _stored(tensor) for name, tensor in backbone.transformer.state_dict().items()}
        network = day.module(recipe, backbone, device="cpu").network
        draw = torch.Generator().manual_seed(2)
        trained = {
            name: _stored(0.02 * torch.randn(tensor.shape, generator=draw) if ".lora_B." in name else tensor)
            for name, tensor in trainable_state(network).items()
        }
        values = {key: value for key, value in dict(backbone.transformer.config).items() if not key.startswith("_")}
        keep = tuple(getattr(type(backbone.transformer), "_keep_in_fp32_modules", None) or ())
        weights = RunWeights(recipe, network.config, values, base, {}, trained, day.out, False, keep)
        return cls(day, weights, backbone.vae)

    def write(self, folder: Path, *, merged: bool) -> None:
        """A bundle of it, sealed, without a recorded request."""
        day, recipe = self.day, self.weights.recipe
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pieces = [
            Piece(f"network.{piece.name}", piece.shape, piece.dtype, piece.make)
            for piece in self.weights.pieces(day.dtype, merged=merged)
        ]
        vae = {f"vae.{name}": _stored(tensor) for name, tensor in self.vae.state_dict().items()}
        pieces += [Piece(name, stored.shape, torch.float32, stored.read) for name, stored in vae.items()]
        origin = {"path": "benchmark", "revision": None, "fingerprint": "none"}
        adapters = None if merged else recipe.model.model_dump(mode="json", include={"lora", "depth", "train"})
        config = bundle_config(
            self.weights.skeleton(merged=merged), dict(self.vae.config), day.size.text_len,
            Settings(action_steps=STEPS),
            backbone=origin, trained=day.weights is not None, action_prefix=0, future="joint",
            dtype=str(day.dtype).removeprefix("torch."), run="benchmark", step=0, adapters=adapters,
        )  # fmt: skip
        shape = (day.size.text_len, int(day.size.transformer["text_dim"]))
        prompts = {
            text: torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(day.dtype)
            for number, text in enumerate((PROMPT, NO_TEXT))
        }
        write_parts(folder, pieces, config, day.size.contract, prompts, lambda size: None)
        write_text_atomic(folder / "README.md", "A measurement's: its adapters are random numbers.\n")
        seal(folder, day.size.contract, origin)


def _place(day: Day, name: str) -> Path:
    return day.out / "work" / f"bundle-{name}"


def _stored(tensor: torch.Tensor) -> Stored:
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu().clone())
