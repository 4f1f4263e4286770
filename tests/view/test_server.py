"""What the page's server answers, and what it refuses: ranges, strangers, paths that lead out, numbers in units."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xwam_ft
from shared import QUIET
from xwam_ft.contract import DepthCode
from xwam_ft.conventions import command_slices, state_slices
from xwam_ft.depth_code import is_exact, to_metres
from xwam_ft.errors import UserError
from xwam_ft.evaluate.pointcloud import project
from xwam_ft.evaluate.scene import camera_pose, stored_intrinsics
from xwam_ft.shards import ShardSet
from xwam_ft.view.episodes import numbers
from xwam_ft.view.server import byte_range
from xwam_ft.view.view import Viewing, open_site, start


@pytest.fixture(scope="module")
def viewing(shard_set: ShardSet) -> Iterator[Viewing]:
    with start(open_site(shard_set.folder, None, [], QUIET), None, 0) as viewing:
        yield viewing


def ask(viewing: Viewing, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
    """Status, headers and body, of a path sent exactly as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", viewing.server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return SimpleNamespace(status=answer.status, headers=dict(answer.getheaders()), data=data)


def told(viewing: Viewing, path: str) -> Any:
    answer = ask(viewing, path)
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def token(viewing: Viewing) -> str:
    return next(iter(viewing.site.sets))


def test_numbers_are_those_of_the_shards_in_their_units(viewing: Viewing, shard_set: ShardSet) -> None:
    view = told(viewing, "/api/view")["sets"][0]
    episode = told(viewing, f"/api/episode/{token(viewing)}/0")
    assert episode["frames"] == shard_set.episode(0).frames == 29
    assert len(episode["segments"]) > 1  # they overlap, and every frame is told once
    truth: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for entry in shard_set.segments():
        if entry.episode == 0:
            segment = shard_set.read(entry)
            for row in range(segment.num_frames):
                truth[segment.first_frame + row] = segment.proprio[row], segment.action[row]
    for number in view["numbers"]:
        slot = shard_set.contract.slot(number["slot"])
        index = slot.elements.index(number["name"])
        assert number["unit"] == {"1": ""}.get(slot.units[index], slot.units[index])
        state = state_slices(shard_set.contract)[slot.name].start + index
        command = command_slices(shard_set.contract)[slot.name].start + index
        expected = np.array([(truth[frame][0][state], truth[frame][1][command]) for frame in range(29)])
        shown = np.array([episode["states"][number["state"]], episode["commands"][number["command"]]]).T
        np.testing.assert_allclose(shown, expected, rtol=1e-6, atol=1e-12)
    assert [number["unit"] for number in view["numbers"]] == ["m", "m", "m", "", "", "", "", "m"]
    assert [one["seconds"] for one in view["episodes"]] == [2.9, 2.2, 1.7]
    assert [one["split"] for one in view["episodes"]] == ["train", "train", "held_out"]


def test_commands_in_other_units_have_plots_of_their_own(contract_with: Callable[..., Any]) -> None:
    contract = contract_with()
    tool, gripper = contract.slots
    effort = gripper.model_copy(update={"command_units": ("N",)})
    rows = numbers(contract.model_copy(update={"slots": (tool, effort)}))
    assert [(row["name"], row["unit"], row["state"], row["command"]) for row in rows[-2:]] == [
        ("width", "m", 7, None),
        ("width, commanded", "N", None, 7),
    ]
    raw = tool.model_copy(update={"convention": "xwam_robocasa_raw", "command_units": ("1",) * 6})
    rows = numbers(contract.model_copy(update={"slots": (raw, gripper)}))
    assert all(row["state"] is None or row["command"] is None for row in rows if row["slot"] == "tool")
    assert len(rows) == 7 + 6 + 1


