"""A folder's hash follows every byte, and is remembered only where that cannot hide a change."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from rich.console import Console

from xwam_ft.errors import UserError
from xwam_ft.model import fingerprint

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import LocalHub


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_SMALL", 4)
    (tmp_path / "wan" / "vae").mkdir(parents=True)
    (tmp_path / "wan" / "vae" / "config.json").write_text("{}")
    (tmp_path / "wan" / "vae" / "weights.safetensors").write_bytes(bytes(100))
    return tmp_path / "wan"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read."""
    seen: list[Path] = []
    own: Callable[..., str] = fingerprint._hash

    def noted(place: Path, files: Any, *more: Any) -> str:
        seen.append(place)
        return own(place, files, *more)

    monkeypatch.setattr(fingerprint, "_hash", noted)
    return seen


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the clock go on: what was written is old then."""

    def pass_by() -> None:
        now = fingerprint.time.time()
        monkeypatch.setattr(fingerprint.time, "time", lambda: now + 100)

    return pass_by


def keep_times(path: Path, change: Callable[[], object]) -> None:
    """Change a file and give it back the times that can be given."""
    stat = path.stat()
    change()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_old_files_are_read_once(folder: Path, hashed: list[Path], later: Callable[[], None]) -> None:
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == first
    assert len(hashed) == 2, "just written: a change in the same tick could not be told"
    later()
    assert {fingerprint.folder_fingerprint(folder, ["vae"]) for _ in range(3)} == {first}
    assert len(hashed) == 3


def test_another_byte_is_another_hash(folder: Path, later: Callable[[], None]) -> None:
    later()
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    (folder / "vae" / "weights.safetensors").write_bytes(bytes(99) + b"\1")
    second = fingerprint.folder_fingerprint(folder, ["vae"])
    assert second != first
    later()
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == second


def test_written_over_in_place_with_its_size_and_time_kept(folder: Path, later: Callable[[], None]) -> None:
    """As `cp -p`, `rsync --inplace -t` or an archive of files that all have one time does."""
    path = folder / "vae" / "weights.safetensors"
    later()
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    inode = path.stat().st_ino
    keep_times(path, lambda: path.write_bytes(bytes(99) + b"\1"))
    assert path.stat().st_ino == inode
    assert fingerprint.folder_fingerprint(folder, ["vae"]) != first


def test_replaced_by_rename_with_its_size_and_time_kept(folder: Path, later: Callable[[], None]) -> None:
    path, other = folder / "vae" / "weights.safetensors", folder / "other"
    later()
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    other.write_bytes(bytes(99) + b"\1")
    keep_times(path, lambda: other.replace(path))
    assert fingerprint.folder_fingerprint(folder, ["vae"]) != first


def test_a_link_that_leads_elsewhere(folder: Path, tmp_path: Path, later: Callable[[], None]) -> None:
    path, blobs = folder / "vae" / "weights.safetensors", [tmp_path / "one", tmp_path / "two"]
    for number, blob in enumerate(blobs):
        blob.write_bytes(bytes(99) + bytes([number]))
        os.utime(blob, (1e9, 1e9))
    path.unlink()
    path.symlink_to(blobs[0])
    later()
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    path.unlink()
    path.symlink_to(blobs[1])
    assert fingerprint.folder_fingerprint(folder, ["vae"]) != first


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    folder: Path, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "vae" / "weights.safetensors"
    later()
    own: Callable[..., str] = fingerprint._hash

    def changed(place: Path, files: Any) -> str:
        found = own(place, files)
        path.write_bytes(bytes(99) + b"\1")
        return found

    monkeypatch.setattr(fingerprint, "_hash", changed)
    fingerprint.folder_fingerprint(folder, ["vae"])
    assert not fingerprint._place().exists()


@pytest.mark.parametrize("large", [True, False])
def test_a_blob_of_the_hubs_cache_that_is_not_what_its_name_says(tmp_path: Path, large: bool) -> None:
    """A file of zeros where a full disk or a lost machine left them has its size, and its header may be whole."""
    home = tmp_path / "models--example--wan"
    content = b"weights" * 20
    name = hashlib.sha256(content) if large else hashlib.sha1(b"blob 140\0" + content)
    path = home / "snapshots" / ("a" * 40) / "vae" / "weights.safetensors"
    path.parent.mkdir(parents=True)
    (home / "blobs").mkdir()
    blob = home / "blobs" / name.hexdigest()
    blob.write_bytes(content)
    path.symlink_to(blob)
    fingerprint.folder_fingerprint(path.parents[1], ["vae"])
    blob.write_bytes(content[:-7] + bytes(7))
    fix = f"hf download example/wan vae/weights.safetensors --force-download --revision {'a' * 40}"
    with pytest.raises(UserError, match=r"weights\.safetensors: is damaged: its content is not") as told:
        fingerprint.folder_fingerprint(path.parents[1], ["vae"])
    assert fix in told.value.fix


def test_a_file_of_a_downloaded_folder_that_is_not_what_was_fetched(local_hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "source" / "vae").mkdir(parents=True)
    (tmp_path / "source" / "vae" / "config.json").write_text("{}")
    (tmp_path / "source" / "vae" / "weights.safetensors").write_bytes(b"weights" * 20)
    local_hub.add("models/org/wan", tmp_path / "source")
    snapshot_download("org/wan", local_dir=tmp_path / "wan")
    first = fingerprint.folder_fingerprint(tmp_path / "wan", ["vae"])
    path = tmp_path / "wan" / "vae" / "weights.safetensors"
    keep_times(path, lambda: path.write_bytes(b"weights" * 19 + bytes(7)))
    with pytest.raises(UserError, match=r"weights\.safetensors: is damaged: its content is not") as told:
        fingerprint.folder_fingerprint(tmp_path / "wan", ["vae"])
    assert "remove it" in told.value.fix
    path.unlink()
    snapshot_download("org/wan", local_dir=tmp_path / "wan")
    assert fingerprint.folder_fingerprint(tmp_path / "wan", ["vae"]) == first
    later = path.stat().st_mtime + 60
    path.write_bytes(b"my own weights")
    os.utime(path, (later, later))
    assert fingerprint.folder_fingerprint(tmp_path / "wan", ["vae"]) != first, "changed on purpose, after the download"


def test_a_damaged_memory_or_a_home_that_cannot_be_written_costs_time_alone(
    folder: Path, hashed: list[Path], later: Callable[[], None]
) -> None:
    later()
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    fingerprint._place().write_text("{torn")
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == first
    fingerprint._place().unlink()
    fingerprint._place().parent.rmdir()
    fingerprint._place().parent.write_text("a file in its way")
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == first
    assert len(hashed) == 3


def test_long_hashing_shows_how_far_it_is_and_a_remembered_one_shows_nothing(
    folder: Path, later: Callable[[], None]
) -> None:
    later()
    told = [StringIO(), StringIO()]
    for out in told:
        fingerprint.folder_fingerprint(folder, ["vae"], Console(file=out, width=120))
    first, second = (out.getvalue() for out in told)
    assert "hash vae" in first
    assert "0/0 MB" in first  # of 102 bytes
    assert second == ""
