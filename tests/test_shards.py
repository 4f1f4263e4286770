"""The shard format: starts partitioned, clips cut and padded, bytes equal every time, damage named."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xwam_ft.contract import Contract, Timing
from xwam_ft.errors import UserError
from xwam_ft.shard_index import Index, SegmentEntry, SegmentMeta
from xwam_ft.shard_writer import ShardSetWriter, encode_segment, episode_entry, segment_bounds, segment_key
from xwam_ft.shards import Clip, ClipRef, Segment, ShardSet, cut_clip

Make = Callable[[Path, Contract], ShardSet]


@settings(max_examples=200)
@given(frames=st.integers(1, 400), skip=st.integers(1, 4), pictures=st.sampled_from([5, 9]), spare=st.integers(0, 100))
def test_every_start_is_owned_once_and_its_clip_contained(frames: int, skip: int, pictures: int, spare: int) -> None:
    timing = Timing(fps=10, frame_skip=skip, action_skip=1, clip_frames=pictures)
    longest = timing.span + spare
    bounds = segment_bounds(frames, timing, longest)
    owned = [start for _, _, first, count in bounds for start in range(first, first + count)]
    assert owned == list(range(frames))
    for first_frame, num_frames, first_start, num_starts in bounds:
        assert num_frames <= longest
        assert num_starts >= 1
        for start in (first_start, first_start + num_starts - 1):
            assert first_frame <= start
            assert min(start + timing.span, frames) <= first_frame + num_frames <= frames


def test_a_segment_holds_at_least_a_clip(contract: Contract) -> None:
    with pytest.raises(ValueError, match="20 frames in segments of 8, with clips of 9"):
        segment_bounds(20, contract.timing, 8)


def test_a_clip_past_the_end_is_held_and_masked(contract: Contract, segment: Segment) -> None:
    """29 frames, 5 pictures 2 apart: the clip at 24 has pictures at 24, 26, 28, then none."""
    clip = cut_clip(segment, 24, contract.timing)
    assert clip.key == "episode-000000-000000-000024"
    np.testing.assert_array_equal(clip.frame_valid, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(clip.rgb, segment.rgb[:, [24, 26, 28, 28, 28]])
    np.testing.assert_array_equal(clip.proprio, segment.proprio[[24, 26, 28, 28, 28]])
    np.testing.assert_array_equal(clip.proprio_mask[:, 0], [1, 1, 1, 0, 0])
    rows = [24, 25, 26, 27, 28, 28, 28, 28]
    np.testing.assert_array_equal(clip.action, segment.action[rows])
    np.testing.assert_array_equal(clip.action_states, segment.proprio[rows])
    np.testing.assert_array_equal(clip.action_mask[:, 0], [1, 1, 1, 1, 1, 0, 0, 0])


def test_recorded_masks_stay(contract: Contract, segment: Segment) -> None:
    mask = segment.action_mask.copy()
    mask[5, 7] = 0
    clip = cut_clip(dataclasses.replace(segment, action_mask=mask), 4, contract.timing)
    assert clip.action_mask[1, 7] == 0
    assert clip.action_mask.sum() == clip.action_mask.size - 1


def test_a_start_of_another_segment_is_refused(contract: Contract, segment: Segment, shard_set: ShardSet) -> None:
    with pytest.raises(ValueError, match="does not own clip start 29"):
        cut_clip(segment, 29, contract.timing)
    with pytest.raises(ValueError, match="does not own clip start 28"):
        shard_set.read_clip(ClipRef(shard_set.segments()[0], 28))


def test_a_segment_comes_back(shard_set: ShardSet, segment: Segment) -> None:
    """Tables, depth codes and names exactly; pictures within the encoder's loss."""
    entry = shard_set.segments()[1]
    back = shard_set.read(entry)
    rows = slice(entry.first_frame, entry.first_frame + entry.num_frames)
    assert (back.key, back.episode, back.split, back.instruction) == (entry.key, 0, "train", segment.instruction)
    assert (back.first_frame, back.first_start, back.num_starts) == (8, 8, 8)
    for name in ("proprio", "proprio_mask", "action", "action_mask"):
        np.testing.assert_array_equal(getattr(back, name), getattr(segment, name)[rows])
    assert back.depth is not None
    assert segment.depth is not None
    np.testing.assert_array_equal(back.depth, segment.depth[:, rows])
    assert np.abs(back.rgb.astype(float) - segment.rgb[:, rows]).mean() < 4


def same(left: Clip, right: Clip) -> bool:
    names = [field.name for field in dataclasses.fields(Clip)]
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


