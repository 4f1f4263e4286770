"""Make the built-in `tiny` weights: render Meta-World, train VAE, video transformer and depth estimator, pack them.

    python data_tools/pretrain_tiny.py corpus WORK
    python data_tools/pretrain_tiny.py vae WORK --minutes 50
    python data_tools/pretrain_tiny.py video WORK --minutes 25
    python data_tools/pretrain_tiny.py depth WORK --minutes 25
    python data_tools/pretrain_tiny.py pack WORK

Needs `pip install 'xwam-ft[sim]'` and a renderer. No action and no state is used, and no picture of a held-out task
(_tiny_corpus.HELD_OUT). Training goes by the clock, which counts CPU time: a faster machine makes more steps in the
same time, and so do several processes: `torchrun --nproc-per-node 2 data_tools/pretrain_tiny.py vae WORK`. A stage that
was killed goes on when its command is given again, also with more or fewer minutes; `--resume` begins another run from
the weights of one that is finished.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parent))
import _tiny_corpus as corpus_of
import _tiny_depth as depth_of
import _tiny_vae as vae_of
import _tiny_video as video_of
from _optimizers import Look, MuonAndAdamW, Training
from _tiny_card import card
from xwam_ft.bundled import bundled
from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError
from xwam_ft.evaluate.metaworld import instruction
from xwam_ft.files import atomic_folder, atomic_path, read_json, sha256, write_json_atomic, write_text_atomic
from xwam_ft.model.backbone import CLIPS_FILE, load_backbone
from xwam_ft.model.tiny import untrained_text, untrained_transformer, untrained_vae
from xwam_ft.prepare.depth.tiny import TinyDepth
from xwam_ft.progress import progress_bar

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
Work = Annotated[Path, typer.Argument(help="Folder for renders and weights.")]
Minutes = Annotated[float, typer.Option(min=0.01, help="How long to train.")]
Resume = Annotated[bool, typer.Option(help="Go on from the weights in WORK.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]
VIDEO_EPISODES, DEPTH_PICTURES = 12, 300  # a task
HELD_OUT_EPISODES, HELD_OUT_PICTURES = 4, 60
EVERY = 8  # pictures between the starts of two encoded clips
SHIPPED_RUNS = [
    {"minutes": 28, "processes": 1, "steps": 4652, "squared": 2.0, "kl": 1e-6, "woken": 0, "lengths": [1, 5]},
    {"minutes": 24, "processes": 2, "steps": 3400, "squared": 2.0, "kl": 1e-6, "woken": 0, "lengths": [1, 5]},
    {"minutes": 27, "processes": 2, "steps": 3722, "squared": 2.0, "kl": 1e-7, "woken": 21, "lengths": [1, 5]},
]
"""Of the VAE that ships: what `--shipped` goes on from."""
CONSOLE = plain_console()


@app.command()
def corpus(work: Work, worker: Annotated[int, typer.Option()] = 0, workers: Annotated[int, typer.Option()] = 1) -> None:
    """Render video and depth of every task; what is there already is kept."""
    warnings.filterwarnings("ignore", message="Constant")
    tasks = [*corpus_of.training_tasks(), *corpus_of.HELD_OUT][worker::workers]
    with progress_bar(CONSOLE, "render", "tasks", 2 * len(tasks)) as advance:
        for task in tasks:
            unseen = task in corpus_of.HELD_OUT
            jobs: tuple[tuple[str, Callable[[str, int, Path], None], int], ...] = (
                ("video", corpus_of.render_video, HELD_OUT_EPISODES if unseen else VIDEO_EPISODES),
                ("depth", corpus_of.render_depth, HELD_OUT_PICTURES if unseen else DEPTH_PICTURES),
            )
            for kind, render, amount in jobs:
                out = work / kind / f"{task}.npz"
                if not out.exists():
                    render(task, amount, out)
                advance(1)


@app.command()
def vae(
    work: Work,
    minutes: Minutes = 50,
    threads: Threads = 1,
    seed: int = 0,
    resume: Resume = False,
    shipped: Annotated[bool, typer.Option(help="Begin with the weights that ship.")] = False,
) -> None:
    """Train the VAE and measure its latents."""
    rank = _join(threads)
    corpus_of.require_renders(work)
    data = vae_of.Pictures(work, corpus_of.training_tasks())
    unseen = vae_of.Pictures(work, corpus_of.HELD_OUT)
    model, before = untrained_vae(), []
    if resume:
        model, before = _trained_vae(work), _measured(work, "vae")["runs"]
    elif shipped:
        model = load_backbone("tiny", dtype="float32", parts=("vae",)).vae.requires_grad_(True)
        before = SHIPPED_RUNS
    woken = vae_of.wake(model, data, seed)

    def look(averaged: Any, step: int, at: float) -> None:
        found = vae_of.held_out(averaged, unseen, 16, seed)
        _log(work / "vae.looks.jsonl", {"minutes": round(at, 1), "steps": step, **found})

    steps_of = vae_of.steps_of(model, data, seed + 1000 * rank)
    run = _train("vae", work, model, vae_of.optimizer_of(model), steps_of, minutes, vae_of.WARMUP, seed, look)
    if rank:
        return
    model = model.bfloat16().float()  # as it ships: what is measured is what is used
    told = {"squared": vae_of.SQUARED, "kl": vae_of.KL, "woken": woken, "lengths": [1, *vae_of.LENGTHS]}
    mean, std = vae_of.latent_statistics(model, data, 128, seed)
    measured = {
        "runs": [*before, run | told],
        "lengths": told["lengths"],
        "latents_mean": mean,
        "latents_std": std,
        "held_out": vae_of.held_out(model, unseen, 64, seed),
    }
    _save(work / "vae", model, measured)


@app.command()
def video(work: Work, minutes: Minutes = 25, threads: Threads = 1, seed: int = 0) -> None:
    """Train the video transformer and the text encoder on the VAE's latents."""
    rank = _join(threads)
    corpus_of.require_renders(work)
    model = _trained_vae(work)
    data = _latents(work, model, rank)
    encoder, tokenizer = untrained_text()
    prior = video_of.Prior(untrained_transformer(), encoder, tokenizer)
    steps_of = video_of.steps_of(prior, data, seed + 1000 * rank)
    run = _train("video", work, prior, video_of.optimizer_of(prior), steps_of, minutes, video_of.WARMUP, seed)
    if rank:
        return
    prior = prior.bfloat16().float()
    measured: dict[str, Any] = {"runs": [run]}
    measured["clips"] = {4 * span - 3: len(video) for span, video in data.video.items()}
    measured["held_out_psnr"] = {
        name: {task: video_of.generated_psnr(prior, model, work, task, 16, 20, future) for task in corpus_of.HELD_OUT}
        for name, future in video_of.FUTURES.items()
    }
    _save(work / "video", prior, measured)


