"""The Python door: one import, lazy, callable whatever was imported first, quiet, typed results, one kind of error."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import xwam_ft
from xwam_ft import api
from xwam_ft.errors import UserError
from xwam_ft.recipe import load_recipe
from xwam_ft.shards import ShardSet

VERBS = (
    "inspect",
    "prepare",
    "encode",
    "plan",
    "train",
    "export",
    "runs",
    "imagine",
    "evaluate",
    "serve",
    "view",
    "doctor",
)
ROOMS = ("inspect", "prepare", "encode", "plan", "train", "runs", "export", "evaluate", "view")


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first", ["xwam_ft.train", "import xwam_ft.train.own_code", "from xwam_ft.train import own_code"]
)
def test_a_room_can_be_called_whatever_was_imported_first(first: str) -> None:
    """Files of the room that load no torch: seconds of every process, of which this says nothing."""
    run_python(
        f"import xwam_ft\n{first}\n"
        "import xwam_ft.train.shared_memory as another\n"
        "from xwam_ft import train\n"
        "assert train is xwam_ft.train is __import__('sys').modules['xwam_ft.train']\n"
        "assert xwam_ft.train.shared_memory is another and callable(xwam_ft.train)\n"
        "try:\n    xwam_ft.train()\nexcept xwam_ft.UserError as error:\n    fix = error.fix\n"
        "assert fix == 'give RECIPE, or --resume RUN'\n"
    )


def test_names_and_help_load_no_torch() -> None:
    run_python(
        "import pydoc, sys, xwam_ft\n"
        f"for name in {VERBS}:\n    assert callable(getattr(xwam_ft, name)), name\n"
        "    assert 'progress' in pydoc.render_doc(getattr(xwam_ft, name)), name\n"
        "from xwam_ft import PreparedSet, Run, Bundle, Recipe, ShardSet, UserError, load_recipe\n"
        "heavy = {'torch', 'lightning', 'diffusers'} & set(sys.modules)\nassert not heavy, heavy"
    )


@pytest.mark.parametrize("name", VERBS)
def test_help_says_what_each_argument_is(name: str) -> None:
    function = getattr(api, name)
    page = pydoc.plain(pydoc.render_doc(getattr(xwam_ft, name)))
    assert inspect.signature(getattr(xwam_ft, name)) == inspect.signature(function)
    assert "Raises:" in page
    told = inspect.getdoc(function) or ""
    plain = {"bundle", "run", "out", "shards", "episode", "device"}  # whose names and types say it
    unsaid = [key for key in inspect.signature(function).parameters if key not in plain and f"{key}" not in told]
    assert unsaid == []
    assert (name in ROOMS) == inspect.ismodule(getattr(xwam_ft, name))


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(xwam_ft.__file__).parent / "py.typed").is_file()
    assert set(VERBS) | {"Policy", "ShardSet", "Recipe", "load_recipe", "TrainingModule"} < set(xwam_ft.__all__)
    assert all(getattr(xwam_ft, name) is not None for name in xwam_ft.__all__)
    assert set(xwam_ft.__all__) <= set(dir(xwam_ft))


def test_a_run_tells_its_numbers(trained_run: Path) -> None:
    run = xwam_ft.Run.open(str(trained_run))
    assert (run.path, run.step, run.max_steps) == (trained_run, 2, 2)
    assert run.held_out["held_out/action"] > 0
    assert run.report.is_file()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.step = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_recipes_and_values_are_taken_in_every_form(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, values = trained_run / "recipe.yaml", {"trainer.max_steps": 7, "trainer.batch_size": 4}
    free: dict[str, Any] = {"memory_available": None, "host_available": None, "disk_free": ()}  # of this moment
    forms = (path, str(path), load_recipe(path))
    plans = [dataclasses.replace(xwam_ft.plan(given, **values), **free) for given in forms]
    assert plans[0] == plans[1] == plans[2]
    assert (plans[0].steps, plans[0].batch) == (7, 4)
    assert capsys.readouterr().out == ""
    xwam_ft.plan(path, progress=True)
    assert "trained" in capsys.readouterr().out
    with pytest.raises(UserError) as error:
        xwam_ft.plan(load_recipe(path), **{"trainer.max_step": 7})
    assert "max_steps" in error.value.fix + error.value.what
    with pytest.raises(UserError, match="a Recipe has no name"):
        xwam_ft.train(load_recipe(path))


def test_a_finished_run_goes_on_quietly_and_is_exported(
    trained_run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = xwam_ft.train(resume=xwam_ft.Run.open(trained_run))
    assert run.step == 2
    with pytest.raises(UserError, match="exists already") as error:
        xwam_ft.export(run, bundle)
    assert error.value.where == str(bundle)
    adapter = xwam_ft.export(run, tmp_path / "peft", format="peft")
    assert (adapter.path / "adapter_model.safetensors").is_file()
    assert (adapter.step, adapter.report) == (2, None)
    assert capsys.readouterr().out == ""


def test_a_shard_set_is_a_sequence(shard_set: ShardSet) -> None:
    opened = xwam_ft.ShardSet.open(str(shard_set.folder))
    keys = [entry.key for entry in shard_set.index.segments]
    assert len(opened) == len(keys) > 2
    assert [segment.key for segment in opened] == keys
    assert opened[-1].key == keys[-1]
    assert [segment.key for segment in opened[1:3]] == keys[1:3]
    with pytest.raises(IndexError):
        opened[len(keys)]


def test_plain_webdataset_opens_shards_as_the_page_says(shard_set: ShardSet) -> None:
    page = (Path(__file__).parents[1] / "docs/python.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "webdataset" in block]
    place: dict[str, Any] = {}
    exec(code.replace('"out/shards/shard-{000000..000003}.tar"', repr(shard_urls(shard_set))), place)
    samples = {sample["__key__"]: sample for sample in place["samples"]}
    assert samples.keys() == {entry.key for entry in shard_set.index.segments}
    for segment in shard_set:
        sample = samples[segment.key]
        assert sample["meta.json"]["instruction"] == segment.instruction
        assert (sample["motion.npz"]["proprio"] == segment.proprio).all()
        for view, camera in enumerate(shard_set.contract.camera_names):
            assert segment.depth is not None
            assert (sample[f"depth.{camera}.mkv"] == segment.depth[view]).all()
            pictures = sample[f"rgb.{camera}.mp4"].astype(int)
            assert pictures.shape == segment.rgb[view].shape
            assert abs(pictures - segment.rgb[view]).max() <= 8  # another decoder rounds otherwise


def shard_urls(shard_set: ShardSet) -> list[str]:
    return [str(shard_set.folder / shard.name) for shard in shard_set.index.shards]
