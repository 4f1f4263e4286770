"""xwam-ft: fine-tune X-WAM, a 4D world-action model, on your own teleoperation recordings.

The map of the package. The commands are the rooms; what several of them share are nouns, files in the hall.
Data walks through once:  raw recordings --prepare--> shards --train--> run --export--> bundle --policy--> actions

Front doors
    api.py            every verb as a function: `xwam_ft.train(...)`
    api_use.py        its second half, from a run to a robot
    results.py        what they return
    cli.py            the verbs of `xwam-ft`, a thin layer over it
    cli_use.py        its second half, from a run to a robot
    cli_shards.py     those of `xwam-ft shards`, over the room sets/
    demo.py           the whole job on the bundled recordings
    diagnosis.py      what this machine has and lacks, on one page to paste

The hall
    arguments.py      what a function is given against what it takes
    errors.py         UserError: what is wrong, where, the fix; one sentence, exit code 2
    consoles.py       where verbs print: names as people named them, commands that can be pasted
    places.py         how a checkpoint of a run is named
    files.py          atomic writing, JSON, hashes
    locks.py          one writer a place
    machine.py        libraries against those that were tried, free memory, what CPU and GPU compute in
    strict_yaml.py    YAML files that know their keys, and tell every mistake at once
    recipe.py         the schema of a training recipe
    recipe_model.py   its `model` section: what trains, by which adapters
    contract.py       what prepare, train, export and policy must agree on
    poses.py          poses as numbers, and what lies between two of them
    conventions.py    commands <-> actions by convention, numbers <-> normalised numbers
    quantiles.py      what numbers are normalised by, from the recorded motion
    limits.py         what commands are held in, stated or recorded
    hub.py            the Hugging Face Hub: what a name means there, fetched by its commit
    remote.py         places at URLs (s3://, gs://, hf://, http://): reading, listing, writing, tries and sentences
    remote_errors.py  what to tell of errors there
    copies.py         copies of what is read from URLs, within a limit
    observation.py    the robot's side of the contract: observation -> model inputs, actions -> commands
    alias_table.py    a robot's own names and units of what it observes, as a contract keeps them
    aliases.py        an observation in them -> in ours, and a command back
    kinematics.py     URDF chains: joints -> poses, and back
    prompts.py        the one form of an instruction, however people type it
    decoding.py       an open video: its pictures by index, by decord or PyAV
    media.py          probe, decode, encode video
    pictures.py       the one resize and crop rule, for pictures, depth codes and intrinsics
    depth_code.py     metres <-> 16-bit inverse-depth code <-> what the VAE sees
    processes.py      jobs side by side in worker processes
    ray_cluster.py    the same on a Ray cluster
    progress.py       a progress bar with count, rate and time left
    shard_index.py    what a shard set says of its own files
    shard_files.py    those files, in a folder or at a URL
    shards.py         a shard set: segments, clips; reading
    shard_writer.py   writing it
    verb.py           a room's package that can be called

The rooms, each importing only those before it (prepare and model do not know each other)
    prepare/          raw recordings -> shards
    sets/             shard sets -> others of their episodes; out again as a LeRobot dataset
    inspect/          raw recordings -> what they hold, and a starter embodiment file
    model/            a batch -> velocities -> losses or samples
    convert/          checkpoints of others -> our backbone folders
    encode/           shards and a recipe -> clips a network can eat; the latent cache
    policy/           a network and its contract -> actions; the bundle
    evaluate/         a policy with shards or in an environment -> numbers in physical units, pictures, reports
    runs/             a run's folder: what lies in it, what is read back from it
    learn/            clips and a recipe -> a network that learns: the modules for any Lightning Trainer
    plan/             what a run will hold, fill and take
    train/            shards and a recipe -> a run folder
    export/           a run -> a bundle that has proved itself
    view/             shards, a run or a bundle -> a page in the browser to watch them on

Beside them
    bundled/          recordings, recipes and the tiny weights that ship with the package
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xwam_ft import sets
    from xwam_ft.api import (
        doctor,
        encode,
        evaluate,
        export,
        imagine,
        inspect,
        plan,
        prepare,
        runs,
        serve,
        train,
        view,
    )
    from xwam_ft.contract import Contract, load_contract
    from xwam_ft.errors import UserError
    from xwam_ft.learn.data import ClipDataModule
    from xwam_ft.learn.module import TrainingModule
    from xwam_ft.policy.policy import Policy
    from xwam_ft.recipe import Recipe, load_recipe
    from xwam_ft.results import Bundle, PreparedSet, Run, Runs
    from xwam_ft.shards import ShardSet

__version__ = "0.1.0"
__all__ = [
    "Bundle",
    "ClipDataModule",
    "Contract",
    "Policy",
    "PreparedSet",
    "Recipe",
    "Run",
    "Runs",
    "ShardSet",
    "TrainingModule",
    "UserError",
    "doctor",
    "encode",
    "evaluate",
    "export",
    "imagine",
    "inspect",
    "load_contract",
    "load_recipe",
    "plan",
    "prepare",
    "runs",
    "serve",
    "sets",
    "train",
    "view",
]

_HOMES = {
    **dict.fromkeys(("doctor", "imagine", "serve"), "api"),
    **dict.fromkeys(("Bundle", "PreparedSet", "Run", "Runs"), "results"),
    "ClipDataModule": "learn.data",
    "Contract": "contract",
    "Policy": "policy.policy",
    "Recipe": "recipe",
    "ShardSet": "shards",
    "TrainingModule": "learn.module",
    "UserError": "errors",
    "load_contract": "contract",
    "load_recipe": "recipe",
}
_ROOMS = (
    "encode",
    "evaluate",
    "export",
    "inspect",
    "plan",
    "prepare",
    "runs",
    "train",
    "view",
)  # packages that can be called, see verb.py


def __getattr__(name: str) -> Any:
    if name in (*_ROOMS, "sets"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