@app.command()
def depth(work: Work, minutes: Minutes = 10, threads: Threads = 1, seed: int = 0) -> None:
    """Train the depth estimator."""
    rank = _join(threads)
    corpus_of.require_renders(work)
    data = depth_of.Renders(work, corpus_of.training_tasks())
    torch.manual_seed(seed)
    network = TinyDepth()
    steps_of = depth_of.steps_of(network, data, seed + 1000 * rank)
    run = _train(
        "depth_estimator", work, network, depth_of.optimizer_of(network), steps_of, minutes, depth_of.WARMUP, seed
    )
    if rank:
        return
    network = network.bfloat16().float()
    _save(work / "depth_estimator", network, {"runs": [run], "held_out": depth_of.held_out(network)})


@app.command()
def pack(
    work: Work, out: Annotated[Path | None, typer.Option(help="Default: where the package reads it.")] = None
) -> None:
    """Write bf16 weights in diffusers' layout, with a card."""
    from safetensors.torch import load_file, load_model, save_file

    out = out or bundled("recordings").parent / "tiny"
    measured = {name: _measured(work, name) for name in ("vae", "video", "depth_estimator")}
    encoder, tokenizer = untrained_text()
    prior = video_of.Prior(untrained_transformer(), encoder, tokenizer)
    load_model(prior, work / "video.safetensors")
    with atomic_folder(out) as folder:
        prior.network.transformer.bfloat16().save_pretrained(folder / "transformer")
        _trained_vae(work).bfloat16().save_pretrained(folder / "vae")
        prior.text_encoder.bfloat16().save_pretrained(folder / "text_encoder")
        tokenizer.save_pretrained(folder / "tokenizer")
        views = {"view_embedding.weight": prior.network.view_embedding.weight.detach().bfloat16()}
        save_file(views, folder / "transformer" / "view_embedding.safetensors")
        estimator = load_file(work / "depth_estimator.safetensors")
        save_file({name: value.bfloat16() for name, value in estimator.items()}, folder / "depth.safetensors")
        write_json_atomic(folder / CLIPS_FILE, {"frames": measured["vae"]["lengths"]})
        write_text_atomic(folder / "README.md", card(measured, folder))
    CONSOLE.print(f"weights: {out}")


