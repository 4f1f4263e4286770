"""What tests of every room share: a small contract, synthetic segments, a shard set on disk, the real recordings."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

from hub_server import LocalHub, at_this_hub
from object_store import Store, s3_store
from shared import QUIET
from xwam_ft import remote
from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Camera, Contract, DepthCode, Image, Quantiles, Slot, Timing
from xwam_ft.depth_code import metres_to_code
from xwam_ft.shard_writer import (
    ShardSetWriter,
    encode_segment,
    episode_entry,
    segment_bounds,
    segment_key,
)
from xwam_ft.shards import Segment, ShardSet

if TYPE_CHECKING:
    from xwam_ft.encode.cache import LatentCache

# A first example may import a library for seconds, on a machine that does other things: no test is a race.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SHAPED = ["adapters", "backbone", "blocks", "losses", "network", "noise", "reference", "sampler", "solver", "streams",
    "tokens",
]  # fmt: skip
"""Files of the model room whose annotated shapes are checked in every call that tests make (jaxtyping and beartype)."""


class _ShapeChecks(MetaPathFinder):
    """Has jaxtyping load those files. The package needs neither library and imports the annotations' names for type
    checkers alone; in the text that is loaded here, and in nothing else, these imports happen."""

    def __init__(self) -> None:
        from jaxtyping import install_import_hook

        installed = install_import_hook([f"xwam_ft.model.{name}" for name in SHAPED], "beartype.beartype")
        installed.uninstall()
        self._jaxtyping = installed.hook

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = self._jaxtyping.find_spec(fullname, path, target)
        if spec is not None:
            loader: Any = spec.loader
            compiled = loader.source_to_code
            loader.source_to_code = lambda data, path: compiled(
                data.replace(b"\nif TYPE_CHECKING:\n", b"\nif True:\n"), path
            )
            loader.path_stats = _not_cached
        return spec


def _not_cached(path: str) -> Any:
    """Bytecode in a cache does not say from which text it was made."""
    raise OSError(path)


sys.meta_path.insert(0, _ShapeChecks())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process ends with the longest while the other has nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(0))
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_collection() -> None:
    gc.disable()  # imports leave nothing to collect, and millions of objects to look through: an eighth of their time


def pytest_collection_finish() -> None:
    gc.freeze()  # what imports and collection left behind is looked through no more: a tenth of the suite's time
    gc.enable()
    _count_once()


def _count_once() -> None:
    """Every training begins with a plan, and most of that is to count what its network keeps. That depends on what is
    told apart here and on nothing else, so that trainings alike are counted once. Tests of counting itself call it in
    its own file (plan/memory.py), where it counts each time."""
    plans: Any = sys.modules.get("xwam_ft.plan.plan")
    if plans is None:
        return
    count, known = plans.count_activations, {}

    def counted(network: Any, recipe: Any, batch: Any, **how: Any) -> Any:
        parameters = [
            (name, tuple(one.shape), one.dtype, one.device, one.requires_grad)
            for name, one in network.named_parameters()
        ]
        shapes = {name: getattr(value, "shape", value) for name, value in vars(batch).items()}
        sections = recipe.model_dump_json(include={"backbone", "model", "noise", "optim", "trainer"})
        alike = repr((parameters, network.config, network.transformer.config, shapes, sections, how))
        if alike not in known:
            known[alike] = count(network, recipe, batch, **how)
        return known[alike]

    plans.count_activations = counted


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or extension modules complain of leaks on exit


HEIGHT, WIDTH = 32, 64
NEAR, FAR = 0.2, 3.0
INSTRUCTIONS = ("pick up the cube", "put the cube in the bowl")
EPISODES = (29, 22, 17)  # frames of each; the last is held out


def make_contract(convention: str = "relative_to_chunk_start", **changes: object) -> Contract:
    """One arm (pose and gripper), a static and a wrist camera, 2-frame steps, metric depth. P = Q = 8, Da = 7."""
    tool = Slot(
        name="tool",
        kind="pose",
        columns=tuple(f"tool.{name}" for name in POSE_ELEMENTS),
        elements=POSE_ELEMENTS,
        units=POSE_UNITS,
        frame="base",
        convention=convention,  # pyright: ignore[reportArgumentType]
    )
    gripper = Slot(
        name="gripper",
        kind="gripper",
        columns=("gripper.width",),
        elements=("width",),
        units=("m",),
        convention="absolute",
        gripper_open=0.08,
        gripper_closed=0.0,
    )
    fields: dict[str, object] = {
        "embodiment": "test-arm",
        "cameras": (
            Camera(
                name="front",
                source_height=HEIGHT,
                source_width=WIDTH,
                intrinsics=(40.0, 40.0, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5),
                pose=((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, -1.0), (0.0, -1.0, 0.0, 0.3), (0.0, 0.0, 0.0, 1.0)),
            ),
            Camera(
                name="wrist",
                kind="wrist",
                source_height=HEIGHT,
                source_width=WIDTH,
                intrinsics=(36.0, 36.0, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5),
                pose=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.05), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
                mount="tool",
            ),
        ),
        "image": Image(height=HEIGHT, width=WIDTH),
        "timing": Timing(fps=10.0, frame_skip=2, action_skip=1, clip_frames=5),
        "slots": (tool, gripper),
        "depth": DepthCode(kind="metric", near=NEAR, far=FAR, source="sensor"),
        "quantiles": Quantiles(
            proprio_low=(-0.5, -0.5, -0.5, -1.0, -1.0, -1.0, -1.0, 0.0),
            proprio_high=(0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.08),
            action_low=(-0.2, -0.2, -0.2, -0.5, -0.5, -0.5, 0.0),
            action_high=(0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.08),
        ),
        "prompts": INSTRUCTIONS,
    }
    return Contract.model_validate(fields | changes)


def make_motion(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States and commands [F, 8]: a smooth wander of pose and gripper, the command ahead of the state."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 7)
    speed = rng.uniform(0.05, 0.15, 7)

    def at(time: np.ndarray) -> np.ndarray:
        waves = np.sin(phase + speed * time[:, None])
        turn = Rotation.from_rotvec(0.4 * waves[:, 3:6]).as_quat(scalar_first=True)
        turn = np.where(turn[:, :1] < 0, -turn, turn)
        return np.concatenate([0.3 * waves[:, :3], turn, 0.04 + 0.04 * waves[:, 6:]], axis=1)

    time = np.arange(frames, dtype=np.float64)
    return at(time), at(time + 1.5)


def make_segment(contract: Contract, frames: int, *, episode: int = 0, first: int = 0, seed: int = 0) -> Segment:
    """A whole-episode segment: a bright square that moves over a gradient, its depth with a hole, a wandering arm."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    views = len(contract.cameras)
    rgb = np.zeros((views, frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    metres = np.zeros((views, frames, HEIGHT, WIDTH))
    for view in range(views):
        for frame in range(frames):
            rgb[view, frame, ..., 0] = x * 4
            rgb[view, frame, ..., 1] = y * 6
            rgb[view, frame, ..., 2] = 60 + 80 * view
            metres[view, frame] = 1.0 + 0.5 * y / HEIGHT + 0.2 * view
            left = (3 + frame + seed) % (WIDTH - 8)
            rgb[view, frame, 10:18, left : left + 8] = 240
            metres[view, frame, 10:18, left : left + 8] = 0.5
            metres[view, frame, :4, :4] = 0.0  # the sensor sees nothing there
    state, command = make_motion(frames, seed)
    return Segment(
        key=segment_key(episode, first),
        episode=episode,
        split="held_out" if episode == len(EPISODES) - 1 else "train",
        first_frame=first,
        first_start=first,
        num_starts=frames,
        instruction=INSTRUCTIONS[episode % 2],
        rgb=rgb,
        depth=metres_to_code(metres, NEAR, FAR) if contract.depth.kind == "metric" else None,
        proprio=state,
        proprio_mask=np.ones_like(state),
        action=command,
        action_mask=np.ones_like(command),
    )


def cut_segment(whole: Segment, bounds: tuple[int, int, int, int]) -> Segment:
    """The part of a whole-episode segment that `segment_bounds` names."""
    first, count, first_start, num_starts = bounds
    rows = slice(first, first + count)
    return Segment(
        key=segment_key(whole.episode, first),
        episode=whole.episode,
        split=whole.split,
        first_frame=first,
        first_start=first_start,
        num_starts=num_starts,
        instruction=whole.instruction,
        rgb=whole.rgb[:, rows],
        depth=None if whole.depth is None else whole.depth[:, rows],
        proprio=whole.proprio[rows],
        proprio_mask=whole.proprio_mask[rows],
        action=whole.action[rows],
        action_mask=whole.action_mask[rows],
    )


def write_shard_set(folder: Path, contract: Contract, shard_bytes: int = 40_000) -> ShardSet:
    """Three short episodes (two train, one held out) in segments of at most 16 frames, in several small tars."""
    episodes = []
    with ShardSetWriter(folder, shard_bytes) as writer:
        for episode, frames in enumerate(EPISODES):
            whole = make_segment(contract, frames, episode=episode, seed=episode)
            keys = []
            for bounds in segment_bounds(frames, contract.timing, 16):
                segment = cut_segment(whole, bounds)
                writer.add(encode_segment(segment, contract.camera_names, contract.timing.fps))
                keys.append(segment.key)
            episodes.append(
                episode_entry(
                    episode,
                    keys,
                    frames=frames,
                    split=whole.split,
                    instructions=[whole.instruction],
                    source=f"recording-{episode}",
                    success=True,
                )
            )
        return writer.finish(contract, episodes)


@pytest.fixture(scope="session")
def contract() -> Contract:
    return make_contract()


@pytest.fixture(scope="session")
def contract_with() -> Callable[..., Contract]:
    """`make_contract`, for tests that need another convention or other fields."""
    return make_contract


@pytest.fixture(scope="session")
def segment(contract: Contract) -> Segment:
    """One synthetic episode of 29 frames as one segment."""
    return make_segment(contract, EPISODES[0])


@pytest.fixture(scope="session")
def shard_set(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A synthetic shard set on disk; read it, do not change it (`.folder` is where it stands)."""
    return write_shard_set(tmp_path_factory.mktemp("shards") / "set", contract)


@pytest.fixture(scope="session")
def make_shard_set() -> Callable[[Path, Contract], ShardSet]:
    """`write_shard_set`, for tests that change or compare shard sets."""
    return write_shard_set


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings and URDFs, or a skip."""
    place = os.environ.get("XWAM_FT_TEST_DATA")
    if not place:
        pytest.skip("XWAM_FT_TEST_DATA is not set: no real recordings here")
    return Path(place)


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub on this machine that this process asks, not logged in, with an empty cache."""
    local = at_this_hub(monkeypatch, tmp_path / "hf")
    yield local
    local.stop()


@pytest.fixture
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two further tries, at once."""
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02))


@pytest.fixture
def no_gcsfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where [gcs] is not installed."""
    monkeypatch.setattr(remote, "find_spec", lambda name: None if name == "gcsfs" else find_spec(name))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick_tries: None) -> Iterator[Store]:
    """An S3 server on this machine, with an empty bucket."""
    pytest.importorskip("moto", reason="moto is not installed: pip install 'xwam-ft[dev]'")
    with s3_store(monkeypatch, tmp_path / "xwam-ft-cache") as store:
        yield store


@pytest.fixture(scope="session")
def trained_run(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the synthetic shard set, with averaged weights; read it, do not change it."""
    import torch
    import yaml

    from xwam_ft.recipe import load_recipe
    from xwam_ft.train.train import train_recipe

    folder = tmp_path_factory.mktemp("trained")
    shard_set = write_shard_set(folder / "shards", contract)  # its own: training adds a latent cache
    rates = {"lr_lora": 1e-2, "lr_heads": 1e-2, "lr_depth": 1e-2, "warmup_steps": 0, "ema_decay": 0.5}
    tree = {
        "backbone": {"path": "tiny", "dtype": "float32"},
        "data": {"shards": str(shard_set.folder), "clip_stride": 7},
        "model": {"lora": {"rank": 2, "alpha": 2}, "depth": {"blocks": 1}},
        "noise": {"action_prefix": {"max": 2}},
        "optim": rates,
        "trainer": {"max_steps": 2, "batch_size": 2, "threads": 1, "accelerator": "cpu"},
        "validation": {"every_steps": 0, "clips": 1, "action_steps": 2, "video_steps": 3, "imagine_clips": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    threads = torch.get_num_threads()
    try:
        train_recipe(load_recipe(folder / "recipe.yaml"), folder / "run", QUIET)
        return folder / "run"
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy_set(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A synthetic shard set for the rooms that train, which add latent caches to it."""
    return write_shard_set(tmp_path_factory.mktemp("toy") / "set", contract)


@pytest.fixture(scope="session")
def toy_cache(toy_set: ShardSet) -> LatentCache:
    """Its latent cache, by the recipe that those rooms' tests share."""
    import torch

    from tiny_training import recipe_tree
    from xwam_ft.encode.encode import encode
    from xwam_ft.recipe import Recipe

    return encode(Recipe.model_validate(recipe_tree(toy_set.folder)), toy_set, torch.device("cpu"), QUIET)


@pytest.fixture(scope="session")
def toy_run(toy_set: ShardSet, toy_cache: LatentCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps by that recipe that nothing stopped; read it, do not change it."""
    import yaml

    from tiny_training import recipe_tree, train

    folder = tmp_path_factory.mktemp("runs")
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe_tree(toy_set.folder)))
    return train(folder / "toy.yaml", folder / "whole", [], QUIET)


@pytest.fixture(scope="session")
def bundle(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, exported; read it, do not change it."""
    from xwam_ft.export.export import export_run

    return export_run(trained_run, tmp_path_factory.mktemp("exported") / "bundle", console=QUIET)
