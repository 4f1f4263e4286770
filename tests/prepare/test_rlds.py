"""RLDS records written on the spot, described and not, and the real BridgeData sample through `prepare`."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.inspect.inspect import inspect
from xwam_ft.prepare.episode import EpisodeError
from xwam_ft.prepare.sources import open_source

_spec = importlib.util.spec_from_file_location("tf_examples", Path(__file__).with_name("tf_examples.py"))
assert _spec is not None
assert _spec.loader is not None
tf_examples: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tf_examples)

DATA = os.environ.get("XWAM_FT_TEST_DATA")
BRIDGE = "rlds_bridge/tests/debug_dataset/bridge_dataset"
STEPS = 6


def tensor(*shape: int, dtype: str = "float32", encoding: str = "none") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": encoding}}


def features() -> dict[str, Any]:
    observation = {
        "image": {"image": {"shape": {}, "dtype": "uint8", "encodingFormat": "jpeg"}},
        "depth": {"image": {"shape": {}, "dtype": "uint16", "encodingFormat": "png"}},
        "state": tensor(3),
        "force": tensor(2, dtype="float64", encoding="zlib"),
    }
    steps = {
        "observation": {"featuresDict": {"features": observation}},
        "action": tensor(2),
        "is_last": tensor(dtype="bool"),
        "language_instruction": {"text": {}},
        "language_embedding": tensor(512),
    }
    inside = {"steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}}}
    inside["episode_metadata"] = {"featuresDict": {"features": {"success": tensor(dtype="bool")}}}
    return {"featuresDict": {"features": inside}}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def episode(seed: int, **changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    pictures = [np.full((8, 12, 3), 10 * step + seed, np.uint8) for step in range(STEPS)]
    depths = [np.full((8, 12), 1000 * step + 1, np.uint16) for step in range(STEPS)]
    return {
        "steps/observation/image": [png(picture) for picture in pictures],
        "steps/observation/depth": [png(depth) for depth in depths],
        "steps/observation/state": random.normal(size=STEPS * 3).astype(np.float32).astype(float).tolist(),
        "steps/observation/force": [zlib.compress(random.normal(size=2).tobytes()) for _ in range(STEPS)],
        "steps/action": random.normal(size=STEPS * 2).astype(np.float32).astype(float).tolist(),
        "steps/is_last": [0] * (STEPS - 1) + [1],
        "steps/language_instruction": [b"open the door"] * STEPS,
        "steps/language_embedding": [0.0] * STEPS * 512,
        "episode_metadata/success": [seed],
        **changes,
    }


def dataset(folder: Path, *episodes: dict[str, Any], described: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records = [tf_examples.framed(tf_examples.encoded(made)) for made in episodes]
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(b"".join(records))
    if described:
        (folder / "features.json").write_text(json.dumps(features()))
    return folder


@pytest.mark.parametrize("described", [True, False])
def test_episodes_come_back_described_or_guessed(tmp_path: Path, described: bool) -> None:
    source = open_source(dataset(tmp_path / "toy" / "1.0.0", episode(0), episode(1), described=described).parent)
    assert source.info.fps is None
    names = {"observation.image": False, "observation.depth": True}
    assert {name: camera.depth for name, camera in source.info.cameras.items()} == names
    force = ("observation.force/0", "observation.force/1") if described else ()  # zlib bytes cannot be guessed
    state = tuple(f"observation.state/{i}" for i in range(3))
    assert set(source.info.columns) == {*state, *force, "action/0", "action/1"}
    for seed, found in enumerate(source.episodes()):
        made = episode(seed)
        assert (found.length, found.instructions, found.success) == (STEPS, ("open the door",), bool(seed))
        columns = found.table.read().columns
        got = np.stack([columns[f"observation.state/{i}"] for i in range(3)], axis=1)
        np.testing.assert_array_equal(got.ravel(), made["steps/observation/state"])
        if described:
            expected = np.stack([np.frombuffer(zlib.decompress(item)) for item in made["steps/observation/force"]])
            np.testing.assert_array_equal(columns["observation.force/1"], expected[:, 1])
        view, depth = found.views["observation.image"], found.views["observation.depth"]
        np.testing.assert_array_equal(view.read_rgb([4, 1])[:, 0, 0, 0], [40 + seed, 10 + seed])
        np.testing.assert_array_equal(depth.read_gray16([3])[0], np.full((8, 12), 3001))
        assert (view.size(), view.codec(), view.frames) == ((8, 12), "pictures", STEPS)


def test_one_file_alone_is_a_dataset(tmp_path: Path) -> None:
    dataset(tmp_path, episode(0), described=False)
    assert len(open_source(tmp_path / "toy-train.tfrecord-00000-of-00001").episodes()) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps/action": [1.0] * 7}, "steps/action holds 7 numbers, not 6 steps of 2"),
        ({"steps/observation/force": [b"no"] * STEPS}, "steps/observation/force does not decode"),
    ],
)
def test_numbers_that_do_not_fit_are_told(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    (found,) = open_source(dataset(tmp_path, episode(0, **changes))).episodes()
    with pytest.raises(EpisodeError, match=sentence):
        found.table.read()


def test_pictures_that_do_not_fit_are_told(tmp_path: Path) -> None:
    small = [png(np.zeros((8, 12, 3), np.uint8)), png(np.zeros((4, 4, 3), np.uint8)), b"text", b""]
    (found,) = open_source(dataset(tmp_path, episode(0, **{"steps/observation/image": small}))).episodes()
    view = found.views["observation.image"]
    for rows, sentence in (
        ([0, 1], "different sizes"),
        ([2], "no JPEG or PNG at step 2"),
        ([3], "no picture for step 3"),
    ):
        with pytest.raises(EpisodeError, match=sentence):
            view.read_rgb(rows)
    with pytest.raises(EpisodeError, match="holds no picture for step 5"):
        view.read_rgb([5])
    with pytest.raises(EpisodeError, match="holds RGB pictures, not 16-bit depth"):
        view.read_gray16([0])


def test_damaged_and_incomplete_datasets_are_told(tmp_path: Path) -> None:
    folder = dataset(tmp_path, episode(0), episode(1))
    file = folder / "toy-train.tfrecord-00000-of-00001"
    whole = file.read_bytes()
    assert [episode.notes for episode in open_source(folder).episodes()] == [(), ()]
    file.write_bytes(whole[:-20])
    file.rename(folder / "toy-train.tfrecord-00000-of-00003")
    first, cut = open_source(folder).episodes()
    assert first.notes == ("not all files are there: toy-train.tfrecord has 1 of 3",)
    assert "ends in the middle of record 1" in cut.problems[0]
    (folder / "toy-train.tfrecord-00000-of-00003").write_bytes(whole[:10])
    with pytest.raises(UserError, match="ends in the middle of record 0"):
        open_source(folder)
    (folder / "toy-train.tfrecord-00000-of-00003").write_bytes(whole)
    for text, sentence in (('{"featuresDict": {}}', "is not the description of a tfds dataset"), ("{}", "no pictures")):
        (folder / "features.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            open_source(folder)
    (folder / "features.json").unlink()
    bare = {"steps/action": [1.0, 2.0]}
    (folder / "toy-train.tfrecord-00000-of-00003").write_bytes(tf_examples.framed(tf_examples.encoded(bare)))
    with pytest.raises(UserError, match="holds no JPEG or PNG in its first record"):
        open_source(folder)
    dataset(folder / "a", episode(0))
    dataset(folder / "b", episode(0))
    (folder / "toy-train.tfrecord-00000-of-00003").unlink()
    with pytest.raises(UserError, match=r"holds several datasets \(a, b\)"):
        open_source(folder)


def test_a_rate_must_be_stated(tmp_path: Path) -> None:
    from xwam_ft.prepare.embodiment.schema import load_embodiment
    from xwam_ft.prepare.embodiment.slots import frame_rate

    folder = dataset(tmp_path / "set", episode(0))
    starter = tmp_path / "toy.yaml"
    inspect(folder, starter, QUIET)
    assert "fps: TODO  # these recordings do not store" in starter.read_text()
    with pytest.raises(UserError, match="`fps` is still TODO; these recordings do not store it"):
        load_embodiment(starter)
    text = starter.read_text().replace("command: TODO", "command: next_state")
    starter.write_text(text.replace("units: TODO", 'units: "1"').replace("fps: TODO", "fps: 5"))
    assert frame_rate(load_embodiment(starter), open_source(folder).info, starter) == 5
    starter.write_text(starter.read_text().replace("fps: 5", ""))
    with pytest.raises(UserError, match=r"does not store its frames per second \(RLDS\).*write `fps: NUMBER`"):
        frame_rate(load_embodiment(starter), open_source(folder).info, starter)


@pytest.mark.skipif(DATA is None, reason="XWAM_FT_TEST_DATA does not name the folder of real recordings")
def test_the_bridge_sample_is_read_whole() -> None:
    source = open_source(Path(str(DATA)) / BRIDGE)
    episodes = source.episodes()
    assert [found.length for found in episodes] == [10] * 25
    assert episodes[0].instructions == ("put cup from counter or drying rack into sink",)
    assert set(source.info.cameras) == {f"observation.image_{i}" for i in range(4)}
    table = episodes[3].table.read()  # its checksum with it
    assert {name for name in table.columns if name.startswith("observation")} == {
        f"observation.state/{i}" for i in range(7)
    }
    # What makes `delta, to: state` the right reading: the state moves by about the action.
    moved = np.concatenate([np.diff(found.table.read().columns["observation.state/0"]) for found in episodes])
    told = np.concatenate([found.table.read().columns["action/0"][:-1] for found in episodes])
    assert np.corrcoef(moved, told)[0, 1] > 0.5
    assert episodes[0].views["observation.image_0"].read_rgb(range(10)).shape == (10, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="XWAM_FT_TEST_DATA does not name the folder of real recordings")
def test_the_bridge_sample_becomes_shards(tmp_path: Path) -> None:
    from xwam_ft.conventions import encode_actions
    from xwam_ft.poses import pose_apply
    from xwam_ft.prepare.pipeline import prepare
    from xwam_ft.shards import ShardSet

    out = prepare(
        [Path(str(DATA)) / BRIDGE],
        tmp_path / "shards",
        embodiment=Path(__file__).parents[2] / "recipes" / "embodiments" / "bridge_widowx_rlds.yaml",
        depth="none",
        workers=0,
        strict=True,
        urdf_dirs=[],
        console=QUIET,
    )
    assert (out.episodes, out.frames) == (25, 250)
    shards = ShardSet.open(tmp_path / "shards")
    segment = shards.read(shards.segments()[0])
    columns = open_source(Path(str(DATA)) / BRIDGE).episodes()[segment.episode].table.read().columns
    for axis in range(3):  # a command is the state and the recorded change
        expected = columns[f"observation.state/{axis}"] + columns[f"action/{axis}"]
        np.testing.assert_allclose(segment.action[:, axis], expected, atol=1e-7)
    actions = encode_actions(shards.contract, segment.action[:4], segment.proprio[0])
    start = np.repeat(segment.proprio[:1, :7], 4, axis=0)
    np.testing.assert_allclose(pose_apply(actions[:, :6], start), segment.action[:4, :7], atol=1e-6)
