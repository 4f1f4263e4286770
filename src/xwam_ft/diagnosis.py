"""What this machine has and lacks, on one page to paste into a bug report; nothing is fetched, written or sent.

What is tried is tried for real: a clip is encoded and decoded, a number is computed on each GPU, a picture is rendered.
The page holds no host, user or folder name.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from xwam_ft import __version__, media
from xwam_ft.errors import UserError, require
from xwam_ft.machine import (
    ABSENT,
    BFLOAT16,
    cores,
    cpu_flags,
    cpu_has_bfloat16,
    free_memory,
    gigabytes,
    gpu_driver,
    gpu_has_bfloat16,
    installed_versions,
    requirements,
    unmet,
)

State: TypeAlias = Literal["ok", "off", "note", "wrong"]
"""`off` is optional and not here, `note` is worth knowing, `wrong` stops what everybody needs."""

KNOWN_BAD = (
    ("lightning", ("2.6.2", "2.6.3"), "a compromised release"),
    ("transformers", "<5.3", "it does not load the text encoder's embedding, and all instructions are alike"),
    ("mujoco", "!=3.3.0", "metaworld 3.1.1 asks for 3.3.0 exactly"),
)
"""Package, versions (a list, or a range), what they do."""
WEIGHTS = 34_000_000_000  # Wan2.2-TI2V-5B with its text encoder
SMALL = 1_000_000_000  # shared memory below which a loader's workers may not have room
FOR_PEOPLE = {"dev", "docs"}  # extras for those who work on xwam-ft

RENDERS = """
import os; os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size=".1"/></worldbody></mujoco>')
data = mujoco.MjData(model); mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32); renderer.update_scene(data)
raise SystemExit(0 if renderer.render().max() > 0 else "the picture is black")
"""


@dataclass(frozen=True)
class Symptom:
    """One line of the page.

    Args:
        part: of the machine, a heading.
        fix: what to do about it, where something is to be done.
    """

    part: str
    what: str
    says: str
    state: State = "ok"
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `xwam-ft doctor` found.

    Args:
        symptoms: every line, in the order of the page.
    """

    symptoms: tuple[Symptom, ...]

    @property
    def wrong(self) -> tuple[Symptom, ...]:
        """What stops work that everybody needs; empty where all is right."""
        return tuple(one for one in self.symptoms if one.state == "wrong")

    @property
    def text(self) -> str:
        """The page."""
        lines, part = [f"xwam-ft {__version__}: {self.verdict}"], ""
        for one in self.symptoms:
            if one.part != part:
                part = one.part
                lines += ["", part]
            fix = (f"; {one.fix} brings it" if one.state == "off" else f". Fix: {one.fix}") if one.fix else ""
            state = "WRONG" if one.state == "wrong" else one.state
            lines.append(f"  {state:5}  {one.what:21} {one.says}{fix}")
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        if not self.wrong:
            return "all that is needed is right"
        return f"{len(self.wrong)} wrong: {', '.join(one.what for one in self.wrong)}"

    def as_json(self) -> dict[str, Any]:
        """The page for programs; `right` is what the exit code says."""
        return {
            "schema_version": 1,
            "xwam_ft": __version__,
            "right": not self.wrong,
            "symptoms": [asdict(one) for one in self.symptoms],
        }