def test_a_clip_read_alone_is_the_clip_cut(shard_set: ShardSet) -> None:
    timing = shard_set.contract.timing
    for ref in shard_set.clips(None, 7):
        assert same(shard_set.read_clip(ref), cut_clip(shard_set.read(ref.entry), ref.start, timing))


def test_a_clip_is_read_with_the_pictures_that_are_asked_for(shard_set: ShardSet) -> None:
    ref = shard_set.clips("train", 1)[3]
    whole = shard_set.read_clip(ref)
    assert whole.depth is not None
    colours, depth, nothing = (shard_set.read_clip(ref, pictures) for pictures in ("rgb", "depth", "none"))
    np.testing.assert_array_equal(colours.rgb, whole.rgb)
    np.testing.assert_array_equal(depth.depth, whole.depth)
    assert colours.depth is None
    assert nothing.depth is None
    assert depth.rgb.size == nothing.rgb.size == 0
    for one in (colours, depth, nothing):
        np.testing.assert_array_equal(one.action, whole.action)
        np.testing.assert_array_equal(one.frame_valid, whole.frame_valid)


def test_clips_do_not_depend_on_how_the_episode_was_cut(
    contract: Contract, segment: Segment, shard_set: ShardSet
) -> None:
    """Neighbours encode the pictures they share anew, but tables, depth and the set of starts are the episode's."""
    clips = [shard_set.read_clip(ref) for ref in shard_set.clips("train", 1) if ref.entry.episode == 0]
    assert [clip.start for clip in clips] == list(range(27))  # 29 frames less the 2 to the next picture
    for clip in clips[::5]:
        whole = cut_clip(segment, clip.start, contract.timing)
        for name in ("depth", "frame_valid", "proprio", "action", "action_mask", "action_states"):
            np.testing.assert_array_equal(getattr(clip, name), getattr(whole, name))


@settings(max_examples=100)
@given(frames=st.integers(1, 120), skip=st.integers(1, 4), stride=st.integers(1, 30), spare=st.integers(0, 40))
def test_clip_starts_are_multiples_of_the_stride_for_any_cut(
    contract: Contract, frames: int, skip: int, stride: int, spare: int
) -> None:
    timing = Timing(fps=10, frame_skip=skip, action_skip=1, clip_frames=5)
    entries = [
        SegmentEntry(
            key=segment_key(0, first), episode=0, shard="", first_frame=first, num_frames=count, first_start=start,
            num_starts=starts, split="train", members={},
        )
        for first, count, start, starts in segment_bounds(frames, timing, timing.span + spare)
    ]  # fmt: skip
    index = Index(contract_sha256="", shards=(), episodes=(), segments=tuple(entries))
    found = ShardSet(Path(), contract.model_copy(update={"timing": timing}), index).clips("train", stride)
    assert [ref.start for ref in found] == list(range(0, frames - skip, stride))


def test_a_shard_is_no_larger_than_asked_unless_by_one_segment(shard_set: ShardSet) -> None:
    held: dict[str, list[int]] = {}
    for entry in shard_set.segments():
        held.setdefault(entry.shard, []).append(sum(size for _, size in entry.members.values()))
    assert all(sum(sizes) <= 40_000 or len(sizes) == 1 for sizes in held.values()), held
    assert max(map(len, held.values())) > 1, "segments are gathered"


def test_clips_start_at_multiples_of_the_stride_with_a_real_future(shard_set: ShardSet) -> None:
    starts = {
        (ref.entry.episode, ref.start): ref for ref in shard_set.clips("train", 4) + shard_set.clips("held_out", 4)
    }
    assert sorted(starts) == [(0, s) for s in range(0, 27, 4)] + [(1, s) for s in range(0, 20, 4)] + [
        (2, s) for s in range(0, 15, 4)
    ]
    for ref in starts.values():
        assert shard_set.read_clip(ref).frame_valid[1] == 1
        assert re.fullmatch(r"[a-z0-9_-]+", ref.key)


def test_splits_are_by_episode(shard_set: ShardSet) -> None:
    assert {entry.episode for entry in shard_set.segments("train")} == {0, 1}
    assert {entry.episode for entry in shard_set.segments("held_out")} == {2}
    assert len(shard_set.segments()) == len(shard_set.segments("train")) + len(shard_set.segments("held_out"))


def test_an_episode_by_number(shard_set: ShardSet) -> None:
    assert shard_set.episode(2).source == "recording-2"
    with pytest.raises(UserError, match=r"there is no episode 7.*choose one of: 0, 1, 2"):
        shard_set.episode(7)


