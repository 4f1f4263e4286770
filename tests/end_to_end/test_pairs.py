"""Random pairs of commands at one time, some of them killed: none loses what another made, none sees half of it.

    XWAM_FT_PAIRS=10 XWAM_FT_PAIRS_SEED=3 python -m pytest -m soak -s tests/end_to_end/test_pairs.py

Commands are forked from one process that has everything loaded, so that they meet, and kills fall, in the work and not
in imports. Every pair begins with the same folders and prints what it was, so that it can be run again by its seed.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import so101
from xwam_ft import cli
from xwam_ft.files import TEMPORARY
from xwam_ft.locks import holder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no SIGKILL")

VERBS: Any = typer.main.get_command(cli.app)
PAIRS, SEED = int(os.environ.get("XWAM_FT_PAIRS", "50")), int(os.environ.get("XWAM_FT_PAIRS_SEED", "0"))
KILLED = 0.5  # share of pairs
APART = 1.0  # seconds between the two starts, at most

PREPARE = "prepare raw out/set --embodiment so101_joints --depth none --workers 0 --set timing.frame_skip=2"
PREPARE += " --set timing.action_skip=1 --set timing.clip_frames=5 --set image.height=32 --set image.width=64"
EVALUATE = "--clips 1 --no-latency --no-seams"
SAYS = {  # what the loser of a pair may say, by verb
    "prepare": r"is in use: process \d+ .* is preparing it",
    "encode": r"is in use: process \d+ .* is encoding it",
    "train": r"is in use: process \d+ .* is (training|encoding) it|the run folder exists already|"
    r"is not a finished shard set|the folder does not exist",
    "export": r"is in use: process \d+ .* is exporting to it|exists already|was removed while it was read|"
    r"has no checkpoint yet",
    "evaluate": r"was removed while it was read|exists already|has no checkpoint",
    "runs": r"^$",
}


@dataclass(frozen=True)
class Pair:
    """Two commands; `fresh` of what the template holds is removed before."""

    first: str
    second: str
    fresh: tuple[str, ...] = ()


CACHES = "shards/latents-*"
MATCHES = [
    Pair(PREPARE, PREPARE),
    Pair(PREPARE, "train early.yaml --run runs/new"),
    Pair("encode shards --recipe toy.yaml", "train toy.yaml --run runs/new", (CACHES,)),
    Pair("encode shards --recipe toy.yaml", "train --resume runs/half", (CACHES,)),
    Pair("train toy.yaml --run runs/new", "train toy.yaml --run runs/new"),
    Pair("train toy.yaml --run runs/new", "train toy.yaml --run runs/other", (CACHES,)),
    Pair("train --resume runs/half", "train --resume runs/half"),
    Pair("train --resume runs/half --set trainer.max_steps=3", "train --resume runs/half"),
    Pair("export runs/done out/bundle", "export runs/done out/bundle"),
    Pair("export runs/half out/peft --format peft", "export runs/half out/peft --format peft"),
    Pair("runs runs", "train toy.yaml --run runs/new"),
    Pair("export runs/half out/peft --format peft", "train --resume runs/half"),
    Pair("export runs/half out/bundle", "train --resume runs/half"),
    Pair(f"evaluate bundle shards --out out/looked {EVALUATE}", "export runs/done out/bundle"),
    Pair(f"evaluate runs/half shards --out out/looked {EVALUATE}", "train --resume runs/half"),
]


@dataclass
class Ended:
    """A command that has ended."""

    command: str
    code: int
    said: str
    seconds: float

    @property
    def taken(self) -> bool:
        """Whether what it was to make is there already."""
        return self.code == 2 and "exists already" in self.said


class Started:
    """A command in a process of its own, forked from this one, in the folder `place`."""

    def __init__(self, command: str, place: Path, log: Path) -> None:
        self.command, self.log, self.at = command, log, time.monotonic()
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(command, place, log))
        self.process.start()

    def end(self) -> Ended:
        self.process.join(300)
        assert self.process.exitcode is not None, f"hangs: {self.command}"
        return Ended(self.command, self.process.exitcode, self.log.read_text(), time.monotonic() - self.at)


def _run(command: str, place: Path, log: Path) -> None:
    stream = log.open("w", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream
    os.chdir(place)
    sys.argv = ["xwam-ft", *command.split()]
    code: Any = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    stream.flush()
    os._exit(int(code))


def here(command: str, place: Path) -> None:
    """A command in this process, which has then loaded what it needs."""
    before = Path.cwd()
    os.chdir(place)
    try:
        with redirect_stdout(io.StringIO()):
            VERBS.main(command.split(), standalone_mode=False)
    finally:
        os.chdir(before)


def alone(command: str, place: Path) -> Ended:
    ended = Started(command, place, place.with_name("alone.log")).end()
    assert "Traceback" not in ended.said, f"{command}\n{ended.said}"
    return ended


def again(command: str, place: Path) -> None:
    """The command once more, as its user would: a run that is there by now is gone on with."""
    ended = alone(command, place)
    if ended.taken and command.startswith("train "):
        ended = alone(f"train --resume {command.split()[-1]}", place)
    assert ended.code == 0 or ended.taken, f"{command}\n{ended.said}"


# ------------------------------------------------------------------------------------------------- what must be equal

PASSING = {"time.json", "report.html", "plan.json"}  # seconds, and the room on the disk
UNLIKE = re.compile(r"per_second|seconds|^at$|^ms|latency")


def contents(place: Path) -> dict[str, dict[str, bytes]]:
    """By folder that a command makes, every file in it, without what two runs never share: dates and speeds."""
    found: dict[str, dict[str, bytes]] = {}
    for folder in sorted([*place.glob("out/*"), *place.glob("runs/*"), *place.glob(CACHES)]):
        files: dict[str, bytes] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in PASSING and "csv" not in path.parts:  # speeds too
                files[str(path.relative_to(folder))] = _lasting(path)
        found[str(folder.relative_to(place))] = files
    return found


def _lasting(path: Path) -> bytes:
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return "\n".join(sorted(json.dumps(_without(row), sort_keys=True) for row in rows)).encode()
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(path.read_text()))).encode()
    return path.read_bytes()


def _without(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without(value) for key, value in tree.items() if not UNLIKE.search(str(key))}
    return [_without(value) for value in tree] if isinstance(tree, list) else tree


def unlike(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> list[str]:
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


# ----------------------------------------------------------------------------------------------------------- the world


class World:
    """The folders that every pair begins with, always at one place, since runs name theirs."""

    def __init__(self, above: Path) -> None:
        self.place, self.template = above / "world", above / "template"
        self.references: dict[Pair, list[dict[str, dict[str, bytes]]]] = {}
        self.seconds: dict[Pair, float] = {}
        place = self.place
        place.mkdir()
        (place / "out").mkdir()
        so101.write_so101(place / "raw", episodes=3, frames=24, size=(32, 64))
        for name, shards in (("toy", "shards"), ("early", "out/set")):
            tree = {
                "backbone": {"path": "tiny", "dtype": "float32"},
                "data": {"shards": shards, "clip_stride": 8},
                "model": {"lora": {"rank": 2, "alpha": 2}, "depth": {"branch": "none"}},
                "optim": {"warmup_steps": 0, "schedule": "constant", "ema_decay": 0.5},
                "trainer": {"max_steps": 2, "batch_size": 1, "threads": 1, "accelerator": "cpu"},
                "checkpoint": {"every_steps": 1, "keep": 1, "keep_best": 0},
                "logging": {"every_steps": 1, "to": ["csv"]},
                "validation": {
                    "every_steps": 1, "imagine_every_steps": 1, "clips": 1, "imagine_clips": 1,
                    "action_steps": 1, "video_steps": 1,
                },
            }  # fmt: skip
            (place / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        half = "train toy.yaml --run runs/half --set checkpoint.keep=9"
        here(PREPARE.replace("out/set", "shards"), place)
        here(half, place)
        here("train toy.yaml --run runs/done", place)
        here("export runs/done bundle", place)
        here(f"evaluate bundle shards {EVALUATE}", place)
        shutil.rmtree(place / "runs/half/checkpoints/step-000002")
        shutil.rmtree(place / "runs/half/adapter")
        recipe = place / "runs/half/recipe.yaml"
        recipe.write_text(recipe.read_text().replace("keep: 9", "keep: 1"))
        place.rename(self.template)

    def renew(self, pair: Pair) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.template, self.place)
        for pattern in pair.fresh:
            for path in self.place.glob(pattern):
                shutil.rmtree(path)

    def undisturbed(self, pair: Pair) -> list[dict[str, dict[str, bytes]]]:
        """What the two commands make one after the other, in either order."""
        if pair not in self.references:
            self.references[pair] = []
            for order in ((pair.first, pair.second), (pair.second, pair.first)):
                self.renew(pair)
                began = time.monotonic()
                for command in order:
                    alone(command, self.place)
                self.seconds[pair] = time.monotonic() - began
                for command in order:  # one that came too early
                    again(command, self.place)
                self.references[pair].append(contents(self.place))
        return self.references[pair]


def judged(ended: Ended, killed: bool) -> None:
    """No traceback; what is refused is refused in one sentence that we know."""
    where = f"{ended.command}\n{ended.said}"
    assert "Traceback" not in ended.said, where
    assert ended.code in ((0, 2, -9) if killed else (0, 2)), f"exit code {ended.code} of {where}"
    if ended.code == 2:
        sentences = [line for line in ended.said.splitlines() if line.startswith("xwam-ft: ")]
        assert len(sentences) == 1, where
        assert ". Fix: " in sentences[0], where
        assert re.search(SAYS[ended.command.split()[0]], sentences[0]), where


def meet(world: World, pair: Pair, chance: random.Random) -> str:
    """One pair, and what is left of it; returns how it went."""
    references = world.undisturbed(pair)
    world.renew(pair)
    commands = [pair.first, pair.second] if chance.random() < 0.5 else [pair.second, pair.first]
    victims = chance.choice([(0,), (1,), (0, 1)]) if chance.random() < KILLED else ()
    apart = chance.uniform(0, APART)
    moments = {victim: chance.uniform(0, 1.2 * world.seconds[pair]) for victim in victims}
    started = []
    for number, command in enumerate(commands):
        time.sleep(apart * number)
        started.append(Started(command, world.place, world.place.with_name(f"{number}.log")))
    for victim, after in sorted(moments.items(), key=lambda item: item[1]):
        time.sleep(max(0.0, started[0].at + after - time.monotonic()))
        started[victim].process.kill()
    ended = [one.end() for one in started]
    codes = " and ".join(str(one.code) for one in ended)
    said = f"{' | '.join(commands)}: {codes}; {apart:.1f} s apart, killed {moments}"
    print(said, flush=True)
    for number, one in enumerate(ended):
        judged(one, number in victims)
    if not victims:
        assert any(one.code == 0 for one in ended), said
    for command in (pair.first, pair.second):  # what one needs, the other has made first
        again(command, world.place)
    left = [path for path in world.place.rglob(".*") if path.name != ".gitignore"]
    locks = [path for path in left if path.suffix == ".lock"]
    assert not [path for path in left if TEMPORARY.fullmatch(path.name) or "unproved" in path.name], said
    assert [path for path in left if path not in locks and path.is_dir()] == [], said
    for path in locks:  # of a process that was killed when all was done
        assert holder(path.with_name(path.name[1:].removesuffix(".lock"))) is None, said
    for folder, files in contents(world.place).items():
        differ = [unlike(files, reference.get(folder, {})) for reference in references]
        assert [] in differ, f"{said}\n{folder}: {differ}"
    assert contents(world.place).keys() == references[0].keys(), said
    for path in world.place.glob("runs/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        names = [(row["step"], name) for row in rows for name in row if name != "step"]
        assert len(names) == len(set(names)), f"{said}\ntwice in {path}"
    return said


def drawn(count: int, chance: random.Random) -> Sequence[Pair]:
    """Every pair about equally often, in any order."""
    chosen: list[Pair] = []
    while len(chosen) < count:
        chosen += chance.sample(MATCHES, len(MATCHES))
    return chosen[:count]


@pytest.mark.soak
def test_pairs_of_commands_and_kills(tmp_path: Path) -> None:
    world, chance = World(tmp_path), random.Random(SEED)
    for number, pair in enumerate(drawn(PAIRS, chance)):
        print(f"\npair {number + 1} of {PAIRS}: ", end="")
        meet(world, pair, chance)
