"""The `.pt` written tensor by tensor is one that `torch.save` could have written."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.export.torch_file import write_torch
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece, require_written

TENSORS = {
    "a.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(7, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "c": torch.tensor(3.5, dtype=torch.float64),
    "d": torch.arange(12).reshape(3, 2, 2),
    "e": torch.zeros(0, 4, dtype=torch.float16),
}


def pieces(tensors: dict[str, torch.Tensor]) -> list[Piece]:
    return [Piece(name, tuple(x.shape), x.dtype, x.clone) for name, x in tensors.items()]


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_it_with_weights_only(tmp_path: Path, mapped: bool) -> None:
    done: list[int] = []
    write_torch(tmp_path / "x.pt", "module", pieces(TENSORS), done.append)
    read = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
    assert list(read) == ["module"]
    assert list(read["module"]) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert read["module"][name].dtype == tensor.dtype
        assert torch.equal(read["module"][name], tensor), name
        assert read["module"][name].is_contiguous()
    assert sum(done) == sum(x.nbytes for x in TENSORS.values())


def test_ours_reads_it_and_its_hashes_hold(tmp_path: Path) -> None:
    digests = write_torch(tmp_path / "x.pt", "module", pieces(TENSORS), lambda size: None)
    require_written(open_checkpoint(tmp_path / "x.pt").tensors, digests, tmp_path)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        heads = [info.header_offset for info in archive.infolist()]
    data = (tmp_path / "x.pt").read_bytes()
    for head in heads:  # a local header, then its name and its extra field
        skip = int.from_bytes(data[head + 26 : head + 28], "little") + int.from_bytes(
            data[head + 28 : head + 30], "little"
        )
        assert (head + 30 + skip) % 64 == 0


def test_a_pickle_of_the_same_structure_is_what_torch_saves(tmp_path: Path) -> None:
    write_torch(tmp_path / "ours.pt", "module", pieces(TENSORS), lambda size: None)
    torch.save({"module": TENSORS}, tmp_path / "theirs.pt")
    with zipfile.ZipFile(tmp_path / "ours.pt") as ours, zipfile.ZipFile(tmp_path / "theirs.pt") as theirs:
        import pickletools

        def globals_of(archive: zipfile.ZipFile, name: str) -> set[str]:
            codes = pickletools.genops(archive.read(name))
            return {str(argument) for code, argument, _ in codes if code.name == "GLOBAL"}

        assert globals_of(ours, "archive/data.pkl") == globals_of(theirs, "theirs/data.pkl")


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    held: list[int] = []

    def make() -> torch.Tensor:
        held.append(1)
        return torch.ones(1000, 250)

    tracemalloc.start()
    many = [Piece(f"t{index}", (1000, 250), torch.float32, make) for index in range(40)]
    write_torch(tmp_path / "x.pt", "module", many, lambda size: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) == 40
    assert peak < 5e6, "of 40 MB"


def test_numbers_that_are_not_finite_leave_nothing(tmp_path: Path) -> None:
    bad = [Piece("x", (2,), torch.float32, lambda: torch.tensor([1.0, float("nan")]))]
    with pytest.raises(UserError, match="x holds numbers that are not finite"):
        write_torch(tmp_path / "x.pt", "module", bad, lambda size: None)
    assert list(tmp_path.iterdir()) == []
