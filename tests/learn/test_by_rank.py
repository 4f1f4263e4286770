"""Under FSDP2 every process reads its own rows: to the bit what cutting a whole network gives, in files and steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from xwam_ft.contract import Contract
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.learn import start as starting
from xwam_ft.learn.start import Start, start_network
from xwam_ft.model.sharding import read_rows, shard
from xwam_ft.recipe import Recipe

CPU = torch.device("cpu")
FULL = {"train": "full", "depth": {"blocks": 1, "train": "full"}}
COPY = {"lora": {"rank": 3, "alpha": 2}, "depth": {"blocks": 1, "branch": "copy"}}
SHARED = {"lora": {"rank": 3, "alpha": 2}, "depth": {"blocks": 1, "branch": "adapter"}}


@pytest.fixture(params=[0, 2], ids=["the first", "the last"])
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """This process as one of three that are not there."""
    torch.distributed.init_process_group("fake", rank=request.param, world_size=3, store=FakeStore())
    yield request.param
    torch.distributed.destroy_process_group()


def started(recipe: Recipe, contract: Contract, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> Start:
    with monkeypatch.context() as patched:
        if whole:
            patched.setattr(starting, "defers", lambda recipe: False)
        return start_network(recipe, contract, None, None, None)


def held(start: Start) -> dict[str, Tensor]:
    """What this process holds once the network is cut."""
    shard(start.network, CPU, 3)
    if start.unread is not None:
        start.unread.read_into(start.network, CPU)
    named = [*start.network.named_parameters(), *start.network.named_buffers()]
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in named}


def with_model(changed: Callable[..., Recipe], model: dict[str, Any], dtype: str, backbone: str) -> Recipe:
    return changed(
        model=model,
        backbone={"path": backbone, "dtype": dtype},
        trainer={"strategy": "fsdp2"},
        optim={"ema_decay": None},
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("of", "model"),
    [("tiny", FULL), ("tiny", COPY), ("tiny", SHARED), ("imported", FULL), ("imported", COPY)],
    ids=["full", "copied branch", "shared branch", "full, a branch brought", "a brought branch"],
)
def test_a_process_holds_what_cutting_the_whole_leaves_it(
    rank: int,
    changed: Callable[..., Recipe],
    contract: Contract,
    imported: Path,
    model: dict[str, Any],
    dtype: str,
    of: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = with_model(changed, model, dtype, str(imported) if of == "imported" else of)
    ours, theirs = (started(recipe, contract, monkeypatch, whole=whole) for whole in (False, True))
    assert ours.unread is not None
    assert theirs.unread is None
    assert ours.fingerprint == theirs.fingerprint
    trained = {name for name, parameter in theirs.network.named_parameters() if parameter.requires_grad}
    ours_held, theirs_held = held(ours), held(theirs)
    assert ours_held.keys() == theirs_held.keys()
    for name, value in theirs_held.items():
        assert not ours_held[name].is_meta, name
        assert ours_held[name].dtype == value.dtype, name
        assert torch.equal(ours_held[name], value), name
        assert ours_held[name].is_contiguous(), name
    assert trained == {name for name, parameter in ours.network.named_parameters() if parameter.requires_grad}
    assert any(value.numel() for value in ours_held.values())


def test_files_are_read_by_rows(changed: Callable[..., Recipe], contract: Contract, monkeypatch: Any) -> None:
    """Of three processes the last asks for no row of another one."""
    torch.distributed.init_process_group("fake", rank=2, world_size=3, store=FakeStore())
    try:
        start = started(with_model(changed, FULL, "float32", "tiny"), contract, monkeypatch, whole=False)
        assert start.unread is not None
        asked: list[tuple[str, slice]] = []
        rows = {}
        for name, one in start.unread.rows.items():
            object.__setattr__(one, "take", _told(asked, name, one.take))
            rows[name] = one
        shapes = {name: parameter.shape for name, parameter in start.network.named_parameters()}
        shard(start.network, CPU, 3)
        read_rows(start.network, rows, CPU)
    finally:
        torch.distributed.destroy_process_group()
    assert len(asked) > 30
    for name, part in asked:
        first = 2 * -(-shapes[name][0] // 3)
        assert (part.start, part.stop) == (first, shapes[name][0]), name


def _told(asked: list[tuple[str, slice]], name: str, take: Callable[[slice], Tensor]) -> Callable[[slice], Tensor]:
    def telling(rows: slice) -> Tensor:
        asked.append((name, rows))
        return take(rows)

    return telling


def test_what_is_worked_out_on_whole_weights_is_loaded_whole(
    changed: Callable[..., Recipe], contract: Contract, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dora = with_model(changed, {"lora": {"rank": 2, "dora": True}, "depth": {"blocks": 1}}, "float32", "tiny")
    ddp = with_model(changed, COPY, "float32", "tiny")
    ddp = ddp.model_copy(update={"trainer": ddp.trainer.model_copy(update={"strategy": "ddp"})})
    untrained = with_model(changed, COPY, "float32", "tiny-untrained")
    for recipe in (dora, ddp, untrained):
        start = started(recipe, contract, monkeypatch, whole=False)
        assert start.unread is None
        assert not any(parameter.is_meta for parameter in start.network.parameters())
    wide = {"lora": {"rank": 64, "alpha": 64}, "depth": {"blocks": 1, "branch": "adapter"}}
    fitted = with_model(changed, wide, "float32", str(imported))
    with pytest.raises(UserError, match="the adapter cannot hold the depth branch"):  # it was tried on real numbers
        started(fitted, contract, monkeypatch, whole=False)


def test_a_weight_that_is_missing_or_misshapen_is_one_sentence(
    changed: Callable[..., Recipe], contract: Contract, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(imported, tmp_path / "backbone")
    name = "blocks.0.attn1.to_q.weight"
    [file] = [one for one in (folder / "transformer").glob("*.safetensors") if name in load_file(one)]
    tensors = load_file(file)
    recipe = with_model(changed, COPY, "float32", str(folder))
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, file)
    with pytest.raises(UserError, match=rf"{name} \[\d+, \d+\] \(wanted .*of another shape than its config.json says"):
        started(recipe, contract, monkeypatch, whole=False)
    save_file({one: tensor for one, tensor in tensors.items() if one != name}, file)
    with pytest.raises(UserError, match=f"{name} is in none of its files") as error:
        started(recipe, contract, monkeypatch, whole=False)
    assert str(folder / "transformer") in str(error.value)


SCRIPT = """
import json, sys
from pathlib import Path
from rich.console import Console
from xwam_ft.recipe import load_recipe
from xwam_ft.learn import start
from xwam_ft.train.train import resume_run, train_recipe
by_rank, deferred = start.defers, []
for recipe, run, resumes in json.loads(sys.argv[1]):
    start.defers = (lambda recipe: False) if "whole" in run else by_rank
    if resumes:
        resume_run(Path(run), Console(quiet=True))
    else:
        train_recipe(load_recipe(Path(recipe)), Path(run), Console(quiet=True))