def test_webdataset_reads_it(shard_set: ShardSet) -> None:
    import webdataset

    urls = [str(shard_set.folder / shard.name) for shard in shard_set.index.shards]
    assert len(urls) > 1
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in shard_set.segments()]
    for sample, entry in zip(samples, shard_set.segments(), strict=True):
        assert {name for name in sample if not name.startswith("__")} == {
            "meta.json", "motion.npz", "rgb.front.mp4", "rgb.wrist.mp4", "depth.front.mkv", "depth.wrist.mkv",
        }  # fmt: skip
        assert json.loads(sample["meta.json"])["num_frames"] == entry.num_frames
        with (shard_set.folder / entry.shard).open("rb") as stream:
            for name, (offset, size) in entry.members.items():
                stream.seek(offset)
                assert stream.read(size) == sample[name]


def test_tars_are_those_of_webdataset_s_own_writer(shard_set: ShardSet) -> None:
    from webdataset.writer import TarWriter

    for shard in shard_set.index.shards:
        written = (shard_set.folder / shard.name).read_bytes()
        theirs = io.BytesIO()
        tar = TarWriter(theirs, user="", group="", mode=0o644, mtime=0, encoder=False)
        for entry in shard_set.segments():
            if entry.shard == shard.name:
                members = {name: written[at : at + size] for name, (at, size) in entry.members.items()}
                tar.write({"__key__": entry.key, **members})
        tar.close()
        assert theirs.getvalue() == written


def test_an_unfinished_tar_leaves_nothing(shard_set: ShardSet, tmp_path: Path) -> None:
    entry = shard_set.segments()[0]
    whole = (shard_set.folder / entry.shard).read_bytes()
    members = {name: whole[at : at + size] for name, (at, size) in entry.members.items()}
    with ShardSetWriter(tmp_path / "out") as writer:
        writer.add(members)  # and no finish()
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_in_the_tars_tells_when_or_by_whom(shard_set: ShardSet) -> None:
    for shard in shard_set.index.shards:
        with tarfile.open(shard_set.folder / shard.name) as tar:
            for member in tar.getmembers():
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_equal_recordings_give_equal_files(shard_set: ShardSet, make_shard_set: Make, tmp_path: Path) -> None:
    again = make_shard_set(tmp_path / "again", shard_set.contract)
    names = sorted(path.name for path in shard_set.folder.iterdir())
    assert names == sorted(path.name for path in again.folder.iterdir())
    for name in names:
        assert (shard_set.folder / name).read_bytes() == (again.folder / name).read_bytes(), name


def test_a_killed_writer_leaves_no_set_and_the_next_one_finishes(
    contract: Contract, segment: Segment, shard_set: ShardSet, make_shard_set: Make, tmp_path: Path
) -> None:
    members = encode_segment(segment, contract.camera_names, 10.0)

    def fail() -> None:
        with ShardSetWriter(tmp_path / "set", shard_bytes=1) as writer:
            writer.add(members)
            later = segment_key(1, 0)
            meta = SegmentMeta.model_validate_json(members["meta.json"]).model_copy(update={"episode": 1, "key": later})
            writer.add(members | {"meta.json": meta.model_dump_json().encode()})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["shard-000000.tar"]
    with pytest.raises(UserError, match=r"is not a finished shard set \(no index.json\)"):
        ShardSet.open(tmp_path / "set")
    (tmp_path / "set" / ".shard-000001.x.tmp.tar").touch()
    (tmp_path / "set" / "shard-000099.tar").touch()
    make_shard_set(tmp_path / "set", contract).verify()
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == sorted(p.name for p in shard_set.folder.iterdir())


def test_a_finished_set_is_never_written_over(shard_set: ShardSet) -> None:
    with pytest.raises(UserError, match="holds a finished shard set already"):
        ShardSetWriter(shard_set.folder)


def test_segments_come_in_order_and_all_are_named(contract: Contract, segment: Segment, tmp_path: Path) -> None:
    members = encode_segment(segment, contract.camera_names, 10.0)
    with ShardSetWriter(tmp_path / "set") as writer:
        writer.add(members)
        with pytest.raises(ValueError, match="comes out of order"):
            writer.add(members)
        entry = episode_entry(0, ["other"], frames=29, split="train", instructions=["x"], source="y")
        with pytest.raises(ValueError, match="do not name the segments"):
            writer.finish(contract, [entry])