def test_films_are_the_shards_bytes_and_parts_of_them_are_sent(viewing: Viewing, shard_set: ShardSet) -> None:
    entry = shard_set.segments()[1]
    offset, size = entry.members["rgb.front.mp4"]
    whole = (shard_set.folder / entry.shard).read_bytes()[offset : offset + size]
    path = f"/film/{token(viewing)}/{entry.key}/front.mp4"
    answer = ask(viewing, path)
    assert (answer.status, answer.data, answer.headers["Content-Type"]) == (200, whole, "video/mp4")
    for asked, part in (("bytes=0-", (0, size)), ("bytes=5-9", (5, 10)), ("bytes=-7", (size - 7, size))):
        answer = ask(viewing, path, Range=asked)
        assert (answer.status, answer.data) == (206, whole[slice(*part)])
        assert answer.headers["Content-Range"] == f"bytes {part[0]}-{part[1] - 1}/{size}"
    answer = ask(viewing, path, Range=f"bytes={size}-")
    assert (answer.status, answer.headers["Content-Range"], answer.data) == (416, f"bytes */{size}", b"")
    head = ask(viewing, path, "HEAD")
    assert (head.status, head.headers["Content-Length"], head.data) == (200, str(size), b"")


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=3-", (3, 10)),
        ("bytes=3-99", (3, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=10-", (10, 10)),
        ("bytes=-0", (10, 10)),
        ("bytes=5-3", None),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("lines=1-2", None),
    ],
)
def test_ranges(header: str, part: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == part


def test_pictures_depth_and_points_are_those_of_the_shards(viewing: Viewing, shard_set: ShardSet) -> None:
    segment = shard_set.read(next(e for e in shard_set.segments() if e.episode == 0 and e.first_frame > 0))
    row = segment.num_frames - 1  # of a later segment alone
    frame = segment.first_frame + row
    for view, camera in enumerate(shard_set.contract.cameras):
        place = f"{token(viewing)}/0/{frame}/{camera.name}"
        png = np.asarray(Image.open(io.BytesIO(ask(viewing, f"/picture/{place}.png").data)))
        np.testing.assert_array_equal(png, segment.rgb[view, row])
        assert segment.depth is not None
        codes = np.frombuffer(ask(viewing, f"/depth/{place}.bin").data, "<u2").reshape(segment.depth.shape[2:])
        np.testing.assert_array_equal(codes, segment.depth[view, row])
    points = np.frombuffer(ask(viewing, f"/points/{token(viewing)}/0/{frame}.bin").data, "<f4").reshape(-1, 4)
    front = shard_set.contract.cameras[0]
    codes = segment.depth[0, row]
    seen = points[: is_exact(codes).sum(), :3]
    pose = camera_pose(shard_set.contract, front, segment.proprio[row])
    local = (seen - pose[:3, 3]) @ pose[:3, :3]
    pixels = project(local, stored_intrinsics(front, codes.shape)).round().astype(int)
    metres = to_metres(codes, shard_set.contract.depth_of(front))
    np.testing.assert_allclose(local[:, 2], metres[pixels[:, 1], pixels[:, 0]], atol=1e-5)
    assert len(np.unique(pixels, axis=0)) == len(seen)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api/episode/{token}",
        "/api/episode/other/0",
        "/api/episode/{token}/-1",
        "/api/episode/{token}/1e1",
        "/film/{token}/absent/front.mp4",
        "/film/{token}/episode-000000-000000/absent.mp4",
        "/film/{token}/episode-000000-000000/motion.npz",
        "/page/../view.py",
        "/page/%2e%2e/view.py",
        "/page/..%2fview.py",
        "/page/%2Fetc%2Fpasswd",
        "/files/set/{token}/contract.json",
        "/files/set/{token}/../../../../etc/passwd",
        "/files/set/{token}/..%2f..%2fcontract.json",
        "//etc/passwd",
        "/film/{token}/../../etc/passwd",
        "/picture/{token}/0/%ff/front.png",
        "/imagined/1/recorded/front/0.png",
    ],
)
def test_what_the_set_does_not_hold_is_not_there(viewing: Viewing, path: str) -> None:
    answer = ask(viewing, path.format(token=token(viewing)))
    assert answer.status == 404
    assert json.loads(answer.data) == {"error": "is not here"}


def test_a_frame_that_is_not_there_is_a_sentence(viewing: Viewing) -> None:
    for path in (f"/picture/{token(viewing)}/0/29/front.png", f"/api/episode/{token(viewing)}/7"):
        answer = ask(viewing, path)
        assert answer.status == 422
        assert "Fix: " in json.loads(answer.data)["error"]


