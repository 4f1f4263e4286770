"""Foreign torch files: tensors to the bit without torch.load, nothing in them ever run, damage named."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.model.tensor_files.torch_zip import StoredTensor, TorchZip


def test_tensors_are_read_to_the_bit_in_every_dtype_and_stride(tmp_path: Path) -> None:
    base = torch.arange(60.0)
    tensors = OrderedDict(
        plain=torch.randn(3, 4),
        turned=base.view(5, 12).t(),
        part=base[7:19].view(3, 4),
        stepped=base.view(5, 12)[1:4, ::3],
        half=torch.randn(5).half(),
        brain=torch.randn(2, 2).bfloat16(),
        whole=torch.arange(4),
        truth=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2)),
    )
    torch.save({"a": tensors, "size": torch.Size([1, 2]), "kind": torch.bfloat16, "n": 3}, tmp_path / "t.pt")
    archive = TorchZip(tmp_path / "t.pt")
    content = archive.content
    assert (content["size"], content["kind"], content["n"]) == ((1, 2), torch.bfloat16, 3)
    assert archive.stand_ins == ()
    assert isinstance(content["a"]["plain"], StoredTensor)
    for name, tensor in tensors.items():
        read = archive.read(content["a"][name])
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor), name
    archive.close()


class Marks:
    """Unpickling this anywhere else makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Custom:
    def __init__(self) -> None:
        self.numbers = [1, 2]


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"w": torch.ones(2), "evil": Marks(marker), "own": Custom(), "path": tmp_path}, tmp_path / "evil.pt")
    archive = TorchZip(tmp_path / "evil.pt")
    assert not marker.exists()
    assert {f"{os.system.__module__}.system", f"{__name__}.Custom"} <= set(archive.stand_ins)
    assert torch.equal(archive.read(archive.content["w"]), torch.ones(2))
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists(), "the file was not the trap it was meant to be"


def with_program(tmp_path: Path, program: bytes) -> Path:
    """A torch file whose pickle program is replaced."""
    torch.save({"w": torch.ones(4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for info in good.infolist():
            bad.writestr(info.filename, program if info.filename.endswith("data.pkl") else good.read(info))
    return tmp_path / "bad.pt"


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"


@pytest.mark.parametrize(
    "program",
    [
        b"garbage",
        b"",
        b"(I1\ntQ.",  # a storage that is none
        REBUILD + b"(" + STORAGE + b"I0\n(I100\nt(I1\nttR.",  # larger than its storage
        REBUILD + b"(" + STORAGE + b"I3\n(I2\nt(I1\nttR.",  # past its end
        REBUILD + b"(" + STORAGE + b"I0\n(I-2\nt(I1\nttR.",
        REBUILD + b"(dVx\nI1\nsb.",  # a state for an allowed function
        b"ccollections\nOrderedDict\n(dV__init__\nI1\nsb.",  # a state for an allowed class
    ],
)
def test_a_program_that_makes_no_sense_is_one_sentence(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(UserError, match="its program cannot be followed"):
        TorchZip(with_program(tmp_path, program))


def test_the_hand_written_program_is_read_where_it_makes_sense(tmp_path: Path) -> None:
    archive = TorchZip(with_program(tmp_path, REBUILD + b"(" + STORAGE + b"I1\n(I3\nt(I1\nttR."))
    assert torch.equal(archive.read(archive.content), torch.ones(3))


def test_damage_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(1000)}, tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    bad = tmp_path / "bad.pt"
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"bad\.pt: is truncated: its directory, at the end, is missing"):
        TorchZip(bad)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    bad.write_bytes(flipped)
    archive = TorchZip(bad)
    with pytest.raises(UserError, match=r"its record 0 is damaged"):
        archive.read(archive.content["w"])
    bad.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(UserError, match="is a git-lfs pointer"):
        TorchZip(bad)
    bad.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(UserError, match="is no zip file of torch"):
        TorchZip(bad)
    with zipfile.ZipFile(bad, "w") as other:
        other.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match=r"is a zip without a torch program \(data\.pkl\)"):
        TorchZip(bad)
    shutil.copy(tmp_path / "good.pt", bad)
    assert TorchZip(bad).content["w"].shape == (1000,)