def diagnose() -> Diagnosis:
    """Look at everything; takes some seconds, most of them for loading torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Diagnosis((*_system(), *_libraries(), *_extras(), *_gpus(), *_decoders(), *_renderer(), *_room()))


def _system() -> Iterator[Symptom]:
    own = "in an environment of its own" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    yield Symptom("system", "Python", f"{platform.python_version()}, {own}", *_python())
    libc = " ".join(platform.libc_ver())
    yield Symptom("system", "platform", f"{platform.system()} {platform.release()} {platform.machine()} {libc}".strip())


def _python() -> tuple[State, str]:
    from packaging.specifiers import SpecifierSet

    try:
        wanted = metadata("xwam-ft")["Requires-Python"]
    except PackageNotFoundError:
        return "note", "pip install . (a plain checkout runs: bounds of libraries are not known)"
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    return ("ok", "") if fits else ("wrong", f"make an environment with Python {wanted}")


def _libraries() -> Iterator[Symptom]:
    """What the package asks for, and what those libraries ask for of each other."""
    try:
        asked = requirements()
    except PackageNotFoundError:
        return
    for one in asked:
        found, trouble = installed_versions([one.name])[one.name], unmet(one)
        inner = [] if found == ABSENT else [other for other in requirements(one.name) if unmet(other)]
        if trouble is not None:
            fix = f"pip install '{one.name}{one.specifier}'"
            yield Symptom("libraries", one.name, trouble + _known_bad(one.name, found), "wrong", fix)
        elif inner:
            here = installed_versions(other.name for other in inner)
            says = [f"it wants {other.name}{other.specifier}, and here is {here[other.name]}" for other in inner]
            fix = "pip install " + " ".join(f"'{other.name}{other.specifier}'" for other in inner)
            state = (
                "wrong" if {one.name for one in asked} & set(here) else "note"
            )  # tools that a library names are less
            yield Symptom("libraries", one.name, f"{found}; {'; '.join(says)}", state, fix)
        elif one.name == "torch" and (reason := _does_not_load(one.name)):
            fix = "pip install --force-reinstall torch torchvision"
            yield Symptom("libraries", one.name, f"{found} does not load ({reason})", "wrong", fix)
        else:
            yield Symptom("libraries", one.name, found)


def _known_bad(name: str, found: str) -> str:
    from packaging.specifiers import SpecifierSet

    for bad, versions, why in KNOWN_BAD:
        hit = found in versions if isinstance(versions, tuple) else SpecifierSet(versions).contains(found)
        if bad == name and found != ABSENT and hit:
            return f": {why}"
    return ""


def _does_not_load(name: str) -> str | None:
    """Why a library cannot be imported: parts of different builds raise many kinds of errors."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _extras() -> Iterator[Symptom]:
    try:
        extras = [name for name in metadata("xwam-ft").get_all("Provides-Extra") or () if name not in FOR_PEOPLE]
    except PackageNotFoundError:
        return
    for extra in extras:
        fix, asked = f"pip install 'xwam-ft[{extra}]'", requirements(extra=extra)
        found = installed_versions(one.name for one in asked)
        troubles = [text + _known_bad(one.name, found[one.name]) for one in asked if (text := unmet(one))]
        said = ", ".join(f"{name} {version}" for name, version in found.items())
        if not troubles:
            yield Symptom("extras", extra, said)
        elif set(found.values()) == {ABSENT}:
            yield Symptom("extras", extra, ABSENT, "off", fix)
        else:
            yield Symptom("extras", extra, "; ".join(troubles), "note", fix)


def _gpus() -> Iterator[Symptom]:
    if _does_not_load("torch"):
        return
    import torch

    known = cpu_flags()
    flags = [name for name in BFLOAT16 if known.get(name, False)]
    chip = f"{known.get('cpu_name', platform.processor())}, {cores()} cores"
    if cpu_has_bfloat16():
        yield Symptom("processors", "CPU", f"{chip}, computes in bfloat16 ({', '.join(flags)})")
    else:
        slow = f"{chip}, without AVX512-BF16 or AMX: bf16-mixed is slow here, and `auto` takes 32-true"
        yield Symptom("processors", "CPU", slow, "note")
    driver, cuda = gpu_driver(), torch.version.cuda
    said = f"driver {driver or 'not told'}, torch {torch.__version__} with CUDA {cuda or 'none'}"
    if not torch.cuda.is_available():
        yield _no_gpu(said)
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        about = f"{card.name}, {gigabytes(card.total_memory)}, capability {card.major}.{card.minor}, {said}"
        try:
            assert float(torch.ones(8, device=f"cuda:{index}").sum()) == 8
        except (RuntimeError, AssertionError) as error:
            fix = "install a torch that is built for this GPU (pytorch.org, Get started)"
            yield Symptom(
                "processors", f"GPU {index}", f"{about}; it does not compute ({_first_line(error)})", "wrong", fix
            )
        else:
            plain = "" if gpu_has_bfloat16() else "; it does not compute in bfloat16, and `auto` takes 32-true"
            yield Symptom("processors", f"GPU {index}", about + plain, "note" if plain else "ok")


