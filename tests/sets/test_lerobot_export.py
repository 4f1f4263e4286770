"""A shard set as a LeRobot dataset: the robot's own numbers to the bit, the stored videos byte for byte, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from shared import files_in, members_in
from so101 import NAMES
from xwam_ft import media, sets
from xwam_ft.contract import Contract
from xwam_ft.depth_code import code_to_metres
from xwam_ft.errors import UserError
from xwam_ft.prepare.sources import open_source
from xwam_ft.sets.joined_video import write_depth
from xwam_ft.shard_writer import ShardSetWriter, encode_segment, episode_entry, segment_bounds, segment_key
from xwam_ft.shards import Segment, ShardSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Days


@pytest.fixture(scope="session")
def exported(days: Days, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sets.export_lerobot(days.monday, tmp_path_factory.mktemp("exported") / "dataset").path


def tables(folder: Path) -> Any:
    return open_source(folder).episodes()


def test_numbers_are_those_that_were_recorded_to_the_bit(days: Days, exported: Path) -> None:
    """Degrees as float32 -> radians in the shards -> degrees as float32, by the robot's own names."""
    for ours, recorded in zip(tables(exported), tables(days.raw[0]), strict=True):
        mine, theirs = ours.table.read(), recorded.table.read()
        assert list(mine.columns) == list(theirs.columns)
        assert {f"observation.state/{name}" for name in NAMES} < set(mine.columns)
        for name, values in theirs.columns.items():
            np.testing.assert_array_equal(mine.columns[name], values, err_msg=name)
        np.testing.assert_array_equal(mine.timestamps, theirs.timestamps)
        assert ours.instructions == recorded.instructions


def test_videos_are_the_sets_own_bytes(days: Days, exported: Path) -> None:
    stored = members_in(days.monday)
    for episode in range(3):
        for camera in ("front", "wrist"):
            path = exported / f"videos/observation.images.{camera}/chunk-000/file-{episode:03d}.mp4"
            assert path.read_bytes() == stored[f"episode-{episode:06d}-000000.rgb.{camera}.mp4"]


def test_depth_comes_back_within_half_a_step_of_the_code(days: Days, exported: Path) -> None:
    """4095 logarithmic steps from 0.3 to 3 m: half a step is 0.028 %."""
    shards = ShardSet.open(days.monday)
    segment = shards.read(shards.segments()[0])
    assert segment.depth is not None
    metres = code_to_metres(segment.depth[0], 0.3, 3.0)
    info = json.loads((exported / "meta/info.json").read_text())["features"]["observation.images.front_depth"]["info"]
    assert (info["video.depth_min"], info["video.depth_max"], info["video.shift"]) == (0.3, 3.0, 0.0)
    codes = media.read_gray16(exported / "videos/observation.images.front_depth/chunk-000/file-000.mp4")
    written = 0.3 * np.exp(codes / 4095 * np.log(3.0 / 0.3))
    assert np.abs(written / metres - 1).max() < 0.00029


def test_depth_can_be_entered_at_every_key_picture(tmp_path: Path) -> None:
    """Groups are closed: x265's own choice is open ones, which decoders that seek read as other pictures."""
    ramp = np.linspace(1, 65535, 70 * 32 * 64).astype(np.uint16).reshape(70, 32, 64)
    path = tmp_path / "depth.mp4"
    write_depth(path, [ramp[:50], ramp[50:]], 0.3, 3.0, 30.0)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        whole = [frame.to_ndarray() for frame in av.open(str(path)).decode(video=0)]
        assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets), "no picture waits"
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        assert keys == [0, 16, 32, 48, 64]
        for key in keys:  # H.265, table 7-1: 19 and 20 are IDR pictures, 21 (CRA) may be an open group's first
            assert [unit for unit in units_of(bytes(packets[key])) if unit < 32] in ([19], [20])
        for key in keys:
            decoder = av.CodecContext.create("hevc", "r")
            decoder.extradata = container.streams.video[0].codec_context.extradata
            alone = [frame for packet in [*packets[key : key + 16], None] for frame in decoder.decode(packet)]
            np.testing.assert_array_equal([frame.to_ndarray() for frame in alone], whole[key : key + 16])


