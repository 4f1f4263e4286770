#!/usr/bin/env python3
"""What this machine's GPU does with the 5B: everything that can only be counted without one, in about 45 minutes.

    python benchmarks/gpu_day.py [--weights Wan2.2-TI2V-5B-Diffusers] [--out gpu_day]

Writes OUT/report.html, a page that needs no network, and OUT/report.json, the same for programs. Every part runs in
a process of its own: one that crashes, hangs or runs out of memory is written down with its reason, and the next
begins. A finished part is a file in OUT/parts: the same command goes on where it was, and tries again what is not
measured yet; to measure a part anew, remove its file.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from _gpu_report import scrubbed, write_report
from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError, listed
from xwam_ft.files import UNWRITABLE, disk_errors, read_json, write_json_atomic
from xwam_ft.locks import sole_writer

PARTS = {
    "machine": ("_gpu_seen", "machine", 5),
    "text": ("_gpu_seen", "text", 10),
    "vae": ("_gpu_seen", "vae", 10),
    "memory": ("_gpu_learn", "memory", 10),
    "precision": ("_gpu_learn", "precision", 15),
    "steps": ("_gpu_learn", "steps", 15),
    "compile": ("_gpu_learn", "compiled", 15),
    "attention": ("_gpu_seen", "attention", 10),
    "policy": ("_gpu_seen", "policy", 15),
    "quantised": ("_gpu_learn", "quantised", 15),
    "export": ("_gpu_ship", "export", 15),
    "devices": ("_gpu_ship", "devices", 20),
    "ranks": ("_gpu_ship", "ranks", 10),
    "job": ("_gpu_ship", "job", 20),
}
"""Parts in their order: where each is, and after how many minutes it counts as hung."""
ASK = (
    "import json, torch; here = torch.cuda.is_available(); "
    "print(json.dumps({'name': torch.cuda.get_device_name() if here else None, "
    "'bfloat16': here and torch.cuda.is_bf16_supported(including_emulation=False)}))"
)
HEAVY = (
    "diffusers.models.autoencoders.autoencoder_kl_wan", "diffusers.models.transformers.transformer_wan",
    "transformers.models.umt5.modeling_umt5", "peft", "torch._dynamo", "_gpu_seen", "_gpu_learn", "_gpu_ship",
)  # fmt: skip
"""What parts import, for the server whose forks they are on a CPU."""
DISK = 70e9
"""Bytes that bundles of the 5B, a run and a latent cache take for a while."""


def main(
    weights: Annotated[
        str, typer.Option(help="Wan2.2's folder or hub id in diffusers layout; default: random numbers")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder of the day; the same folder goes on")] = Path("gpu_day"),
    toy: Annotated[bool, typer.Option(help="rehearse everything with the small backbone on a CPU")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"these parts alone: {', '.join(PARTS)}")] = None,
) -> None:
    """Measure what a GPU does with the 5B, and write one report."""
    console = plain_console()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it otherwise
    # Where the server of forks looks for modules: it does not have this script's own path.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    try:
        chosen = _chosen(part)
        out = out.absolute()
        gpu = _require_machine(weights, toy)
        with disk_errors(out, UNWRITABLE):
            (out / "parts").mkdir(parents=True, exist_ok=True)
            (out / "work").mkdir(exist_ok=True)
        with sole_writer(out, "measuring into it"):
            settings = {"weights": weights or None, "toy": toy}
            _require_same(out, settings, gpu)
            _run(out, settings, chosen, console)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None


def _chosen(part: list[str] | None) -> list[str]:
    if strange := sorted(set(part or ()) - set(PARTS)):
        raise UserError(f"there is no part {strange[0]!r}", "--part", f"choose of: {listed(PARTS, len(PARTS))}")
    return [name for name in PARTS if not part or name in part]


def _require_machine(weights: str, toy: bool) -> str:
    """Say before any work what would make it useless; returns the GPU's name."""
    if toy and weights:
        raise UserError("changes nothing with --toy, which has its own", "--weights", "leave one of them out")
    if toy:
        return "none"
    # In a process of its own: a GPU in exclusive mode takes one at a time, and parts are to come.
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    seen = json.loads(done.stdout) if done.returncode == 0 else {"name": None}
    if seen["name"] is None:
        fix = "run it on a machine with one, or rehearse with --toy"
        raise UserError("torch sees no CUDA GPU here", "benchmarks/gpu_day.py", fix)
    if not seen["bfloat16"]:
        fix = "take a GPU from Ampere on (A100, RTX 30 and later)"
        raise UserError(f"{seen['name']} does not compute in bfloat16", "benchmarks/gpu_day.py", fix)
    if weights:
        from xwam_ft.model.backbone import locate_backbone
        from xwam_ft.model.folder_check import PARTS as BACKBONE

        locate_backbone(weights, BACKBONE)
    return str(seen["name"])


