"""MCAP recordings written by the mcap writer and read back: clocks in closed form, pictures, layouts, what is wrong."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.prepare.episode import Episode, EpisodeError
from xwam_ft.prepare.sources import mcap_index, open_source
from xwam_ft.prepare.sources.mcap_clock import clock_of
from xwam_ft.prepare.sources.resampling import held, nearest, nominal_rate, rate, resample, resample_quaternions

pytest.importorskip("mcap_ros2", reason="the [mcap] extra is not installed")
_spec = importlib.util.spec_from_file_location("ros_bags", Path(__file__).with_name("ros_bags.py"))
assert _spec is not None
assert _spec.loader is not None
bags: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bags)

HIGH, WRIST, DEPTH = "/cam_high/image_raw/compressed", "/cam_wrist/image_raw", "/cam_high/depth"
CLOCK = 0.02 + np.arange(20) / 10  # the slowest camera's, in seconds of the recording


def only(path: Path) -> Episode:
    (episode,) = open_source(path).episodes()
    assert not episode.problems
    return episode


def without(streams: list[Any], *topics: str) -> list[Any]:
    return [stream for stream in streams if stream[0] not in topics]


def test_every_topic_comes_to_the_clock_of_the_slowest_camera(tmp_path: Path) -> None:
    source = open_source(bags.write_bag(tmp_path / "a.mcap", bags.arm()))
    (episode,) = source.episodes()
    assert (source.info.format, source.info.fps) == ("MCAP", 10.0)
    assert {name: camera.depth for name, camera in source.info.cameras.items()} == {
        HIGH: False,
        WRIST: False,
        DEPTH: True,
    }
    assert episode.instructions == ("stack the cups",)
    table = episode.table.read()
    clock = CLOCK[: episode.length]
    assert episode.length == len(CLOCK)
    assert table.timestamps is not None
    np.testing.assert_allclose(table.timestamps, clock - clock[0], atol=1e-9)
    # Linear, to the second order of the step of 20 ms; held; true or false by the last.
    np.testing.assert_allclose(table.columns["observation.joint_states/j1"], np.sin(clock), atol=1e-4)
    np.testing.assert_allclose(table.columns["observation.joint_states/j2"], 2 * clock, atol=1e-6)
    np.testing.assert_allclose(table.columns["action.arm.command/0"], np.floor((clock - 0.01) * 5 + 1e-6) / 5 + 0.01)
    np.testing.assert_array_equal(table.columns["action.gripper_cmd"], clock >= 1.0)
    turn = np.stack([table.columns[f"observation.ee_pose/q{part}"] for part in "xyzw"], axis=1)
    np.testing.assert_allclose(Rotation.from_quat(turn).as_rotvec()[:, 2], np.sin(clock), atol=1e-4)
    assert not table.problems
    off = np.abs(CLOCK[:, None] - np.arange(30) / 15).min(axis=1).max() * 1e3
    (note,) = episode.notes
    assert note.startswith(f"the clock is {HIGH}; the nearest sample is off by at most: /cam_high/depth 10 ms, ")
    assert f"{WRIST} {off:.0f} ms" in note


def test_pictures_are_the_nearest_in_time_and_come_lazily(tmp_path: Path) -> None:
    episode = only(bags.write_bag(tmp_path / "a.mcap", bags.arm()))
    high, wrist, depth = (episode.views[name] for name in (HIGH, WRIST, DEPTH))
    np.testing.assert_array_equal(high.read_rgb([3, 0])[:, 0, 0, 0], [12, 0])
    expected = np.abs(CLOCK[:, None] - np.arange(30) / 15).argmin(axis=1)
    got = wrist.read_rgb(range(20))
    np.testing.assert_array_equal(got[:, 0, 0, 0], expected * 4)  # bgr8 with padded rows
    np.testing.assert_array_equal(got[4], bags.picture(int(expected[4])))
    counts = depth.read_gray16([2])
    assert (counts.dtype, counts.shape, counts[0, 0, 0]) == (np.uint16, (1, 16, 24), 1002)
    assert (high.size(), high.codec(), high.frames) == ((16, 24), "pictures", 20)
    with pytest.raises(EpisodeError, match="has 16-bit depth, not colours"):
        depth.read_rgb([0])
    with pytest.raises(EpisodeError, match="has colours, not 16-bit depth"):
        high.read_gray16([0])
    again = pickle.loads(pickle.dumps(episode))  # as it goes to a worker process
    np.testing.assert_array_equal(again.views[WRIST].read_rgb([5]), wrist.read_rgb([5]))


def test_however_it_was_written_it_reads_alike(tmp_path: Path) -> None:
    streams = [
        ("/front", "foxglove.CompressedImage", [(t, bags.json_picture(bags.picture(i))) for i, t in enumerate(CLOCK)]),
        ("/joints", "joints", [(t, {"name": ["j1"], "position": [t * t]}) for t in bags.ticks(50, 2.2)]),
        ("/base", "twist", [(t, {"linear": {"x": t}, "on": bool(t > 1)}) for t in bags.ticks(20, 2.2)]),
    ]
    tables: list[Any] = []
    for number, options in enumerate(bags.all_options()):
        metadata = {"metadata": {"task": "wipe", "success": "False"}}
        path = bags.write_json(tmp_path / f"{number}.mcap", streams, chunk_size=4096, **options, **metadata)
        episode = only(path)
        tables.append(episode.table.read())
        np.testing.assert_array_equal(episode.views["/front"].read_rgb([7])[0], bags.picture(7))
        assert (episode.instructions, episode.success) == (("wipe",), False)
    for table in tables:
        assert set(table.columns) == {"observation.joints/j1", "observation.base/linear.x", "observation.base/on"}
        for name, values in table.columns.items():
            np.testing.assert_array_equal(values, tables[0].columns[name])
    np.testing.assert_allclose(tables[0].columns["observation.joints/j1"], CLOCK**2, atol=1e-4)
    assert set(np.unique(tables[0].columns["observation.base/on"])) == {0.0, 1.0}


def test_the_index_pass_reads_no_picture_and_a_chunk_at_a_time_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bags.write_bag(tmp_path / "a.mcap", bags.arm())
    monkeypatch.setattr(mcap_index, "_chunk", lambda *_: pytest.fail("a chunk was opened"))
    index = mcap_index.index_file(path)
    assert index.complete
    assert {channel.topic for channel in index.channels.values()} == {stream[0] for stream in bags.arm()}
    monkeypatch.undo()
    mcap_index._chunk.cache_clear()
    only(path).views[HIGH].read_rgb(range(20))
    assert mcap_index._chunk.cache_info().currsize <= 2


def test_layouts_files_folders_and_rosbag2(tmp_path: Path) -> None:
    for name in ("b", "a"):
        bags.write_bag(tmp_path / "flat" / f"{name}.mcap", bags.arm(task=name))
    assert [e.instructions for e in open_source(tmp_path / "flat").episodes()] == [("a",), ("b",)]
    bag = tmp_path / "set" / "bag_0"
    streams = bags.arm()
    early = [(topic, kind, [row for row in rows if row[0] < 1]) for topic, kind, rows in streams]
    late = [(topic, kind, [row for row in rows if row[0] >= 1]) for topic, kind, rows in streams]
    bags.write_bag(bag / "bag_0.mcap", early)
    bags.write_bag(bag / "bag_1.mcap", [stream for stream in late if stream[2]])
    listed = {"storage_identifier": "mcap", "relative_file_paths": ["bag_0.mcap", "bag_1.mcap"]}
    (bag / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": listed}))
    whole = only(bags.write_bag(tmp_path / "whole.mcap", streams))
    for path in (bag, bag.parent):
        split = only(path)
        for name, values in split.table.read().columns.items():
            np.testing.assert_array_equal(values, whole.table.read().columns[name])
        np.testing.assert_array_equal(split.views[WRIST].read_rgb(range(20)), whole.views[WRIST].read_rgb(range(20)))


def test_a_topic_shared_by_two_publishers_gives_all_their_joints(tmp_path: Path) -> None:
    hand = [(t + 0.004, bags.joints({"grip": t})) for t in bags.ticks(25, 2.0)]
    streams = [(t, k, [*rows, *hand] if t == "/joint_states" else rows) for t, k, rows in bags.arm()]
    source = open_source(bags.write_bag(tmp_path / "a.mcap", streams))
    assert {f"observation.joint_states/{name}" for name in ("j1", "j2", "grip")} <= set(source.info.columns)
    columns = source.episodes()[0].table.read().columns
    clock = CLOCK[: len(columns["observation.joint_states/grip"])]
    np.testing.assert_allclose(columns["observation.joint_states/grip"], clock - 0.004, atol=1e-6)
    np.testing.assert_allclose(columns["observation.joint_states/j2"], 2 * clock, atol=1e-6)


def test_late_topics_cut_the_start_and_short_ones_are_refused_where_used(tmp_path: Path) -> None:
    streams = bags.arm(4.0)
    streams = [(t, k, [row for row in rows if row[0] > 0.5] if t == "/ee_pose" else rows) for t, k, rows in streams]
    hole = [
        (t, k, [row for row in rows if not 1 < row[0] < 1.5] if t == "/joint_states" else rows)
        for t, k, rows in streams
    ]
    brief = [(t, k, [row for row in rows if row[0] < 0.4] if t == WRIST else rows) for t, k, rows in hole]
    episode = only(bags.write_bag(tmp_path / "a.mcap", brief))
    assert any("the first 5 pictures" in note and "/ee_pose begins 0.48 s later" in note for note in episode.notes)
    table = episode.table.read()
    assert "observation.ee_pose/x" not in table.problems
    assert "topic /joint_states has nothing within 0.2" in table.problems["observation.joint_states/j1"]
    with pytest.raises(EpisodeError, match=r"topic /cam_wrist/image_raw covers 9% of camera /cam_high"):
        episode.views[WRIST].read_rgb([0])


def test_raw_pictures_of_every_encoding(tmp_path: Path) -> None:
    gray = np.arange(16 * 24, dtype=np.uint8).reshape(16, 24)
    rgb = bags.picture(3)
    metres = np.linspace(0.5, 2, 16 * 24, dtype=np.float32).reshape(16, 24)
    metres[0, 0] = np.nan
    png = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    rgba = np.dstack([rgb, np.full((16, 24), 9, np.uint8)])
    cases: dict[str, tuple[str, Any, np.ndarray]] = {
        "rgb8": ("Image", bags.raw(rgb, "rgb8"), rgb),
        "rgba8": ("Image", bags.raw(rgba, "rgba8", 4), rgb),
        "bgra8": ("Image", bags.raw(rgba[..., [2, 1, 0, 3]], "bgra8"), rgb),
        "mono8": ("Image", bags.raw(gray, "mono8", 3), np.repeat(gray[..., None], 3, axis=2)),
        "mono16": ("Image", bags.raw(png, "mono16"), png),
        "32FC1": (
            "Image",
            bags.raw(metres, "32FC1"),
            np.nan_to_num(np.round(metres.astype(float) * 1000)).astype(np.uint16),
        ),
        "cd": ("CompressedImage", bags.compressed(png, "16UC1; compressedDepth png", bytes(12)), png),
    }
    streams = [
        (f"/{name}", f"sensor_msgs/msg/{kind}", [(t, message) for t in (0.0, 0.1, 0.2)])
        for name, (kind, message, _) in cases.items()
    ]
    source = open_source(bags.write_bag(tmp_path / "a.mcap", streams))
    episode = source.episodes()[0]
    for name, (_, _, expected) in cases.items():
        view = episode.views[f"/{name}"]
        got = view.read_gray16([1]) if expected.ndim == 2 else view.read_rgb([1])
        np.testing.assert_array_equal(got[0], expected, err_msg=name)
        assert source.info.cameras[f"/{name}"].depth == (expected.ndim == 2)


@pytest.mark.slow
def test_a_recording_becomes_shards(tmp_path: Path) -> None:
    """Through `prepare`: two bags of which one is cut off, a pose in ROS order with held commands, recorded depth."""
    from xwam_ft.prepare.pipeline import prepare
    from xwam_ft.shards import ShardSet

    for name in ("a", "b", "c"):
        bags.write_bag(tmp_path / "raw" / f"{name}.mcap", bags.arm(3.0))
    cut = tmp_path / "raw" / "c.mcap"
    cut.write_bytes(cut.read_bytes()[:-2000])
    spec = tmp_path / "arm.yaml"
    spec.write_text(
        f"""
