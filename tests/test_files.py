"""What is written whole is there whole; what fails leaves nothing."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path

import pytest

from xwam_ft.errors import UserError
from xwam_ft.files import (
    TEMPORARY,
    atomic_folder,
    atomic_path,
    json_bytes,
    read_json,
    remove_folder,
    remove_temporaries,
    sha256,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_text_atomic(target, "old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".json"
            temporary.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "old"


def test_a_write_replaces_and_makes_parents(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "a.bin"
    write_bytes_atomic(target, b"1")
    write_bytes_atomic(target, b"22")
    assert target.read_bytes() == b"22"
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "bundle") as temporary:
            (temporary / "model.bin").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_may_fill_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with atomic_folder(tmp_path / "bundle") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "model.bin").write_bytes(b"x")
        assert list((tmp_path / "bundle").iterdir()) == []
    assert (tmp_path / "bundle" / "sub" / "model.bin").read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    if kind == "folder":
        target.mkdir()
        (target / "precious").touch()
    else:
        target.touch()
    message = "bundle: exists already and is not an empty folder"
    with pytest.raises(UserError, match=message), atomic_folder(target):
        pytest.fail("the body must not run")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is done to a disk in order: ("sync" or "rename", inode)."""
    done: list[tuple[str, int]] = []
    sync = os.fsync

    def recorded(name: str) -> None:
        move = getattr(Path, name)

        def rename(path: Path, target: Path) -> Path:
            done.append(("rename", path.stat().st_ino))
            return move(path, target)

        monkeypatch.setattr(Path, name, rename)

    def fsync(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    recorded("rename")
    recorded("replace")
    return done


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, disk: list[tuple[str, int]]) -> None:
    """A power cut after a rename must not leave a name without what belongs under it."""
    with atomic_folder(tmp_path / "bundle") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "model.bin").write_bytes(b"x")
        (temporary / "card.md").write_bytes(b"y")
    target = tmp_path / "bundle"
    inside = {path.stat().st_ino for path in (target, *target.rglob("*"))}
    at = disk.index(("rename", target.stat().st_ino))
    assert {inode for what, inode in disk[:at] if what == "sync"} >= inside
    assert ("sync", tmp_path.stat().st_ino) in disk[at:]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, disk: list[tuple[str, int]]) -> None:
    write_bytes_atomic(tmp_path / "a.bin", b"1")
    inode = (tmp_path / "a.bin").stat().st_ino
    assert disk == [("sync", inode), ("rename", inode), ("sync", tmp_path.stat().st_ino)]


def test_json_keeps_order_and_floats(tmp_path: Path) -> None:
    value = {"b": 0.1 + 0.2, "a": [1e-300, -0.0], "ü": None}
    write_json_atomic(tmp_path / "v.json", value)
    back = read_json(tmp_path / "v.json")
    assert back == value
    assert list(back) == list(value)
    assert json_bytes(back) == (tmp_path / "v.json").read_bytes()
    with pytest.raises(ValueError):
        json_bytes(math.nan)


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: the file is missing"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"bad\.json: is not valid JSON .*line 1"):
        read_json(tmp_path / "bad.json")


def test_sha256_streams_the_same_hash(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000  # larger than one block
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/out", tmp_path / ("n" * 250)):
        with pytest.raises(UserError, match="cannot be written"), atomic_folder(place):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_removed_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "step-000001"
    folder.mkdir()
    (folder / "weights").write_text("")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(folder)
    [left] = tmp_path.iterdir()
    assert TEMPORARY.fullmatch(left.name)
    remove_temporaries(folder)
    assert list(tmp_path.iterdir()) == []