def test_strangers_are_refused(viewing: Viewing) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "192.168.0.7"):
        assert ask(viewing, "/api/view", Host=host).status == 403, host
    for host in ("localhost:9999", "127.0.0.1", "[::1]:80", "LOCALHOST"):  # a tunnel changes the port alone
        assert ask(viewing, "/api/view", Host=host).status == 200, host
    question = json.dumps({"set": token(viewing), "episode": 0, "start": 0}).encode()
    plain = ask(viewing, "/api/imagine", "POST", question, Content_Type="text/plain")
    foreign = ask(
        viewing, "/api/imagine", "POST", question, Content_Type="application/json", Origin="http://evil.example"
    )
    assert (plain.status, foreign.status) == (403, 403)
    assert ask(viewing, "/api/imagine", "POST", question, Content_Type="application/json").status == 404  # no policy
    assert ask(viewing, "/api/imagine", "POST", b"{", Content_Type="application/json").status == 400
    assert ask(viewing, "/api/view", "DELETE").status == 501
    assert ask(viewing, "/").headers["Content-Security-Policy"].startswith("default-src 'self'")


def test_a_given_host_is_reached_by_any_name(shard_set: ShardSet) -> None:
    with start(open_site(shard_set.folder, None, [], QUIET), "127.0.0.1", 0) as viewing:
        assert ask(viewing, "/api/view", Host="robot-pc.lab:8000").status == 200


def test_ports_and_hosts_that_cannot_be_used_are_a_sentence(viewing: Viewing) -> None:
    taken = viewing.server.server_address[1]
    with pytest.raises(UserError, match=f"--port {taken}: is in use by another program. Fix: leave it out"):
        start(viewing.site, None, taken)
    with pytest.raises(UserError, match=r"--host no\.such\.host\.invalid"):
        start(viewing.site, "no.such.host.invalid", 0)


def test_sets_without_depth_calibration_poses_or_findings_are_shown_with_the_reason(
    contract_with: Callable[..., Any], make_shard_set: Callable[..., ShardSet], tmp_path: Path
) -> None:
    whole = contract_with()
    cameras = tuple(camera.model_copy(update={"pose": None, "mount": None}) for camera in whole.cameras)
    bare = whole.model_copy(update={"cameras": cameras, "depth": DepthCode(kind="none")})
    joints = whole.slots[0].model_copy(update={"kind": "vector", "frame": None, "convention": "absolute"})
    ends = {"action_low": (-1.0,) * 8, "action_high": (1.0,) * 8}
    update = {"slots": (joints, whole.slots[1]), "quantiles": whole.quantiles.model_copy(update=ends)}
    bare = bare.model_copy(update=update)
    shards = make_shard_set(tmp_path / "set", bare)
    site = open_site(shards.folder, None, [], QUIET)
    [told_set] = site.view()["sets"]
    assert "no point cloud" in told_set["why_no_points"]
    assert [camera["lacks"] for camera in told_set["cameras"]] == ["a pose", "a pose and the slot it is mounted on"]
    assert told_set["poses"] == []
    assert told_set["depth"]["kind"] == "none"
    assert "findings.jsonl is not in the folder" in told_set["why_no_findings"]
    [watched] = site.sets.values()
    episode = watched.episode(1)
    assert (episode["depth"], episode["cameras"], episode["why_no_film"]) == (False, {}, {})
    with pytest.raises(UserError, match="no point cloud"):
        watched.points(1, 0)