def _require_same(out: Path, settings: dict[str, Any], gpu: str) -> None:
    """A folder holds one day: one machine, one version, one set of weights."""
    now = {**settings, "gpu": gpu} | {name: version(name) for name in ("torch", "xwam-ft")}
    place = out / "day.json"
    if not place.is_file():
        write_json_atomic(place, now)
        return
    then = read_json(place)
    for name, value in now.items():
        if then.get(name) != value:
            raise UserError(
                f"holds a day with {name} {then.get(name)!r}, and now it is {value!r}",
                out,
                "choose another folder with --out, or remove this one",
            )


def _run(out: Path, settings: dict[str, Any], chosen: list[str], console: Console) -> None:
    free = shutil.disk_usage(out).free
    if not settings["toy"] and free < DISK:
        console.print(f"{free / 1e9:.0f} GB are free at {out}: export and job want {DISK / 1e9:.0f} GB and may fail")
    done = [name for name in chosen if _measured(out, name)]
    if done:
        console.print(f"measured already: {', '.join(done)}")
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    command = " ".join(["python benchmarks/gpu_day.py", *sys.argv[1:]])
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("gpu day", total=len(chosen), completed=len(done))
            for name in chosen:
                if name in done:
                    continue

                def say(text: str, name: str = name) -> None:
                    progress.update(bar, description=f"{name}: {text}"[:60])

                say("starting")
                result = _measure(out, settings, name, say)
                reason = f": {result['reason']}" if result["reason"] else ""
                console.print(f"{name}: {result['status']} in {result['seconds']:.0f} s{reason}", soft_wrap=True)
                write_report(out, list(PARTS))
                progress.update(bar, advance=1, description="gpu day")
    except KeyboardInterrupt:
        console.print(f"stopped; what is measured is kept. Go on with: {command}", soft_wrap=True)
        raise typer.Exit(130) from None
    report = write_report(out, list(PARTS))
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    console.print(f"please send {out / 'report.json'}: docs/results/README.md says how", soft_wrap=True)
    if failed := [name for name in chosen if report["parts"][name]["status"] == "failed"]:
        console.print(f"failed, and tried again by the same command: {', '.join(failed)}", soft_wrap=True)
        raise typer.Exit(1)
    shutil.rmtree(out / "work", ignore_errors=True)


def _place(out: Path, name: str) -> Path:
    return out / "parts" / f"{name}.json"


def _measured(out: Path, name: str) -> bool:
    return _place(out, name).is_file() and read_json(_place(out, name))["status"] == "measured"


def _measure(out: Path, settings: dict[str, Any], name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a part in a process of its own and write down what came of it."""
    # A GPU's process must be a new one; on a CPU a server that has the imports already forks in no time.
    context: Any = multiprocessing.get_context("forkserver" if settings["toy"] else "spawn")
    if settings["toy"]:
        context.set_forkserver_preload(list(HEAVY))
    receiver, sender = context.Pipe(False)
    log = out / "parts" / f"{name}.log"
    began = time.monotonic()
    process = context.Process(target=work, args=(PARTS[name][:2], str(out), settings, sender, str(log)))
    process.start()
    sender.close()
    result: dict[str, Any] | None = None
    limit = 60 * PARTS[name][2]
    try:
        while result is None and time.monotonic() - began < limit:
            if not receiver.poll(0.2):
                continue
            try:
                told = receiver.recv()
            except EOFError:
                break
            if isinstance(told, str):
                say(told)
            else:
                result = told
        process.join(10)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if result is None:
        late = time.monotonic() - began >= limit
        why = f"its process ended with code {process.exitcode}"
        why = f"not done after {PARTS[name][2]:g} minutes" if late else why
        result = {"status": "failed", "reason": f"{why}{_last(log)}", "tables": [], "says": []}
    found: dict[str, Any] = scrubbed(result, out, settings["weights"])
    found["seconds"] = round(time.monotonic() - began, 1)
    write_json_atomic(_place(out, name), found)
    return found


def _last(log: Path) -> str:
    """The last line that a process wrote, if it wrote any."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return f"; its last words: {said[-1][:200]}" if said else ""


def work(place: tuple[str, str], out: str, settings: dict[str, Any], sender: Connection, log: str) -> None:
    """What a part's process does: whatever it and its libraries print goes to its log.

    Args:
        place: module and function of the part.
    """
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    from importlib import import_module

    from _gpu_work import Day, NotHere

    weights = "tiny" if settings["toy"] else settings["weights"]
    day = Day(Path(out), weights, settings["toy"])
    try:
        found = getattr(import_module(place[0]), place[1])(day, sender.send)
        sender.send({"status": "measured", "reason": "", **asdict(found)})
    except NotHere as reason:
        sender.send({"status": "not measured", "reason": str(reason), "tables": [], "says": []})
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        told = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        sender.send({"status": "failed", "reason": f"{kind}{told[0]}", "tables": [], "says": []})
    finally:
        sender.close()


if __name__ == "__main__":
    typer.run(main)