def _join(threads: int) -> int:
    """This process's number under `torchrun`, 0 without it."""
    torch.set_num_threads(threads)
    if "RANK" not in os.environ:
        return 0
    dist.init_process_group("gloo", timeout=timedelta(hours=2))
    return dist.get_rank()


def _train(
    name: str,
    work: Path,
    module: torch.nn.Module,
    optimizer: MuonAndAdamW,
    loss_of_step: Callable[[int], torch.Tensor],
    minutes: float,
    warmup: int,
    seed: int,
    look: Look | None = None,
) -> dict[str, Any]:
    """Train a stage to its end, from where it was last kept; returns what its card says of the run."""
    kept = work / f"{name}.going.pt"
    training = Training(module, optimizer, kept, seconds=60 * minutes, warmup=warmup, look=look)
    if training.step:
        CONSOLE.print(f"{name}: goes on at step {training.step}, minute {training.used / 60:.1f} of {minutes:g}")
    with _clock(name, minutes) as report:
        steps = training.run(loss_of_step, report)
    training.keep()  # measuring takes minutes too; `_save` ends the stage
    return {
        "minutes": round(training.used / 60, 1),
        "processes": _processes(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "steps": steps,
    }


def _log(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    CONSOLE.print(json.dumps(row), soft_wrap=True)


def _latents(work: Path, model: Any, rank: int) -> video_of.Latents:
    """Latents of all training tasks; every process encodes its share, and what is there already is kept."""
    from safetensors.torch import load_file, save_file

    # Named after the VAE: latents of another one would train a prior for nobody.
    folder, tasks = work / f"latents_{sha256(work / 'vae.safetensors')[:12]}", corpus_of.training_tasks()
    share = [task for task in tasks[rank :: _processes()] if not (folder / f"{task}.safetensors").exists()]
    with progress_bar(CONSOLE, "encode", "tasks", len(share)) as advance:
        for task in share:
            encoded = video_of.encode_task(model, work, task, EVERY)
            with atomic_path(folder / f"{task}.safetensors") as path:
                save_file(encoded, path)
            advance(1)
    if dist.is_initialized():
        dist.barrier()
    encoded = [load_file(folder / f"{task}.safetensors") for task in tasks]
    return video_of.joined(encoded, tuple(instruction(task) for task in tasks))


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _trained_vae(work: Path) -> Any:
    from safetensors.torch import load_file

    measured = _measured(work, "vae")
    model = untrained_vae()
    model.load_state_dict(load_file(work / "vae.safetensors"))
    model.register_to_config(latents_mean=measured["latents_mean"], latents_std=measured["latents_std"])
    return model.eval()


def _measured(work: Path, name: str) -> dict[str, Any]:
    """What a stage left beside its weights."""
    path, stage = work / f"{name}.json", name.removesuffix("_estimator")
    if not path.is_file():
        raise UserError("does not exist", path, f"run: python data_tools/pretrain_tiny.py {stage} {work}")
    return read_json(path)


def _save(stem: Path, module: torch.nn.Module, measured: dict[str, Any]) -> None:
    from safetensors.torch import save_model

    with atomic_path(stem.with_suffix(".safetensors")) as path:
        save_model(module, str(path))  # tensors that modules share are written once
    write_json_atomic(stem.with_suffix(".json"), measured)
    stem.with_suffix(".going.pt").unlink(missing_ok=True)
    CONSOLE.print(measured)


@contextmanager
def _clock(what: str, minutes: float) -> Generator[Callable[[int, float, float], None]]:
    """A bar over the time granted, with steps, rate and loss."""
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task(what, total=1.0, note="")

        def report(step: int, done: float, loss: float) -> None:
            rate = step / max(60 * minutes * done, 1e-9)
            progress.update(task, completed=done, note=f"{step} steps, {rate:.2f} steps/s of CPU, loss {loss:.4f}")
            if step % 500 == 0:
                progress.console.print(f"{what}: step {step}, loss {loss:.4f}")

        yield report


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"pretrain_tiny: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