def units_of(packet: bytes) -> list[int]:
    """The types of the NAL units of an H.265 packet in an mp4, each after its length of four bytes."""
    found: list[int] = []
    while packet:
        size = int.from_bytes(packet[:4], "big")
        found.append(packet[4] >> 1 & 63)
        packet = packet[4 + size :]
    return found


@pytest.mark.slow
def test_prepare_reads_it_back(days: Days, exported: Path, tmp_path: Path, prepare_small: Callable[..., Path]) -> None:
    """Numbers, masks, instructions and splits to the bit; pictures within one more encoding; the contract the same but
    for the pictures' recorded size."""
    again = prepare_small([exported], tmp_path / "again", embodiment=exported / "meta" / "embodiment.yaml")
    ours, before = ShardSet.open(again), ShardSet.open(days.monday)
    assert [(e.frames, e.split, e.instruction) for e in ours.index.episodes] == [
        (e.frames, e.split, e.instruction) for e in before.index.episodes
    ]
    for mine, theirs in zip(ours, before, strict=True):
        for name in ("proprio", "proprio_mask", "action", "action_mask"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
        off = mine.rgb.astype(float) - theirs.rgb
        assert 10 * np.log10(255**2 / np.mean(off**2)) > 38
        assert mine.depth is not None
        assert theirs.depth is not None
        metres = [code_to_metres(depth, 0.3, 3.0) for depth in (mine.depth, theirs.depth)]
        np.testing.assert_allclose(*metres, rtol=0.0004)
    mine, theirs = (shards.contract.model_dump() for shards in (ours, before))
    for contract in (mine, theirs):
        del contract["aliases"]
        for camera in contract["cameras"]:
            del camera["source_height"], camera["source_width"]
    assert mine == theirs


def test_statistics_and_features_are_what_lerobot_wants(days: Days, exported: Path) -> None:
    info, stats = (json.loads((exported / f"meta/{name}.json").read_text()) for name in ("info", "stats"))
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 30, 3)
    assert info["features"]["action"]["names"] == NAMES
    recorded = np.concatenate([e.table.read().columns["action/elbow_flex.pos"] for e in tables(days.raw[0])])
    place = NAMES.index("elbow_flex.pos")
    assert stats["action"]["mean"][place] == pytest.approx(recorded.mean())
    assert stats["action"]["q99"][place] == pytest.approx(np.quantile(recorded, 0.99))
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert 0.5 < stats["observation.images.front_depth"]["mean"][0][0][0] < 3
    rows = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["xwam_ft/split"] for row in rows] == [e.split for e in ShardSet.open(days.monday).index.episodes]


def test_equal_sets_give_equal_files(days: Days, exported: Path, tmp_path: Path) -> None:
    sets.export_lerobot(days.monday, tmp_path / "again")
    assert files_in(tmp_path / "again") == files_in(exported)


def cut_set(contract: Contract, whole: Segment, folder: Path, longest: int) -> ShardSet:
    """An episode in segments of at most `longest` frames."""
    from dataclasses import replace

    keys = []
    with ShardSetWriter(folder) as writer:
        for first, count, first_start, starts in segment_bounds(whole.num_frames, contract.timing, longest):
            part = slice(first, first + count)
            tables = {name: getattr(whole, name)[part] for name in ("proprio", "proprio_mask", "action", "action_mask")}
            assert whole.depth is not None
            pictures = {"rgb": whole.rgb[:, part], "depth": whole.depth[:, part]}
            place = {"first_frame": first, "first_start": first_start, "num_starts": starts}
            segment = replace(whole, key=segment_key(0, first), **place, **tables, **pictures)
            writer.add(encode_segment(segment, contract.camera_names, contract.timing.fps))
            keys.append(segment.key)
        entry = episode_entry(
            0, keys, frames=whole.num_frames, split="train", instructions=[whole.instruction], source="made"
        )
        return writer.finish(contract, [entry])