"""


@pytest.mark.slow
def test_training_resuming_and_starting_from_another_run_come_to_the_same_bytes(
    changed: Callable[..., Recipe], cache: LatentCache, tmp_path: Path
) -> None:
    """Two processes, started by torchrun: whole loading beside loading by rank."""
    quick = {"every_steps": 0, "clips": 1, "action_steps": 1, "video_steps": 1}
    trainer = {"batch_size": 2, "accumulate": 2, "devices": 2, "strategy": "fsdp2", "max_steps": 2}
    common = {"trainer": trainer, "validation": quick, "checkpoint": {"every_steps": 1, "keep": 3}}
    jobs: list[tuple[str, str, bool]] = []

    def write(name: str, **more: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        init = more.pop("init_from", None)
        tree = changed(**common, **more).model_dump(mode="json") | {"init_from": init}
        path.write_text(yaml.safe_dump(tree))
        return path

    full = write("full", model={**FULL, "gradient_checkpointing": True})
    for way in ("ranks", "whole"):
        jobs.append((str(full), str(tmp_path / f"full-{way}"), False))
    begun = write("begun", model={**FULL, "gradient_checkpointing": True}, init_from=str(tmp_path / "full-ranks"))
    for way in ("ranks", "whole"):
        jobs.append((str(begun), str(tmp_path / f"begun-{way}"), False))
    _torchrun(tmp_path, jobs)
    for name in ("full", "begun"):
        same(tmp_path / f"{name}-ranks", tmp_path / f"{name}-whole")
    begins = [load_file(tmp_path / f"begun-{way}/init/trainable.safetensors") for way in ("ranks", "whole")]
    assert all(torch.equal(begins[0][name], value) for name, value in begins[1].items())
    assert begins[0].keys() == load_file(tmp_path / "full-ranks/checkpoints/step-000002/ema.safetensors").keys()

    shutil.copytree(tmp_path / "full-ranks", tmp_path / "again-ranks")
    shutil.rmtree(tmp_path / "again-ranks/checkpoints/step-000002")
    _torchrun(tmp_path, [("", str(tmp_path / "again-ranks"), True)])
    same(tmp_path / "again-ranks", tmp_path / "full-whole")


def _torchrun(folder: Path, jobs: list[tuple[str, str, bool]]) -> None:
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "script.py"), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]


def same(ours: Path, theirs: Path) -> None:
    for step in (1, 2):
        for file in ("trainable", "ema", "optimizer"):
            one, other = (run / f"checkpoints/step-{step:06d}/{file}.safetensors" for run in (ours, theirs))
            assert one.read_bytes() == other.read_bytes(), (ours.name, step, file)
