"""The latent cache: its numbers against the parts they come from, resuming, and what damage is called."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

from shared import QUIET
from xwam_ft.contract import DepthCode
from xwam_ft.conventions import decode_actions, denormalise_action
from xwam_ft.encode import cache as caches
from xwam_ft.encode import encode as encoding
from xwam_ft.encode import segments
from xwam_ft.encode.cache import INDEX_FILE, LatentCache
from xwam_ft.encode.clip_tensors import latent_frame_mask
from xwam_ft.encode.encode import encode, wants_depth
from xwam_ft.errors import UserError
from xwam_ft.model.backbone import load_backbone
from xwam_ft.pictures import centre_crop
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet

CPU = torch.device("cpu")


@pytest.fixture
def copied(shard_set: ShardSet, tmp_path: Path, cache: LatentCache) -> tuple[ShardSet, Path]:
    """A shard set of one's own, its cache included."""
    folder = shutil.copytree(shard_set.folder, tmp_path / "set")
    return ShardSet.open(folder), folder / cache.folder.name


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_holds_the_latents_of_the_centre_crop(cache: LatentCache, shard_set: ShardSet) -> None:
    backbone = load_backbone("tiny", dtype="float32", parts=("vae",))
    reference = shard_set.clips(None, 3)[4]
    clip = shard_set.read_clip(reference)
    pixels = np.stack([centre_crop(view, shard_set.contract.image.crop) for view in clip.rgb])
    expected = backbone.encode_video(torch.from_numpy(pixels)[None])[0]
    stored = next(c for c in cache.clips if c.key == reference.key)
    torch.testing.assert_close(cache.read(stored).rgb, expected, atol=1e-5, rtol=1e-5)


