"""Places at URLs: an S3 server and a web server of this machine, with faults; and the copies that stay here."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub_server import TOKEN, LocalHub
from object_store import Fault, Gate, Store
from xwam_ft import remote
from xwam_ft.copies import Copies, copies_folder
from xwam_ft.errors import UserError
from xwam_ft.remote_errors import Missing, NotAllowed

DATA = bytes(range(250)) * 8


@pytest.fixture
def web(tmp_path: Path, quick_tries: None) -> Any:
    """A web server over a folder with one file."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "file").write_bytes(DATA)
    gate = Gate(folder=tmp_path / "web")
    yield gate
    gate.close()


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://lab/set", "s3://lab/set"),
        (Path("s3://lab/set/"), "s3://lab/set"),
        (Path("https://host/a") / "b", "https://host/a/b"),
        ("hf://datasets/org/name/set", "hf://datasets/org/name/set"),
        ("shards", None),
        ("/data/s3/x", None),
        ("s3", None),
        ("C:/data", None),
    ],
)
def test_what_is_a_url(place: str | Path, url: str | None) -> None:
    assert remote.url_of(place) == url
    if url is not None:
        assert UserError("is", Path(place), f"see {Path(place)}/x").args[0] == f"{url}: is. Fix: see {url}/x"


def test_files_go_there_and_come_back(s3: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    remote.put(tmp_path / "file", f"{s3.url}/a/file")
    remote.put_bytes(b"{}", Path(s3.url) / "a" / "b" / ".hidden")
    assert remote.sizes(f"{s3.url}/a") == {"file": len(DATA), "b/.hidden": 2}
    assert remote.sizes(f"{s3.url}/a", ["file", "other"]) == {"file": len(DATA)}
    assert remote.sizes(f"{s3.url}/nothing") == {}
    assert remote.read_bytes(f"{s3.url}/a/file") == DATA
    assert remote.read_ranges(f"{s3.url}/a/file", [(0, 3), (7, 5)]) == [DATA[:3], DATA[7:12]]
    assert remote.load_json(f"{s3.url}/a/b/.hidden") == {}
    assert [remote.is_file(f"{s3.url}/a{more}") for more in ("/file", "/none", "")] == [True, False, False]
    remote.fetch(f"{s3.url}/a/file", tmp_path / "back", len(DATA))
    assert (tmp_path / "back").read_bytes() == DATA
    remote.remove(f"{s3.url}/a/file")
    remote.remove(f"{s3.url}/a/file")
    assert s3.names("a/") == ["a/b/.hidden"]


@pytest.mark.parametrize("kind", ["503", "500", "429", "cut", "short", "silent"])
def test_what_fails_for_a_moment_is_tried_again(kind: str, s3: Store, web: Gate) -> None:
    remote.put_bytes(DATA, f"{s3.url}/file")
    for gate, place in ((s3.gate, f"{s3.url}/file"), (web, f"{web.url}/file")):
        gate.faults = [Fault(kind, "GET", times=2)]
        assert remote.read_bytes(place, 10, 900) == DATA[10:910]
        assert gate.faults[0].times == 0


def test_an_upload_that_breaks_is_tried_again(s3: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    s3.gate.faults = [Fault("503", "PUT", times=2)]
    remote.put(tmp_path / "file", f"{s3.url}/file")
    assert s3.client().get_object(Bucket="lab", Key="file")["Body"].read() == DATA


def test_a_server_that_is_slow_is_waited_for(web: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT", 0.5)
    web.faults = [Fault("slow", "GET", seconds=1.5)]
    assert remote.read_bytes(f"{web.url}/file", 0, 10) == DATA[:10]
    assert len(web.gets()) == 2


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("503", r"/file: does not answer as it should, after 3 tries \(.*503"),
        ("cut", r"/file: does not answer as it should, after 3 tries \(.*payload is not completed"),
        ("short", r"/file: does not answer as it should, after 3 tries \(5 of 10 bytes came\)"),
        ("403", r"/file: may not be read \(403.*serve it to this machine without a login"),
        ("404", r"/file: is not there\. Fix: check the URL"),
        ("400", r"/file: cannot be read \(400"),
    ],
)
def test_what_does_not_mend_is_a_sentence(kind: str, sentence: str, web: Gate) -> None:
    web.faults = [Fault(kind, "GET", times=99)]
    with pytest.raises(UserError, match=sentence):
        remote.read_bytes(f"{web.url}/file", 0, 10)
    assert len(web.seen) == (1 if kind.startswith("4") else 3)


def test_an_address_where_nobody_is_is_told_at_once(monkeypatch: pytest.MonkeyPatch, s3: Store) -> None:
    """A wrong endpoint must not look like a slow store; one that has answered is waited for."""
    slept: list[float] = []
    monkeypatch.setattr(remote, "PAUSES", (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0))
    monkeypatch.setattr(remote, "_answered", set())
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/x: does not answer .* after 4 tries \(.*Cannot connect"):
        remote.read_bytes("http://127.0.0.1:9/x")
    assert slept == [0.5, 1.0, 2.0]  # with the next pause it would be more than FIRST
    slept.clear()
    remote._answered.add("http://127.0.0.1:9")
    with pytest.raises(UserError, match="after 8 tries"):
        remote.read_bytes("http://127.0.0.1:9/x")
    assert len(slept) == 7
    remote.put_bytes(DATA, f"{s3.url}/file")
    assert s3.url in remote._answered


def test_waiting_for_a_store_is_said(
    web: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(remote, "_last_told", [float("-inf")])
    web.faults = [Fault("503", "GET", times=4)]
    assert remote.read_bytes(f"{web.url}/file", 0, 10) == DATA[:10]
    assert [line.getMessage() for line in caplog.records] == [
        f"xwam-ft: {web.url}/file does not answer as it should (503, message='Service Unavailable', "
        f"url='{web.url}/file'); it is tried again for a while"
    ]


def test_a_store_that_falls_silent_is_given_up_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every try may be a minute of silence; eight of them would be nine minutes."""
    slept: list[float] = []

    def silent(*_: object) -> None:
        slept.append(60.0)
        raise TimeoutError("no answer")

    monkeypatch.setattr(remote, "_answered", {"s3://lab"})
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    monkeypatch.setattr(remote, "_files", lambda url: (None, url))
    with pytest.raises(UserError, match="does not answer as it should, after 3 tries"):
        remote._tried("s3://lab/x", silent)
    assert slept == [60.0, 0.5, 60.0, 1.0, 60.0]


def test_other_sentences(s3: Store, web: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gcsfs: None) -> None:
    for ask in (lambda: remote.read_bytes("s3://none/x"), lambda: remote.sizes("s3://none/x")):
        with pytest.raises(Missing, match=r"^s3://none/x: its bucket does not exist\. Fix: check the name"):
            ask()
    s3.gate.faults = [Fault("403", "/lab/x", times=99)]
    with pytest.raises(NotAllowed, match=r"^s3://lab/x: may not be read .*AWS_ACCESS_KEY_ID"):
        remote.read_bytes("s3://lab/x")
    with pytest.raises(NotAllowed, match=r"^s3://lab/x: may not be written to"):
        remote.put_bytes(b"", "s3://lab/x")
    with pytest.raises(UserError, match=r"^gs://lab/x: .*'gcsfs' is not installed\. Fix: pip install 'xwam-ft\[gcs\]'"):
        remote.read_bytes("gs://lab/x")
    web.ranges = False
    with pytest.raises(UserError, match="gave 2000 bytes where 10 were asked for: this server does not answer range"):
        remote.read_bytes(f"{web.url}/file", 0, 10)
    with pytest.raises(UserError, match="cannot be written to: a web server only gives"):
        remote.put_bytes(b"", f"{web.url}/x")
    with pytest.raises(UserError, match="cannot be listed"):
        remote.sizes(web.url)
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/x: does not answer .*Cannot connect"):
        remote.read_bytes("http://127.0.0.1:9/x")
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"^AWS_ENDPOINT_URL: .*Invalid endpoint: 127.0.0.1:9\).*http:// or https://"):
        remote.read_bytes("s3://lab/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.gate.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    S3FileSystem.clear_instance_cache()
    s3.gate.faults = []
    with pytest.raises(NotAllowed, match=r"^s3://lab/x: cannot be read: no credentials were found"):
        remote.read_bytes("s3://lab/x")


def test_of_the_hub(local_hub: LocalHub, tmp_path: Path, quick_tries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "up" / "set").mkdir(parents=True)
    (tmp_path / "up" / "set" / "file").write_bytes(DATA)
    local_hub.add("datasets/org/name", tmp_path / "up")
    place = Path("hf://datasets/org/name/set/file")
    assert remote.read_bytes(place, 5, 100) == DATA[5:105]
    assert remote.read_bytes(place) == DATA
    assert remote.sizes("hf://datasets/org/name/set") == {"file": len(DATA)}
    assert remote.size_of("hf://datasets/org/name/none") is None
    remote.put_bytes(b"new", "hf://datasets/org/name/set/new")
    assert remote.sizes("hf://datasets/org/name/set") == {"file": len(DATA), "new": 3}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"^hf://datasets/org/name/set/other: .*(401|token|log)"):
        remote.put_bytes(b"new", "hf://datasets/org/name/set/other")
    with pytest.raises(UserError, match=r"^hf://datasets/org/none/file: .*private"):
        remote.read_bytes("hf://datasets/org/none/file")


def test_a_local_place_imports_no_fsspec() -> None:
    code = (
        "import sys, xwam_ft, xwam_ft.shards, xwam_ft.encode.data_sets\nfrom xwam_ft import remote\n"
        "remote.read_bytes(__import__('os').__file__, 0, 10)\n"
        "assert not {'fsspec', 's3fs', 'aiohttp', 'botocore'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def held() -> int:
    return sum(path.stat().st_size for path in (copies_folder() / "copies").glob("*/*"))


def test_copies_stay_within_their_limit_and_the_longest_unused_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    copies, asked = Copies(1e-5), []  # 10 000 bytes

    def get(number: int) -> bytes:
        def fetch() -> bytes:
            asked.append(number)
            return bytes([number]) * 1000

        return copies.get(f"piece {number}", 1000, fetch)

    for number in range(10):
        assert get(number) == bytes([number]) * 1000
    assert asked == list(range(10))
    for place, number in enumerate((*range(1, 10), 0)):  # 1 is now the longest unused
        [path] = [p for p in (tmp_path / "copies").glob("*/*") if p.read_bytes()[0] == number]
        os.utime(path, (place, place))
    assert get(10) == bytes([10]) * 1000
    assert held() <= 10_000
    asked.clear()
    get(0), get(10)
    assert asked == []
    get(1)
    assert asked == [1]
    with pytest.raises(UserError, match=r"^data.local_gb: is 1e-05, and one piece .*set it to 1 or more"):
        copies.get("large", 20_000, lambda: bytes(20_000))


READER = """
import random, sys
from xwam_ft.copies import Copies
wrong = []
for number in random.Random(int(sys.argv[1])).choices(range(40), k=300):
    got = Copies(2e-5).get(f"piece {number}", 1000, lambda: bytes([number]) * 1000)
    if got != bytes([number]) * 1000:
        wrong.append((number, got[:3]))
print(wrong)
"""
"""Reads pieces in some order, each of which must be itself."""


@pytest.mark.slow
def test_processes_share_copies_of_which_half_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    # New processes, not forks: this one has threads of other tests' servers, whose locks a fork would hold for ever.
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    assert [reader.communicate(timeout=300)[0] for reader in readers] == ["[]\n"] * 4
    assert held() <= 20_000
    assert int((tmp_path / "bytes").read_text()) >= held()


def test_one_fetches_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    asked: list[int] = []

    def fetch() -> bytes:
        asked.append(1)
        return b"x" * 100

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Copies(1.0).get("one", 100, fetch), range(8)))
    assert found == [b"x" * 100] * 8
    assert asked == [1]
