"""A folder's hash follows every byte, and is remembered only where that cannot hide a change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xwam_ft.model import fingerprint


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

    def noted(place: Path, files: Any) -> str:
        seen.append(place)
        return own(place, files)

    monkeypatch.setattr(fingerprint, "_hash", noted)
    return seen


def age(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*.*"):
        time = path.stat().st_mtime - seconds
        os.utime(path, (time, time))


def test_old_files_are_read_once(folder: Path, hashed: list[Path]) -> None:
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == first
    assert len(hashed) == 2, "just written: a change in the same tick could not be told"
    age(folder, 100)
    assert {fingerprint.folder_fingerprint(folder, ["vae"]) for _ in range(3)} == {first}
    assert len(hashed) == 3


def test_another_byte_is_another_hash(folder: Path, hashed: list[Path]) -> None:
    age(folder, 100)
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    (folder / "vae" / "weights.safetensors").write_bytes(bytes(99) + b"\1")
    second = fingerprint.folder_fingerprint(folder, ["vae"])
    assert second != first
    age(folder, 50)
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == second


def test_a_damaged_memory_or_a_home_that_cannot_be_written_costs_time_alone(folder: Path, hashed: list[Path]) -> None:
    age(folder, 100)
    first = fingerprint.folder_fingerprint(folder, ["vae"])
    fingerprint._place().write_text("{torn")
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == first
    fingerprint._place().unlink()
    fingerprint._place().parent.rmdir()
    fingerprint._place().parent.write_text("a file in its way")
    assert fingerprint.folder_fingerprint(folder, ["vae"]) == first
    assert len(hashed) == 3
