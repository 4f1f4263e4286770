"""The streamed writer's files are the library's; and a killed export leaves nothing that loads."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xwam_ft.errors import UserError
from xwam_ft.files import sent_on
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece, all_finite, require_written, write_stream
from xwam_ft.policy.bundle import load_policy


def pieces(tensors: dict[str, torch.Tensor]) -> list[Piece]:
    return [Piece(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()]


def some_tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "odd": torch.randn(3, generator=g).bfloat16(),
        "wide": torch.randn(2, 5, generator=g),
        "scalar": torch.randn((), generator=g).double(),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "last": torch.randn(7, 1, generator=g).half(),
    }


def test_the_library_reads_what_was_streamed(tmp_path: Path) -> None:
    tensors, told = some_tensors(), list[int]()
    digests = write_stream(tmp_path / "a.safetensors", pieces(tensors), {"format": "pt"}, told.append)
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert sum(told) == sum(tensor.nbytes for tensor in tensors.values())
    require_written(open_checkpoint(tmp_path / "a.safetensors").tensors, digests, tmp_path)


def test_one_changed_byte_and_wrong_tensors_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digests = write_stream(path, pieces(some_tensors()), {}, lambda _: None)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="reads back changed"):
        require_written(open_checkpoint(path).tensors, digests, path)
    for made, part in ((torch.full((2,), torch.nan), "not finite"), (torch.zeros(3), r"shape \[3\]")):
        with pytest.raises(UserError, match=part):
            write_stream(tmp_path / "b", [Piece("x", (2,), torch.float32, lambda t=made: t)], {}, lambda _: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_that_fails_beside_the_work_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr("xwam_ft.files.os.fsync", fails)
    with pytest.raises(OSError, match="the disk fails"), sent_on((tmp_path / "a").open("wb")) as send:
        send()
    with pytest.raises(OSError, match="the disk fails"):
        write_stream(tmp_path / "b", pieces(some_tensors()), {}, lambda _: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_file_cut_after_it_was_opened_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_stream(path, pieces(some_tensors()), {}, lambda _: None)
    tensors = open_checkpoint(path).tensors
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="has become shorter"):
        [stored.read() for stored in tensors.values()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype) -> None:
    for count in (1, 7, 70001):
        numbers = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
        assert all_finite(numbers)
        for value in (torch.nan, torch.inf, -torch.inf):
            for place in {0, count // 2, count - 1}:
                wrong = numbers.clone()
                wrong[place] = value
                assert not all_finite(wrong), (count, value, place)
    assert all_finite(torch.zeros(0, dtype=dtype))
    assert all_finite(torch.arange(3))


@pytest.mark.soak
def test_killed_at_20_moments_no_half_bundle_is_loadable(trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "xwam_ft.cli", "export", str(trained_run), str(out)]
    started = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "whole")], check=True, capture_output=True)
    took = time.monotonic() - started
    draw = random.Random(0)
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(draw.uniform(0.2, 1.0) * took)
            os.kill(process.pid, signal.SIGKILL)
        if out.exists():  # it was done before the kill came
            load_policy(out, "cpu")
            out.rename(tmp_path / f"done-{time.monotonic_ns()}")
    subprocess.run(command, check=True, capture_output=True)
    load_policy(out, "cpu")
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert not list(tmp_path.glob(".*")), "a draft was left after an export that went through"