def _no_gpu(said: str) -> Symptom:
    """Why torch sees no GPU: there is none, it is hidden, or driver and torch do not fit each other."""
    import torch

    cuda = torch.version.cuda
    if gpu_driver() is None and shutil.which("nvidia-smi") is None:
        none = "none: enough for prepare and the small backbone; the 5B wants one"
        return Symptom("processors", "GPU", none, "note")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return Symptom("processors", "GPU", f"hidden by CUDA_VISIBLE_DEVICES={hidden}; {said}", "note")
    if cuda is None:
        fix = "pip install --force-reinstall torch torchvision"
        return Symptom("processors", "GPU", f"not seen: this torch is built without CUDA; {said}", "wrong", fix)
    try:
        torch.cuda.init()
        reason = "torch does not say why"
    except (RuntimeError, AssertionError) as error:
        reason = _first_line(error)
    fix = f"install a driver for CUDA {cuda} or later, or a torch built for an older CUDA; a container wants --gpus all"
    return Symptom("processors", "GPU", f"not seen ({reason}); {said}", "wrong", fix)


def _decoders() -> Iterator[Symptom]:
    """Four pictures of known brightness, there and back, in the codecs that recordings come in."""
    levels = np.array([40, 90, 140, 190])
    pictures = [np.full((64, 64, 3), level, np.uint8) for level in levels]
    fix = "pip install --force-reinstall av"
    for name in ("H.264", "AV1"):
        try:
            clip = media.rgb_bytes(pictures, 10) if name == "H.264" else _av1(pictures)
            library = media.decoder(clip)
            off = float(np.abs(media.read_rgb(clip).mean((1, 2, 3)) - levels).max())
        except (UserError, OSError, ValueError, ImportError) as error:
            yield Symptom("decoders", name, f"cannot be tried or read ({_first_line(error)})", "wrong", fix)
            continue
        says = f"read by {library}" if off < 8 else f"read by {library}, and wrong by {off:.0f} of 255"
        yield Symptom("decoders", name, says, *(("ok", "") if off < 8 else ("wrong", fix)))
    depth = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64) * 16
    try:
        exact = np.array_equal(media.read_gray16(media.gray16_bytes(depth, 10)), depth)
    except (UserError, OSError, ValueError, ImportError):
        exact = False
    yield Symptom(
        "decoders", "16-bit depth", "exact" if exact else "not exact", *(("ok", "") if exact else ("wrong", fix))
    )


def _av1(pictures: list[np.ndarray]) -> bytes:
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    return media.encoded(pictures, 10, "libsvtav1", {"preset": "12", "crf": "20"})


def _renderer() -> Iterator[Symptom]:
    """In a process of its own, since a GL library that does not fit may end it."""
    if installed_versions(["mujoco"])["mujoco"] == ABSENT:
        yield Symptom("renderer", "MuJoCo", ABSENT, "off", require("mujoco", "sim", "").fix)
        return
    try:
        done = subprocess.run([sys.executable, "-c", RENDERS], capture_output=True, text=True, timeout=60)
        reason = None if done.returncode == 0 else _first_line((done.stderr.strip().splitlines() or ["it crashed"])[-1])
    except subprocess.TimeoutExpired:
        reason = "no picture within a minute"
    if reason is None:
        yield Symptom("renderer", "MuJoCo", "renders")
    else:
        fix = "apt-get install libegl1 libgl1-mesa-dri, and set MUJOCO_GL=egl"
        yield Symptom("renderer", "MuJoCo", f"renders nothing ({reason}), so no closed loop here", "note", fix)


def _room() -> Iterator[Symptom]:
    yield Symptom("room", "memory", f"{gigabytes(free_memory(gpu=False))} free")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        fix = "docker run --shm-size=8g, or trainer.workers=0" if free < SMALL else ""
        yield Symptom("room", "shared memory", f"{gigabytes(free)} free", "note" if fix else "ok", fix)
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    while not cache.is_dir():
        cache = cache.parent
    places = {"this folder": Path(), "temporary files": Path(tempfile.gettempdir()), "Hugging Face": cache}
    for name, place in places.items():
        free = shutil.disk_usage(place).free
        tight = name == "Hugging Face" and free < WEIGHTS
        fix = "set HF_HOME to a folder on a larger disk: Wan's weights take 34 GB" if tight else ""
        yield Symptom("room", f"disk, {name}", f"{gigabytes(free)} free", "note" if tight else "ok", fix)
