"""Single mutations of the rooms that move a robot, each against the tests that own its file: what do tests not see?

    python benchmarks/mutants.py [--only WORD] [--jobs 2]            (or `make mutants`)

mutations.txt lists them: under a heading `@ file | tests` each mutation is a line `- old text` and a line `+ new text`,
both several lines where it takes several. They are applied one at a time in copies of the repository, never here.
A text that is not found once, or tests that fail unmutated, are errors: neither would be a result. Exit code 1 where
a mutation survives.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutations.txt")
MEMORY = 8 << 30  # a mutant may ask for any amount
# What tests import for seconds; it is imported once, and each mutation's tests begin in a fork of this process.
HEAVY = ("av", "diffusers", "h5py", "lightning.pytorch", "matplotlib.pyplot", "peft", "pyarrow", "rich.console",
         "scipy.spatial", "scipy.stats", "torch", "torchmetrics", "transformers", "typer", "yaml")  # fmt: skip
LAZY = ("AutoencoderKLWan", "UniPCMultistepScheduler", "WanTransformer3DModel")  # of diffusers
AGAIN = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")  # pytest twice in a process
NOT_FOUND = (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
TIMES = itertools.count(
    int(time.time()) + 86_400
)  # a time of its own for each write: bytecode is kept by time and size


@dataclass(frozen=True)
class Mutation:
    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    line: int  # of mutations.txt

    @property
    def name(self) -> str:
        return (
            f"{self.file.removeprefix('src/xwam_ft/')}: {' '.join(self.old.split())}  ->  {' '.join(self.new.split())}"
        )


def read(path: Path = LIST) -> list[Mutation]:
    """The mutations of a list; a `ValueError` names a line that is none."""
    found: list[Mutation] = []
    file, tests, old, new, at = "", (), [], [], 0
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), "@"], start=1):
        mark, text = line[:1], line[2:]
        if new and mark != "+":
            found.append(Mutation(file, tests, "\n".join(old), "\n".join(new), at))
            old, new = [], []
        if mark == "@" and not old:
            file, _, rest = (part.strip() for part in text.partition("|"))
            tests = tuple(rest.split())
        elif mark == "-" and file and tests:
            old, at = [*old, text], at if old else number
        elif mark == "+" and old:
            new.append(text)
        elif mark not in ("", "#") or old:
            raise ValueError(f"{path}, line {number}: is no mutation: {line}")
    return found


def mutated(mutation: Mutation, root: Path) -> str:
    """The file's text with the mutation in it.

    Raises:
        ValueError: the old text is not there once.
    """
    path = root / mutation.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (count := text.count(mutation.old)) != 1:
        found = f"holds it {count} times" if path.is_file() else "is not there"
        raise ValueError(
            f"{LIST.name}, line {mutation.line}: {mutation.old!r} is to be mutated, and {mutation.file} {found}; "
            "write it as the file has it now"
        )
    return text.replace(mutation.old, mutation.new)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    moment = next(TIMES)
    os.utime(path, (moment, moment))


@contextmanager
def copies(count: int) -> Generator[list[Path]]:
    """Copies of what git knows of this working tree."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder:
        trees = [Path(folder) / str(number) for number in range(count)]
        for tree, name in itertools.product(trees, filter(None, names)):
            if (ROOT / name).is_file():  # else it is removed, and not yet committed
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        yield trees


@dataclass(frozen=True)
class Job:
    """Tests to run on a tree; `done` is told pytest's exit code (None: too slow, negative: a signal) and its words."""

    tests: tuple[str, ...]
    prepare: Callable[[Path], None]
    done: Callable[[int | None, str, float], None]


def run(jobs: Sequence[Job], trees: list[Path], seconds: float) -> None:
    """Every job in a process of its own, as many at a time as there are trees."""
    waiting, free = list(jobs), list(trees)
    running: dict[int, tuple[Job, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, tree = waiting.pop(0), free.pop()
                job.prepare(tree)
                sys.stdout.flush()
                if (process := os.fork()) == 0:
                    _test(tree, job.tests)
                running[process] = job, tree, time.monotonic()
            for process, (job, tree, began) in list(running.items()):
                took = time.monotonic() - began
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and took < seconds:
                    continue
                if not ended:
                    os.killpg(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                del running[process]
                free.append(tree)
                said = tree.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
                job.done(os.waitstatus_to_exitcode(status) if ended else None, said, took)
            time.sleep(0.1)
    finally:
        for process in running:
            os.killpg(process, signal.SIGKILL)  # each leads a group of its own


def _test(tree: Path, tests: tuple[str, ...]) -> NoReturn:
    """In the fork: pytest, with the copy as what is imported, by processes that tests start as well."""
    code = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        output = os.open(tree.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        os.environ.update(PYTHONPATH=str(tree / "src"), OMP_NUM_THREADS="1")
        sys.path[:] = [str(tree), str(tree / "src"), *sys.path[1:]]
        code = int(pytest.main(["-x", "-q", "--no-header", "-m", "not slow and not soak", *AGAIN, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose file or text holds this word")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds of a mutation's tests")
    options = parser.parse_args()
    chosen = [mutation for mutation in read() if options.only in mutation.name]
    texts = [mutated(mutation, ROOT) for mutation in chosen]
    for name in HEAVY:
        importlib.import_module(name)
    for name in LAZY:
        getattr(importlib.import_module("diffusers"), name)
    pytest.main(["--collect-only", "-qq", *AGAIN, str(LIST.parent)])  # pytest's plugins
    whole = {mutation.file: (ROOT / mutation.file).read_text(encoding="utf-8") for mutation in chosen}
    survivors: list[Mutation] = []
    changed: dict[Path, str] = {}  # of each copy, the file that is mutated in it
    started = time.monotonic()

    def unmutated(tests: tuple[str, ...]) -> Job:
        def done(code: int | None, said: str, took: float) -> None:
            if code != pytest.ExitCode.OK:
                raise SystemExit(f"{' '.join(tests)}: does not pass unmutated (exit code {code})\n{said[-3000:]}")
            print(f"sound    {took:5.1f} s  {' '.join(tests)}", flush=True)

        return Job(tests, lambda tree: None, done)

    def job(mutation: Mutation, text: str) -> Job:
        def prepare(tree: Path) -> None:
            if (before := changed.get(tree)) is not None:
                write(tree / before, whole[before])
            write(tree / mutation.file, text)
            changed[tree] = mutation.file

        def done(code: int | None, said: str, took: float) -> None:
            if code in NOT_FOUND:
                raise SystemExit(f"{mutation.name}: pytest ended with {code}\n{said[-3000:]}")
            if code == pytest.ExitCode.OK:
                survivors.append(mutation)
            verdict = "SURVIVED" if code == pytest.ExitCode.OK else "too slow" if code is None else "killed"
            by = next((line.split()[1] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))), "")
            print(f"{verdict:8} {took:5.1f} s  {mutation.name}   {by}", flush=True)

        return Job(mutation.tests, prepare, done)

    with copies(options.jobs) as trees:
        run([unmutated(tests) for tests in sorted({mutation.tests for mutation in chosen})], trees, options.timeout)
        run([job(*pair) for pair in zip(chosen, texts, strict=True)], trees, options.timeout)
    for mutation in survivors:
        print(f"survivor: {mutation.name}   ({' '.join(mutation.tests)})")
    share = len(survivors) / max(1, len(chosen))
    print(f"{len(survivors)} of {len(chosen)} survive ({share:.1%}), {time.monotonic() - started:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
