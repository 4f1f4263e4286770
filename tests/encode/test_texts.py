"""Embeddings of thousands of instructions: on disk, gathered a batch at a time, to the bit those held in memory."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xwam_ft.encode import texts
from xwam_ft.encode.batch import Batch
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.texts import JoinedRows, kept_rows, shared_rows
from xwam_ft.errors import UserError
from xwam_ft.model.tensor_files.stream import write_rows


def rows(count: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_written_one_by_one_are_the_bytes_of_the_librarys_file(tmp_path: Path, dtype: torch.dtype) -> None:
    made = rows(7, dtype)
    write_rows(tmp_path / "ours", "embeddings", iter(made), 7)
    save_file({"embeddings": torch.stack(made)}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    with pytest.raises(AssertionError, match="of"):
        write_rows(tmp_path / "short", "embeddings", iter(made), 8)


def test_many_rows_lie_in_a_file_that_goes_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rows(7)
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    assert torch.equal(kept_rows(iter(made), 7), torch.stack(made))
    monkeypatch.setattr(texts, "IN_MEMORY", 100)
    before = resident_mappings(tmp_path)
    held = kept_rows(iter(made), 7)
    assert torch.equal(held, torch.stack(made))
    assert resident_mappings(tmp_path) == before + 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(texts.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match=r"embeddings of 7 instructions take .*XWAM_FT_CACHE"):
        kept_rows(iter(made), 7)


def test_of_several_processes_one_makes_the_rows_and_the_others_read_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes: each opens the lock for itself."""
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    made, asked = rows(7), []

    def slowly() -> Iterator[Tensor]:
        asked.append(time.sleep(0.2))
        yield from made

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shared_rows("these", slowly, 7, 1.0), range(4)))
    assert len(asked) == 1
    assert all(torch.equal(one, torch.stack(made)) for one in found)
    assert resident_mappings(tmp_path) >= 4
    assert torch.equal(shared_rows("others", lambda: iter(made[:2]), 2, 1.0), torch.stack(made[:2]))


def test_where_whoever_makes_the_rows_fails_the_next_one_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))

    def stops() -> Iterator[Tensor]:
        yield rows(7)[0]
        raise UserError("is not finite", "text encoder", "restore it")

    with pytest.raises(UserError, match="is not finite"):
        shared_rows("these", stops, 7, 1.0)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "locks" not in path.parts] == []
    with pytest.raises(UserError, match=r"data\.local_gb: is 1e-09, and one piece of what is read has .* GB"):
        shared_rows("these", lambda: iter(rows(7)), 7, 1e-9)
    monkeypatch.setattr(texts.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match=r"embeddings of 7 instructions take .*XWAM_FT_CACHE"):
        shared_rows("these", lambda: iter(rows(7)), 7, 1.0)
    monkeypatch.undo()
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    assert torch.equal(shared_rows("these", lambda: iter(rows(7)), 7, 1.0), torch.stack(rows(7)))


def resident_mappings(folder: Path) -> int:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list mappings")
    return maps.read_text().count(str(folder))


def test_a_batch_gathers_from_several_files_what_one_tensor_gives(tmp_path: Path) -> None:
    made = rows(6)
    for number, part in enumerate((made[:4], made[4:])):
        save_file({"embeddings": torch.stack(part)}, tmp_path / f"{number}.safetensors")
    mapped = [row for number in range(2) for row in load_file(tmp_path / f"{number}.safetensors")["embeddings"]]
    joined, whole = JoinedRows(mapped), torch.stack(made)
    assert len(joined) == 6
    assert all(torch.equal(one, other) for one, other in zip(joined, whole, strict=True))
    assert torch.equal(joined[3], whole[3])
    told = (5, 0, 0, 3)
    batch = Batch(told, ("",) * 4, *(torch.zeros(4, 1) for _ in range(5)), torch.empty(0), None, whole, None, told=told)
    assert torch.equal(batch.with_text(joined).text, whole[list(told)])
    assert torch.equal(batch.with_text(whole).text, whole[list(told)])


def test_a_loaders_worker_is_sent_no_embeddings(cache: LatentCache) -> None:
    assert len(cache.prompt_embeddings) == len(cache.prompts)  # and it is mapped from now on
    sent = pickle.loads(pickle.dumps(cache))
    assert "_embeddings" not in vars(sent)
    assert torch.equal(sent.prompt_embeddings, cache.prompt_embeddings)