def test_without_depth_there_is_none(contract_with: Callable[..., Contract], segment: Segment, tmp_path: Path) -> None:
    contract = contract_with(depth={"kind": "none"})
    with ShardSetWriter(tmp_path / "set") as writer:
        writer.add(encode_segment(dataclasses.replace(segment, depth=None), contract.camera_names, 10.0))
        entry = episode_entry(0, [segment.key], frames=29, split="train", instructions=["x"], source="y")
        made = writer.finish(contract, [entry])
    assert not any(name.startswith("depth") for name in made.segments()[0].members)
    assert made.read(made.segments()[0]).depth is None
    assert made.read_clip(made.clips("train", 4)[0]).depth is None


@pytest.fixture
def damaged(shard_set: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_set.folder, tmp_path / "set"))


def test_a_missing_or_short_shard_is_named(damaged: Path) -> None:
    shard = damaged / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"shard-000001\.tar: has \d+ bytes, not the \d+ that were written"):
        ShardSet.open(damaged)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar: the shard is missing"):
        ShardSet.open(damaged)


def test_another_contract_is_named(damaged: Path, contract_with: Callable[..., Contract]) -> None:
    contract_with(embodiment="other").save(damaged / "contract.json")
    with pytest.raises(UserError, match=r"index\.json: belongs to the contract [0-9a-f]{12}, and .*contract\.json is"):
        ShardSet.open(damaged)


def test_another_version_is_named(damaged: Path) -> None:
    index = json.loads((damaged / "index.json").read_text())
    (damaged / "index.json").write_text(json.dumps(index | {"schema_version": 9}))
    with pytest.raises(UserError, match=r"index\.json: is not an index of this version \(schema_version: "):
        ShardSet.open(damaged)


def test_a_folder_that_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder does not exist"):
        ShardSet.open(tmp_path / "none")
    with pytest.raises(UserError, match="is not a finished shard set"):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize("member", ["meta.json", "motion.npz", "rgb.front.mp4", "depth.front.mkv"])
def test_damage_inside_is_found_by_the_hash_and_named_when_read(damaged: Path, member: str) -> None:
    found = ShardSet.open(damaged)
    found.verify()
    entry = found.segments()[0]
    offset, size = entry.members[member]
    data = bytearray((damaged / entry.shard).read_bytes())
    data[offset : offset + size] = b"\x5a" * size
    (damaged / entry.shard).write_bytes(data)
    with pytest.raises(UserError, match=r"shard-000000\.tar: is damaged \(SHA-256 differs"):
        found.verify()
    with pytest.raises(UserError, match=r"shard-000000\.tar: segment episode-000000-000000 cannot be read"):
        found.read(entry)


@pytest.mark.parametrize("member", ["meta.json", "motion.npz", "rgb.front.mp4", "depth.front.mkv"])
def test_one_bit_of_a_file_is_noticed_when_it_is_read(damaged: Path, member: str) -> None:
    found = ShardSet.open(damaged)
    entry = found.segments()[0]
    offset, size = entry.members[member]
    data = bytearray((damaged / entry.shard).read_bytes())
    data[offset + size // 2] ^= 1
    (damaged / entry.shard).write_bytes(data)
    with pytest.raises(
        UserError, match=rf"segment episode-000000-000000 cannot be read \({member} is not what was writt"
    ):
        found.read(entry)
    assert (found.read(found.segments()[1]).rgb.any(axis=(1, 2, 3))).all(), "the others are as they were"


def test_a_set_from_before_there_were_checksums_is_read(shard_set: ShardSet, damaged: Path) -> None:
    tree = json.loads((damaged / "index.json").read_text())
    for entry in tree["segments"]:
        assert set(entry.pop("crc32c")) == set(entry["members"])
    (damaged / "index.json").write_text(json.dumps(tree))
    older = ShardSet.open(damaged)
    older.verify()
    for one, other in zip(older, shard_set, strict=True):
        assert (one.rgb == other.rgb).all()
        assert (one.action == other.action).all()


def test_checksums_are_those_of_rfc_3720(shard_set: ShardSet) -> None:
    def crc32c(data: bytes) -> int:  # bit by bit, as appendix B.4 has it: reflected 0x1EDC6F41
        value = 0xFFFFFFFF
        for byte in data:
            value ^= byte
            for _ in range(8):
                value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value ^ 0xFFFFFFFF

    assert crc32c(bytes(32)) == 0x8A9136AA  # its first example
    entry = shard_set.segments()[0]
    tar = (shard_set.folder / entry.shard).read_bytes()
    for name, (offset, size) in entry.members.items():
        if size < 20_000:
            assert crc32c(tar[offset : offset + size]) == entry.crc32c[name]