def test_findings_are_told_as_prepare_recorded_them(shard_set: ShardSet, tmp_path: Path) -> None:
    folder = shutil.copytree(shard_set.folder, tmp_path / "set")
    row = {
        "episode": 1,
        "dataset": "d",
        "dataset_episode": 9,
        "check": "jump",
        "severity": "warning",
        "text": "it jumps",
    }
    row |= {"subject": "tool", "camera": "front", "frame": 7, "fix": ""}
    lines = [row, {**row, "episode": 44}, {**row, "episode": 0, "severity": "note", "fix": "do so"}]
    (folder / "findings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rejected.jsonl").write_text(
        json.dumps({"dataset": "d", "dataset_episode": 3, "reason": "too short"}) + "\n"
    )
    [told_set] = open_site(folder, None, [], QUIET).view()["sets"]
    found = told_set["findings"]
    assert [(one["episode"], one["severity"], one["frame"]) for one in found] == [(1, "warning", 7), (0, "note", 7)]
    assert found[0]["fix"].startswith("look at the frame")
    assert found[1]["fix"] == "do so"
    assert told_set["rejected"][0]["reason"] == "too short"
    (folder / "findings.jsonl").write_text("{")
    with pytest.raises(UserError, match="is no file of JSON lines"):
        open_site(folder, None, [], QUIET).view()


def test_what_cannot_be_shown_is_a_sentence(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / ".half.preparing").mkdir()
    for place, said in (
        ("absent", "is not there"),
        ("empty", "is none of what can be shown"),
        ("file", "is a file"),
        ("half", "is not prepared to the end"),
        (".half.preparing", "is not prepared to the end"),
    ):
        with pytest.raises(UserError, match=said):
            xwam_ft.view(tmp_path / place, browser=False)
    with pytest.raises(UserError, match="is a shard set itself"):
        xwam_ft.view(shard_set.folder, shards=shard_set.folder, browser=False)
    with pytest.raises(UserError, match="holds no results"):
        xwam_ft.view(shard_set.folder, results=[tmp_path / "empty"], browser=False)
    with pytest.raises(UserError, match="there is no episode 9"):
        xwam_ft.view(shard_set.folder, episode=9, browser=False)
    with pytest.raises(UserError, match="go with the page"):
        xwam_ft.view(shard_set.folder, rerun=True, port=3)


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_a_second_with_code_0(shard_set: ShardSet, which: signal.Signals) -> None:
    command = [sys.executable, "-m", "xwam_ft.cli", "view", str(shard_set.folder)]
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=bare)
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    if sys.platform == "linux":
        assert process.stdout.readline().startswith("No browser was found here: open the address")
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    idle = socket.create_connection((host, int(port)))  # a browser that keeps its connection holds nobody up
    began = time.monotonic()
    process.send_signal(which)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 1.5
    assert (process.returncode, out.strip(), err) == (0, "ended", "")
    idle.close()


def test_a_set_that_goes_or_is_written_again_while_it_is_watched_is_a_sentence(
    shard_set: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(shard_set.folder, tmp_path / "set")
    with start(open_site(folder, None, [], QUIET), None, 0) as viewing:
        entry = shard_set.segments()[0]
        moment = f"{token(viewing)}/{entry.episode}/{entry.first_frame}"
        places = [
            f"/api/episode/{token(viewing)}/{entry.episode}",
            f"/film/{token(viewing)}/{entry.key}/front.mp4",
            f"/picture/{moment}/front.png",
            f"/depth/{moment}/front.bin",
            f"/points/{moment}.bin",
        ]
        assert [ask(viewing, place).status for place in places] == [200] * 5
        shard = folder / entry.shard
        whole = shard.read_bytes()
        # Longer by a block in front: every offset of the old index names something else.
        shard.write_bytes(bytes(512) + whole)
        for why in ("written again", "not there any more"):
            for place in places:
                answer = ask(viewing, place)
                assert answer.status == 422, place
                error = json.loads(answer.data)["error"]
                assert why in error
                assert str(shard) in error
            shard.unlink(missing_ok=True)
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_video_is_told_with_its_shard(shard_set: ShardSet, tmp_path: Path) -> None:
    folder = shutil.copytree(shard_set.folder, tmp_path / "set")
    entry = shard_set.segments()[0]
    offset, size = entry.members["rgb.front.mp4"]
    with (folder / entry.shard).open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(size))
    with start(open_site(folder, None, [], QUIET), None, 0) as viewing:
        answer = ask(viewing, f"/picture/{token(viewing)}/{entry.episode}/{entry.first_frame}/front.png")
    assert answer.status == 422
    error = json.loads(answer.data)["error"]
    assert error.startswith(f"{folder / entry.shard}: segment {entry.key} cannot be read (rgb.front.mp4: ")