def test_segments_are_joined_without_loss(contract: Contract, segment: Segment, tmp_path: Path) -> None:
    """29 frames in three segments that overlap: each picture is one that was stored, to the bit."""
    shards = cut_set(contract, segment, tmp_path / "set", 16)
    assert len(shards) == 3
    made = sets.export_lerobot(shards.folder, tmp_path / "out")
    assert any("joined without loss" in note for note in made.notes)
    stored = [shards.read(entry) for entry in shards.segments()]
    starts = [part.first_frame for part in stored] + [29]
    for view, camera in enumerate(contract.camera_names):
        expected = [part.rgb[view, : starts[i + 1] - starts[i]] for i, part in enumerate(stored)]
        path = made.path / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"
        np.testing.assert_array_equal(media.read_rgb(path), np.concatenate(expected))
    [episode] = tables(made.path)
    state = np.stack([v for n, v in episode.table.read().columns.items() if n.startswith("observation.state")], axis=1)
    np.testing.assert_array_equal(state, segment.proprio.astype(np.float32))


def test_without_names_of_its_own_a_robot_has_the_contracts(
    contract: Contract, segment: Segment, tmp_path: Path
) -> None:
    assert contract.aliases is None
    made = sets.export_lerobot(cut_set(contract, segment, tmp_path / "set", 100).folder, tmp_path / "out", depth=False)
    info = json.loads((made.path / "meta/info.json").read_text())
    names = info["features"]["observation.state"]["names"]
    assert names[:7] == [f"{contract.slots[0].name}.{part}" for part in ("x", "y", "z", "qw", "qx", "qy", "qz")]
    assert not any(name.endswith("_depth") for name in info["features"])
    tree = yaml.safe_load(made.embodiment.read_text())
    assert tree["slots"][contract.slots[0].name]["rotation"] == "wxyz"
    assert any(note.startswith("in the contract's names") for note in made.notes)


@pytest.mark.slow
@pytest.mark.parametrize("units", ["signs_and_zeros", "servo"])
def test_other_lines_to_radians_are_read_back(
    days: Days, tmp_path: Path, units: str, prepare_small: Callable[..., Path]
) -> None:
    """Joints that count the other way round from another zero, and a servo's own units with its calibration."""
    more: dict[str, Any] = {"slots.arm.signs": [1, -1, 1, 1, -1], "slots.arm.zeros": [0.0, 10.0, 0.0, -5.0, 0.0]}
    if units == "servo":
        motors = {
            name.removesuffix(".pos"): {"range_min": 900 + 10 * i, "range_max": 3100, "drive_mode": i % 2}
            for i, name in enumerate(NAMES)
        }
        (tmp_path / "arm.json").write_text(json.dumps(motors))
        more = {"slots.arm.units": "range_m100_100", "slots.arm.calibration": "arm.json"}
    shipped = Path(__file__).parents[2] / "recipes/embodiments/so101_joints.yaml"
    file = Path(shutil.copy(shipped, tmp_path / "arm.yaml"))
    before = prepare_small([days.raw[0]], tmp_path / "set", embodiment=file, **more)
    made = sets.export_lerobot(before, tmp_path / "dataset")
    for ours, recorded in zip(tables(made.path), tables(days.raw[0]), strict=True):
        mine, theirs = ours.table.read().columns, recorded.table.read().columns
        for name, values in theirs.items():
            np.testing.assert_allclose(mine[name], values, rtol=1e-6, atol=1e-5, err_msg=name)
    again = prepare_small([made.path], tmp_path / "again", embodiment=made.embodiment)
    for mine, theirs in zip(ShardSet.open(again), ShardSet.open(before), strict=True):
        np.testing.assert_allclose(mine.proprio, theirs.proprio, atol=1e-6)
        np.testing.assert_allclose(mine.action, theirs.action, atol=1e-6)


def test_what_is_there_is_not_written_over(days: Days, exported: Path) -> None:
    with pytest.raises(UserError, match="exists already and is not an empty folder"):
        sets.export_lerobot(days.monday, exported)
    with pytest.raises(UserError, match="lies in the set that is read"):
        sets.export_lerobot(days.monday, days.monday / "lerobot")


def test_a_controllers_own_numbers_are_refused(
    contract_with: Callable[..., Contract], segment: Segment, tmp_path: Path
) -> None:
    from xwam_ft.sets.lerobot_columns import command_columns

    contract = contract_with()
    slot = contract.slots[0].model_copy(
        update={"convention": "xwam_robocasa_raw", "command_units": ("1",) * 6, "limits": None}
    )
    with pytest.raises(UserError, match="a controller's own numbers"):
        command_columns(contract.model_copy(update={"slots": (slot, *contract.slots[1:])}))