def test_files_are_given_back_before_the_system_maps_no_more(
    cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [cache.read(clip) for clip in cache.clips]
    monkeypatch.setattr(caches, "MAPPED_FILES", 1)
    again = LatentCache.open(cache.folder)
    order = [*range(len(wanted)), *reversed(range(len(wanted)))]
    assert len({cache.clips[index].file for index in order}) > 1
    for index in order:
        torch.testing.assert_close(vars(again.read(again.clips[index])), vars(wanted[index]), atol=0, rtol=0)
        assert len(again._open) == 1  # pyright: ignore[reportPrivateUsage]


def test_its_actions_decode_to_the_recorded_commands(cache: LatentCache, shard_set: ShardSet) -> None:
    contract = shard_set.contract
    for reference in shard_set.clips("train", 3)[::3]:
        clip = shard_set.read_clip(reference)
        stored = cache.read(next(c for c in cache.clips if c.key == reference.key))
        actions = denormalise_action(contract, stored.action.double().numpy())
        commands = decode_actions(contract, actions, clip.proprio[0], clip.action_states)
        np.testing.assert_allclose(commands, clip.action, atol=1e-6)


def test_what_is_past_the_end_is_masked(cache: LatentCache, shard_set: ShardSet) -> None:
    timing = shard_set.contract.timing
    last = shard_set.clips("held_out", 3)[-1]
    left = last.entry.first_frame + last.entry.num_frames - last.start  # source frames from the start to the end
    stored = cache.read(next(clip for clip in cache.clips if clip.key == last.key))
    assert left < timing.span
    assert stored.action_mask.sum() == left * shard_set.contract.action_dim
    assert stored.proprio_mask[:, 0].sum() == len(range(0, left, timing.frame_skip))
    assert stored.depth_mask is not None
    assert not stored.depth_mask[stored.video_mask == 0].any()


@pytest.mark.parametrize(("valid", "expected"), [(5, [1, 1]), (3, [1, 1]), (2, [1, 0]), (1, [1, 0])])
def test_a_latent_frame_counts_from_half_of_its_frames(valid: int, expected: list[int]) -> None:
    assert latent_frame_mask((np.arange(5) < valid).astype(float)).tolist() == expected


@pytest.mark.slow
def test_a_stopped_encoding_goes_on_to_the_same_bytes(
    copied: tuple[ShardSet, Path], recipe: Recipe, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set, folder = copied
    whole = contents(folder)
    shutil.rmtree(folder)
    calls = 0
    honest = segments.encode_clips

    def stops(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return honest(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(segments, "encode_clips", stops)
    with pytest.raises(KeyboardInterrupt):
        encode(recipe, shard_set, CPU, console)
    part = contents(folder)
    assert INDEX_FILE not in part
    assert 0 < len(part) < len(whole)
    monkeypatch.undo()
    encode(recipe, shard_set, CPU, console)
    assert contents(folder) == whole


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_named_and_mended_by_encoding_again(
    copied: tuple[ShardSet, Path], recipe: Recipe, console: Console, damage: str
) -> None:
    shard_set, folder = copied
    whole = contents(folder)
    victim = sorted((folder / "segments").iterdir())[1]
    data = bytearray(victim.read_bytes())
    if damage == "truncate":
        victim.write_bytes(data[:-7])
    elif damage == "flip":
        data[-1] ^= 1
        victim.write_bytes(data)
    else:
        victim.unlink()
    said = {"truncate": "bytes, not the", "flip": "its SHA-256 is another", "remove": "is missing"}[damage]
    with pytest.raises(UserError, match=said) as error:
        LatentCache.open(folder)
    assert str(victim) in str(error.value)
    assert "xwam-ft encode" in error.value.fix
    if damage != "remove":
        with pytest.raises(UserError, match=said):
            encode(recipe, shard_set, CPU, console)
        victim.unlink()
    encode(recipe, shard_set, CPU, console)
    assert contents(folder) == whole


def test_an_unfinished_cache_is_refused(copied: tuple[ShardSet, Path]) -> None:
    _, folder = copied
    (folder / INDEX_FILE).unlink()
    with pytest.raises(UserError, match="is not complete"):
        LatentCache.open(folder)


def test_the_fingerprint_follows_what_changes_the_numbers(
    cache: LatentCache, shard_set: ShardSet, changed: object
) -> None:
    from dataclasses import replace

    same = {cache.identity.fingerprint}
    for field in ("backbone", "contract", "shards", "dtype", "augment"):
        same.add(replace(cache.identity, **{field: "other"}).fingerprint)
    same.add(replace(cache.identity, clip_stride=7).fingerprint)
    same.add(replace(cache.identity, with_depth=False).fingerprint)
    assert len(same) == 8


@pytest.mark.parametrize("branch", ["adapter", "copy"])
def test_a_depth_branch_without_depth_is_refused(recipe: Recipe, contract_with: object, branch: str) -> None:
    bare = contract_with(depth=DepthCode(kind="none"))  # pyright: ignore
    asked = recipe.model.model_copy(update={"depth": recipe.model.depth.model_copy(update={"branch": branch})})
    with pytest.raises(UserError, match=rf"model\.depth\.branch is '{branch}', but the shards hold no depth"):
        wants_depth(recipe.model_copy(update={"model": asked}), bare)


def test_auto_trains_without_a_depth_branch_where_there_is_no_depth(recipe: Recipe, contract_with: object) -> None:
    bare = contract_with(depth=DepthCode(kind="none"))  # pyright: ignore
    assert recipe.model.depth.branch == "auto"
    assert not wants_depth(recipe, bare)
    assert recipe.model.branch_on(depth=False) == "none"


def test_a_full_disk_is_foreseen(
    copied: tuple[ShardSet, Path], recipe: Recipe, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set, folder = copied
    shutil.rmtree(folder)
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore
    with pytest.raises(UserError, match="MB are free"):
        encode(recipe, shard_set, CPU, console)
    assert not folder.exists()


def test_what_is_there_already_needs_no_room(
    copied: tuple[ShardSet, Path], recipe: Recipe, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set, folder = copied
    whole = contents(folder)
    (folder / INDEX_FILE).unlink()
    lost = sorted((folder / "segments").iterdir())[0]
    room = 3 * lost.stat().st_size
    assert room < sum(path.stat().st_size for path in (folder / "segments").iterdir())
    lost.unlink()
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, room))  # type: ignore
    encode(recipe, shard_set, CPU, console)
    assert contents(folder) == whole


@pytest.mark.parametrize("of", ["instructions", "clips"])
def test_a_disk_that_fills_while_encoding_is_one_sentence(
    copied: tuple[ShardSet, Path], recipe: Recipe, console: Console, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    shard_set, folder = copied
    shutil.rmtree(folder)

    def full(*_: object) -> None:
        if of == "instructions":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(*((encoding, "write_rows") if of == "instructions" else (segments, "save")), full)
    with pytest.raises(UserError, match=r"no space left on device.*run the same command again"):
        encode(recipe, shard_set, CPU, console)


def test_the_index_lists_clips_and_prompts(cache: LatentCache, shard_set: ShardSet) -> None:
    index = json.loads((cache.folder / INDEX_FILE).read_text())
    assert [clip["key"] for clip in index["clips"]] == [reference.key for reference in shard_set.clips(None, 3)]
    assert index["prompts"] == sorted({"", *shard_set.contract.prompts})


@pytest.mark.slow
def test_processes_encode_the_same_bytes_and_go_on_where_one_stopped(
    recipe: Recipe, shard_set: ShardSet, cache: LatentCache, tmp_path: Path
) -> None:
    other = shutil.copytree(shard_set.folder, tmp_path / "set", ignore=shutil.ignore_patterns("latents-*"))
    kept = next(path for path in cache.folder.rglob("segments/*.safetensors"))
    shown = io.StringIO()
    again = tmp_path / "set" / cache.folder.name
    (again / "segments").mkdir(parents=True)
    shutil.copy(kept, again / "segments")
    made = encode(recipe, ShardSet.open(other), CPU, Console(file=shown, width=200), workers=2)
    files = {path.relative_to(cache.folder): path.read_bytes() for path in cache.folder.rglob("*") if path.is_file()}
    assert {
        path.relative_to(made.folder): path.read_bytes() for path in made.folder.rglob("*") if path.is_file()
    } == files
    assert len(files) > 4


@pytest.mark.slow
def test_what_a_worker_refuses_is_said_as_one_process_says_it(
    recipe: Recipe, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(shard_set.folder, tmp_path / "set", ignore=shutil.ignore_patterns("latents-*"))
    monkeypatch.setattr(encoding, "require_sound", lambda *_: None)  # it would find the damage first
    shard = next(other.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:2000] + bytes(shard.stat().st_size - 2000))
    said: list[str] = []
    for workers in (1, 2):
        with pytest.raises(UserError) as error:
            encode(recipe, ShardSet.open(other), CPU, QUIET, workers=workers)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert str(other) in said[0]