name: arm
cameras:
  high: {{source: {HIGH}, depth: {{source: {DEPTH}, unit: mm}}}}
  wrist: {{source: {WRIST}}}
image: {{height: 32, width: 32}}
timing: {{frame_skip: 2, action_skip: 1, clip_frames: 5}}
slots:
  arm: {{kind: pose, columns: [x, y, z, qx, qy, qz, qw], units: m, rotation: xyzw, command: next_state}}
  joints: {{kind: joints, columns: [j1, j2], units: deg, command_columns: action.arm.command}}
"""
    )
    out = prepare(
        [tmp_path / "raw"],
        tmp_path / "shards",
        embodiment=spec,
        depth=None,
        workers=0,
        strict=False,
        urdf_dirs=[],
        console=QUIET,
    )
    assert (out.episodes, len(out.rejected)) == (2, 1)
    assert "c.mcap ends in the middle: the recorder was stopped" in str(out.rejected[0].reason)
    shards = ShardSet.open(tmp_path / "shards")
    first = shards.read(shards.segments()[0])
    clock = 0.02 + np.arange(len(first.proprio)) / 10
    np.testing.assert_allclose(first.proprio[:, 0], np.sin(clock), atol=1e-4)
    np.testing.assert_allclose(first.proprio[:, 7], np.sin(clock) * np.pi / 180, atol=1e-5)
    assert shards.contract.prompts == ("stack the cups",)
    assert shards.contract.timing.fps == 10.0


# --- the clock ------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.integers(0, 10**6))
def test_nearest_and_held_by_definition(microseconds: list[int], tick: int) -> None:
    times, clock = np.sort(np.array(microseconds)) * 1e-6, np.array([tick * 1e-6])
    (index,), (off,) = nearest(clock, times)
    assert off == pytest.approx(np.abs(times - clock).min())
    assert abs(times[index] - clock[0]) == pytest.approx(off)
    (last,) = held(clock, times)
    assert last == np.count_nonzero(times <= clock[0]) - 1


def test_resampling_in_closed_form() -> None:
    times, values = np.array([0.0, 1.0, 1.0, 3.0]), np.array([0.0, 9.0, 10.0, 20.0])
    clock = np.array([-1.0, 0.5, 1.0, 2.5])
    np.testing.assert_allclose(resample(clock, times, values, "linear"), [0, 5, 10, 17.5])
    np.testing.assert_allclose(resample(clock, times, values, "nearest"), [0, 0, 10, 20])
    np.testing.assert_allclose(resample(clock, times, values, "hold"), [np.nan, 0, 10, 10])
    turns = Rotation.from_rotvec([[0, 0, 0], [0, 0, 1.0]]).as_quat() * [[1], [-1]]  # the sign says nothing
    got = resample_quaternions(np.array([0.25]), np.array([0.0, 1.0]), turns)
    np.testing.assert_allclose(np.abs(Rotation.from_quat(got).as_rotvec()), [[0, 0, 0.25]], atol=1e-12)
    assert np.isnan(resample_quaternions(clock, times, np.zeros((4, 4)))).all()
    assert (rate(np.array([0, 0.1, 0.2, 0.5, 0.6])), rate(np.zeros(1))) == (pytest.approx(10), 0)
    assert (nominal_rate(29.97), nominal_rate(13.5), nominal_rate(12.4567)) == (30.0, 13.5, 12.46)


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("nothing", "is not an MCAP file"),
        ("magic", "is not an MCAP file"),
        ("cut", r"no episode can be read .*ends in the middle: the recorder was stopped|ends in the middle"),
        ("no camera", r"no episode can be read \(.*holds no pictures; its topics are /arm/command \(std_msgs"),
        ("sqlite", "is a rosbag2 of storage 'sqlite3'; mcap is read"),
        ("absent", r"names the file bag_9.mcap, which is not there"),
        ("zstd", "is compressed as a whole"),
    ],
)
def test_recordings_that_cannot_be_read_are_told(tmp_path: Path, case: str, sentence: str) -> None:
    path = bags.write_bag(tmp_path / "a.mcap", bags.arm())
    information = {"storage_identifier": "mcap", "relative_file_paths": ["a.mcap"]}
    if case == "nothing":
        path.write_bytes(b"")
    elif case == "magic":
        path.write_bytes(b"PK\3\4" + path.read_bytes())
    elif case == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif case == "no camera":
        bags.write_bag(path, without(bags.arm(), HIGH, WRIST, DEPTH))
    elif case == "sqlite":
        information["storage_identifier"] = "sqlite3"
    elif case == "absent":
        information["relative_file_paths"] = ["bag_9.mcap"]
    elif case == "zstd":
        (tmp_path / "a.mcap.zstd").write_bytes(b"")
        information["relative_file_paths"] = ["a.mcap.zstd"]
    target = path
    if case in ("sqlite", "absent", "zstd"):
        (tmp_path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
        target = tmp_path
    with pytest.raises(UserError, match=sentence):
        open_source(target)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (lambda: bags.raw(bags.picture(0), "bayer_rggb8"), "has pictures as 'bayer_rggb8'; read are rgb8"),
        (lambda: {**bags.raw(bags.picture(0), "rgb8"), "height": 99}, "has a picture of 1152 bytes for 24x99 rgb8"),
        (lambda: bags.raw(bags.picture(0), "rgb8") | {"step": 1}, "has a picture of 1152 bytes for 24x16 rgb8"),
    ],
)
def test_pictures_that_cannot_be_read_are_told(tmp_path: Path, message: Any, sentence: str) -> None:
    rows = [(t, message()) for t in (0.0, 0.1, 0.2)]
    episode = only(bags.write_bag(tmp_path / "a.mcap", [("/odd", "sensor_msgs/msg/Image", rows)]))
    with pytest.raises(EpisodeError, match=sentence):
        episode.views["/odd"].read_rgb([0])


def test_pictures_that_do_not_decode_or_change_size_are_told(tmp_path: Path) -> None:
    kind = "sensor_msgs/msg/CompressedImage"
    good, small = bags.compressed(bags.picture(1)), bags.compressed(bags.picture(1, 8, 8))
    rows = [(0.0, good), (0.1, small), (0.2, {**good, "data": b"\xff\xd8\xff no"}), (0.3, good)]
    view = only(bags.write_bag(tmp_path / "a.mcap", [("/c", kind, rows)])).views["/c"]
    with pytest.raises(EpisodeError, match="pictures of different sizes"):
        view.read_rgb([0, 1])
    with pytest.raises(EpisodeError, match=r"a.mcap: topic /c has a picture of format 'png' that does not decode"):
        view.read_rgb([2])


def test_a_damaged_chunk_is_told(tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "a.mcap", bags.arm(), chunk_size=1 << 20)
    episode = only(path)
    mcap_index._chunk.cache_clear()
    data = bytearray(path.read_bytes())
    data[2000:2040] = bytes(40)  # within the one chunk
    path.write_bytes(bytes(data))
    with pytest.raises(EpisodeError, match=r"a.mcap has a damaged chunk at byte \d+ \("):
        episode.table.read()


def test_an_encoding_that_is_not_read_is_told(tmp_path: Path) -> None:
    streams = [("/front", "foxglove.CompressedImage", [(t, bags.json_picture(bags.picture(0))) for t in (0.0, 0.1)])]
    streams.append(("/joints", "joints", [(t, {"a": t}) for t in (0.0, 0.1)]))
    path = bags.write_json(tmp_path / "b.mcap", streams, use_chunking=False)
    data = path.read_bytes()
    old = b"/joints\x04\0\0\0json"
    assert data.count(old) == 2  # where it is declared, and in the summary
    path.write_bytes(data.replace(old, b"/joints\x04\0\0\0cbor"))
    with pytest.raises(
        EpisodeError, match=r"topic /joints is encoded as cbor with a jsonschema schema; cdr with ros2msg"
    ):
        only(path).table.read()


def test_topics_that_share_no_two_pictures_are_told() -> None:
    second = 1_000_000_000
    times = np.arange(11) * second
    with pytest.raises(
        EpisodeError, match="x has fewer than two pictures of /c between the first of /b and the last of /a"
    ):
        clock_of("x", {"/c": times}, {"/a": times[:6], "/b": times[5:]}, set())


def test_an_absent_package_names_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bags.write_bag(tmp_path / "a.mcap", bags.arm())
    monkeypatch.setitem(sys.modules, "mcap_ros2.decoder", None)
    with pytest.raises(UserError, match=r"'mcap-ros2-support' is not installed.*pip install 'xwam-ft\[mcap\]'"):
        open_source(path)


def test_an_episode_of_another_rate_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bags.write_bag(tmp_path / f"{name}.mcap", bags.arm())
    fast = [(t, k, [(s / 2, m) for s, m in rows]) for t, k, rows in bags.arm()]
    bags.write_bag(tmp_path / "c.mcap", fast)
    problems = [episode.problems for episode in open_source(tmp_path).episodes()]
    assert problems[:2] == [(), ()]
    assert "gives 20 pictures a second, most of the set 10" in problems[2][0]


def stamped(streams: list[Any], clock: Any, *, late: dict[str, float] | None = None, only: tuple[str, ...] = ()) -> Any:
    """The streams with headers that say when each message was made, by `clock`; some of them logged later."""
    found = []
    for topic, kind, rows in streams:
        if only and topic not in only:
            found.append((topic, kind, rows))
            continue
        made = []
        for at, message in rows:
            nanoseconds = bags.START + round(clock(at) * bags.SECOND)
            stamp = {"sec": nanoseconds // bags.SECOND, "nanosec": nanoseconds % bags.SECOND}
            head = {"header": {"stamp": stamp, "frame_id": "f"}} if "header" in message else {}
            made.append((at + (late or {}).get(topic, 0.0), message | head))
        found.append((topic, kind, made))
    return found


def shown(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """When the pictures of the slow camera were made, by what they show, and when by the joints beside them."""
    pictures = episode.views[HIGH].read_rgb(range(episode.length))[:, 0, 0, 0]
    return 0.02 + pictures / 4 / 10, episode.table.read().columns["observation.joint_states/j2"] / 2


def test_pictures_that_were_logged_late_stand_beside_the_state_of_their_time(tmp_path: Path) -> None:
    late = {HIGH: 0.2, WRIST: 0.15}
    episode = only(bags.write_bag(tmp_path / "a.mcap", stamped(bags.arm(4.0), lambda t: t, late=late)))
    pictures, states = shown(episode)
    np.testing.assert_allclose(states, pictures, atol=1e-6)
    (note,) = [note for note in episode.notes if "stamps" in note]
    assert f"{HIGH} 200 ms (up to 200 ms)" in note
    assert "/joint_states 0 ms" in note
    assert "/arm/command" not in note  # has no header


@pytest.mark.parametrize(
    ("clock", "topics", "words"),
    [
        (lambda t: t - 1e6, (HIGH,), "1e+06 s before the log"),  # a camera that counts from its start
        (lambda t: t + 0.4, (HIGH,), "-0.4 s before the log"),  # of a machine with another clock
        (lambda t: 7.0, (HIGH,), "not steadily forward"),
        (lambda t: 7.0 + t / 50, (HIGH,), "before the log"),
    ],
)
def test_stamps_that_cannot_be_believed_give_way_to_the_log(
    tmp_path: Path, clock: Any, topics: tuple[str, ...], words: str
) -> None:
    kept = without(bags.arm(4.0), "/arm/command", "/gripper_cmd", "/task")  # so that every topic has stamps
    streams = stamped(stamped(kept, lambda t: t), clock, only=topics)
    episode = only(bags.write_bag(tmp_path / "a.mcap", streams))
    pictures, states = shown(episode)
    np.testing.assert_allclose(states, pictures, atol=1e-6)
    assert [note for note in episode.notes if f"the stamps of {HIGH} go" in note and words in note]


def test_stamps_that_fit_each_other_and_not_the_log_are_believed(tmp_path: Path) -> None:
    kept = without(bags.arm(4.0), "/arm/command", "/gripper_cmd", "/task")  # which have no headers
    streams = stamped(kept, lambda t: t - 1e5)
    converted = [(topic, kind, [(at / 100, message) for at, message in rows]) for topic, kind, rows in streams]
    episode = only(bags.write_bag(tmp_path / "a.mcap", converted))
    pictures, states = shown(episode)
    np.testing.assert_allclose(states, pictures, atol=1e-6)
    assert episode.length == len(np.arange(40))


def test_json_says_when_it_was_made_too(tmp_path: Path) -> None:
    at = np.arange(40) / 10

    def stamp(t: float, key: str) -> dict[str, int]:
        nanoseconds = bags.START + round(t * bags.SECOND)
        return {"sec": nanoseconds // bags.SECOND, key: nanoseconds % bags.SECOND}

    streams = [
        ("/cam", "foxglove.CompressedImage",
         [(t + 0.3, bags.json_picture(bags.picture(i)) | {"timestamp": stamp(t, "nsec")}) for i, t in enumerate(at)]),
        ("/joint_states", "JointState",
         [(t, bags.joints({"j2": t}) | {"header": {"stamp": stamp(t, "nanosec")}}) for t in np.arange(400) / 100]),
    ]  # fmt: skip
    episode = only(bags.write_json(tmp_path / "a.mcap", streams))
    pictures = episode.views["/cam"].read_rgb(range(episode.length))[:, 0, 0, 0] / 4 / 10
    np.testing.assert_allclose(episode.table.read().columns["observation.joint_states/j2"], pictures, atol=1e-6)
