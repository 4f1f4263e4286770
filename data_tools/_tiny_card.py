"""The card that ships beside the built-in weights: what they are, how they were made, how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _tiny_corpus import HELD_OUT


def card(measured: Mapping[str, Any], folder: Path) -> str:
    """README.md from what the training stages measured (`vae`, `video`, `depth_estimator`)."""
    vae, video, depth = (measured[name] for name in ("vae", "video", "depth_estimator"))
    sizes = {path.name: _megabytes(path) for path in sorted(folder.iterdir())}
    lines = [
        "# The built-in `tiny` weights",
        "",
        "A video prior and a depth estimator small enough to ship, for trying xwam-ft on a CPU and for its tests. They",
        "know Meta-World's table and robot and nothing else: for real recordings use a real backbone and estimator.",
        "",
        "| part | what it is | MB (bf16) |",
        "|---|---|---|",
        f"| transformer | `WanTransformer3DModel`, 4.0 M, 6 layers of 192 | {sizes['transformer']} |",
        f"| vae | `AutoencoderKLWan`, 2.8 M, factor 16 in space and 4 in time, 48 channels | {sizes['vae']} |",
        f"| text_encoder | `UMT5EncoderModel` over bytes, 0.1 M | {sizes['text_encoder']} |",
        f"| depth.safetensors | U-Net, 1.3 M: metres from one picture | {sizes['depth.safetensors']} |",
        "",
        "**Data.** Meta-World 3.1.1 (MIT) rendered at 96x128, 20 pictures a second, by three cameras: 42 tasks, moved",
        "by the benchmark's experts with and without noise, and at random. Depth: the same tasks from random cameras,",
        "with random lights and colours. No action, no state was used. Held out: " + ", ".join(HELD_OUT) + ".",
        "",
        "**Command.** `python data_tools/pretrain_tiny.py corpus|vae|video|depth|pack WORK`, on CPU, by the clock;",
        "rows of one stage are its runs in order, each from the weights of the one before (`--resume`):",
        "",
        "| stage | minutes | processes | steps | loss |",
        "|---|---|---|---|---|",
        *(_stage("vae", {"runs": [run]}, _vae_loss(run))[0] for run in vae["runs"]),
        *_stage("video", video, "flow matching of the future from first frame and text, 1 to 3 views"),
        *_stage("depth", depth, "L1 of log depth and of its differences"),
        "",
        "**Clip lengths.** VAE and prior know clips of "
        + ", ".join(map(str, vae["lengths"][1:]))
        + " pictures; others are",
        "refused (`clips.json`).",
        "",
        "**Held-out tasks, PSNR in dB.** VAE: "
        + ", ".join(f"{name} {value:.1f}" for name, value in vae["held_out"]["psnr"].items())
        + ". Spread of the latent frames of",
        "clips of 13 over the first's: "
        + ", ".join(map(str, vae["held_out"]["spread"]))
        + ". Futures (20 steps), and over moving",
        "pixels alone:",
        "",
        "| future | task | generated | repeat the first picture | the VAE's limit | moving: generated | repeat |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {future} | {task} | {row['generated']:.1f} | {row['repeat_first']:.1f} | {row['vae']:.1f} | "
            f"{row['generated, moving']:.1f} | {row['repeat_first, moving']:.1f} |"
            for future, tasks in video["held_out_psnr"].items()
            for task, row in tasks.items()
        ),
        "",
        "**Depth estimator, held-out tasks.** No scale is fitted; pixels nearer than 10 m. Flicker: mean change of the",
        "log error between pictures 0.05 s apart. `corner`, `corner3` and `gripperPOV` were seen in training, on other",
        "tasks; the other cameras never.",
        "",
        "| camera | AbsRel | delta1 | flicker |",
        "|---|---|---|---|",
        *(
            f"| {camera} | {row['abs_rel']:.3f} | {row['delta1']:.3f} | {row['flicker']:.3f} |"
            for camera, row in depth["held_out"].items()
        ),
        "",
    ]
    return "\n".join(lines)


def _vae_loss(run: Mapping[str, Any]) -> str:
    woken = f"; first {run['woken']} empty latent channels were woken" if run["woken"] else ""
    terms = f"L1 + {run['squared']:g} MSE + 0.15 (1 - SSIM) + {run['kl']:g} KL"
    return f"{terms}; clips of {', '.join(map(str, run['lengths']))} pictures{woken}"


def _stage(name: str, row: Mapping[str, Any], loss: str) -> list[str]:
    return [f"| {name} | {run['minutes']:g} | {run['processes']} | {run['steps']} | {loss} |" for run in row["runs"]]


def _megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f}"
