"""The server: openpi's protocol to the letter, strangers survived, health and metrics beside inference, clean ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from served import GatedPolicy, example, get, opened, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from xwam_ft.errors import UserError
from xwam_ft.policy import wire
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.request import command_columns, command_table
from xwam_ft.policy.serve import read_api_key
from xwam_ft.policy.server import PolicyServer, ServerLimits, serving
from xwam_ft.shards import ShardSet

KEY = "0123456789abcdef"
BYTES_KEY = msgpack.packb({"images": {"front": 1, b"wri\x04t": 1}, "state": {"tool": 1, "gripper": 1}, "prompt": "x"})
RAGGED = msgpack.packb(
    {"images": {"front": [[1], 2], "wrist": [[1], 2]}, "state": {"tool": 1, "gripper": 1}, "prompt": "x"}
)


@pytest.fixture(scope="module")
def policy(shard_set: ShardSet) -> GatedPolicy:
    return GatedPolicy(ReplayPolicy(shard_set, 0))


@pytest.fixture(scope="module")
def address(policy: GatedPolicy) -> Iterator[str]:
    with serving(policy, limits=ServerLimits(message_bytes=200_000, waiting=3, connections=8)) as address:
        yield address


def refused(connection: ClientConnection) -> str:
    """The sentence, after which the connection closes with 1011."""
    said = connection.recv(timeout=10)
    assert isinstance(said, str)
    with pytest.raises(ConnectionClosed) as closed:
        connection.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    return said


def test_the_example_of_the_metadata_is_answered_as_in_process(policy: GatedPolicy, address: str) -> None:
    connection, metadata = opened(address)
    assert metadata["contract_sha256"] == policy.contract.sha256
    assert metadata["action_columns"] == command_columns(policy.contract)
    expected = policy.infer(metadata["example_observation"])
    timings = []
    for _ in range(2):
        connection.send(wire.pack(metadata["example_observation"]))
        answer = wire.unpack(connection.recv(timeout=10))
        np.testing.assert_array_equal(answer["actions"], command_table(policy.contract, expected.commands.slots))
        assert answer["commands"].keys() == expected.commands.slots.keys()
        assert answer["clamped"] == {}
        timings.append(answer["server_timing"])
    assert timings[0]["infer_ms"] > 0
    assert "prev_total_ms" not in timings[0]
    assert timings[1]["prev_total_ms"] >= timings[0]["infer_ms"]
    connection.close()


def test_openpi_s_own_client(policy: GatedPolicy, address: str) -> None:
    module = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="pip install --no-deps openpi-client (`make test` does it)"
    )
    host, port = address.rsplit(":", 1)
    client = module.WebsocketClientPolicy(host, int(port))
    metadata = client.get_server_metadata()
    answer = client.infer(metadata["example_observation"])
    expected = policy.infer(metadata["example_observation"])
    np.testing.assert_array_equal(answer["actions"], command_table(policy.contract, expected.commands.slots))
    assert "prev_total_ms" in client.infer(metadata["example_observation"])["server_timing"]
    with pytest.raises(RuntimeError, match="has no 'state'"):
        client.infer({"images": {}, "prompt": "x"})


@pytest.mark.parametrize(
    ("frame", "part"),
    [
        ("hello", "is text"),
        (b"", "cannot be read"),
        (b"\x80\x04\x95\x0e\x00.", "cannot be read"),
        (msgpack.packb([1, 2]), "is a list"),
        (msgpack.packb(None), "is a NoneType"),
        (msgpack.packb({"images": 1, "state": 2, "prompt": "x"}), "images is a int"),
        (msgpack.packb({b"__ndarray__": True, b"dtype": "|O", b"data": b"", b"shape": [0]}), "refused"),
        (RAGGED, "observation.images.front: has shape [0] and type object"),
        (msgpack.packb({"imagse": {}}), "did you mean 'images'"),
        (BYTES_KEY, "camera 'wrist' is missing (given: front, b'wri\\x04t')"),
        (bytes(200_001), "is too large"),
    ],
)
def test_a_stranger_s_frame_gets_a_sentence_and_the_server_goes_on(address: str, frame: Any, part: str) -> None:
    connection, metadata = opened(address)
    connection.send(frame)
    assert part in refused(connection)
    again, _ = opened(address)
    again.send(wire.pack(metadata["example_observation"]))
    assert isinstance(again.recv(timeout=10), bytes)
    again.close()


def test_a_failure_of_ours_says_nothing_of_itself(policy: GatedPolicy, address: str) -> None:
    connection, metadata = opened(address)
    policy.fails = RuntimeError("/secret/path")
    try:
        connection.send(wire.pack(metadata["example_observation"]))
        assert refused(connection) == "the server failed at this request; its log says why"
    finally:
        policy.fails = None


def test_health_and_metrics_are_answered_during_inference(policy: GatedPolicy, address: str) -> None:
    connection, metadata = opened(address)
    policy.close_gate()
    connection.send(wire.pack(metadata["example_observation"]))
    assert policy.asked.wait(10)
    assert get(address, "/healthz") == (200, "OK\n")
    status, text = get(address, "/metrics")
    policy.gate.set()
    assert status == 200
    assert "xwam_ft_waiting 1\n" in text
    assert isinstance(connection.recv(timeout=10), bytes)
    connection.close()
    lines = dict(line.rsplit(" ", 1) for line in get(address, "/metrics")[1].splitlines() if line[0] != "#")
    assert int(lines['xwam_ft_requests_total{result="answered"}']) == int(lines["xwam_ft_infer_seconds_count"]) >= 1
    assert float(lines['xwam_ft_request_seconds{quantile="0.99"}']) >= float(
        lines['xwam_ft_infer_seconds{quantile="0.5"}']
    )
    assert int(lines["xwam_ft_waiting"]) == 0


def test_clients_are_answered_in_order_and_no_more_wait_than_may(policy: GatedPolicy, address: str) -> None:
    clients = [opened(address)[0] for _ in range(5)]
    policy.close_gate()
    policy.seeds.clear()
    for count, client in enumerate(clients[:3]):
        client.send(wire.pack(example(policy.contract, seed=count)))
        until(lambda count=count: f"xwam_ft_waiting {count + 1}\n" in get(address, "/metrics")[1])
    clients[3].send(wire.pack(example(policy.contract, seed=3)))
    assert "has 3 requests waiting" in refused(clients[3])
    clients[1].close()  # leaves before its turn: its request is not answered
    until(lambda: "xwam_ft_waiting 2\n" in get(address, "/metrics")[1])
    clients[4].send(wire.pack(example(policy.contract, seed=4)))
    until(lambda: "xwam_ft_waiting 3\n" in get(address, "/metrics")[1])
    policy.gate.set()
    for client in (clients[0], clients[2], clients[4]):
        assert isinstance(client.recv(timeout=10), bytes)
        client.close()
    assert policy.seeds == [0, 2, 4]


def test_more_clients_than_may_are_turned_away(address: str) -> None:
    until(lambda: "xwam_ft_connections 0\n" in get(address, "/metrics")[1])
    clients = [opened(address)[0] for _ in range(8)]
    with pytest.raises(InvalidStatus) as error:
        connect(address)
    assert error.value.response.status_code == 503
    assert get(address, "/healthz")[0] == 200
    for client in clients:
        client.close()


def test_a_page_in_a_browser_is_turned_away(address: str) -> None:
    with pytest.raises(InvalidStatus) as error:
        connect(address, origin="http://example.org")  # pyright: ignore[reportArgumentType]
    assert error.value.response.status_code == 403


def test_an_api_key(policy: GatedPolicy) -> None:
    with serving(policy, api_key=KEY) as address:
        for headers in ({}, {"Authorization": "Api-Key x"}, {"Authorization": KEY}, {"Authorization": "Api-Key \xe9"}):
            assert get(address, "/metrics", **headers)[0] == 401
            with pytest.raises(InvalidStatus) as error:
                connect(address, additional_headers=headers)
            assert error.value.response.status_code == 401
        assert get(address, "/healthz")[0] == 200
        assert get(address, "/metrics", Authorization=f"Api-Key {KEY}")[0] == 200
        opened(address, additional_headers={"Authorization": f"Api-Key {KEY}"})[0].close()


def test_an_api_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    assert read_api_key(path) == KEY
    for text in ("", "short", "two words of some length", "0123456789\n0123456789"):
        path.write_text(text)
        with pytest.raises(UserError, match="does not hold an API key"):
            read_api_key(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_api_key(tmp_path / "none")


def test_503_until_it_is_warm_and_early_clients_wait(policy: GatedPolicy) -> None:
    loaded, listening, found = threading.Event(), threading.Event(), []

    def load() -> GatedPolicy:
        assert loaded.wait(10)
        return policy

    server = PolicyServer(load)

    def bound(address: str) -> None:
        found.append(address)
        listening.set()

    thread = threading.Thread(target=lambda: asyncio.run(server.run("127.0.0.1", 0, listening=bound)))
    thread.start()
    assert listening.wait(10)
    assert get(found[0], "/healthz") == (503, "loading\n")
    early = connect(found[0], close_timeout=1)
    with pytest.raises(TimeoutError):
        early.recv(timeout=0.05)
    loaded.set()
    assert b"contract_sha256" in early.recv(timeout=10)  # pyright: ignore[reportOperatorIssue]
    assert get(found[0], "/healthz") == (200, "OK\n")
    server.stop()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(ConnectionClosed) as closed:
        early.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


def test_a_request_in_flight_is_answered_before_the_end(policy: GatedPolicy) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(policy) as address:
            connection, metadata = opened(address)
            policy.close_gate()
            connection.send(wire.pack(metadata["example_observation"]))
            assert policy.asked.wait(10)
            opening = pool.submit(lambda: (time.sleep(0.2), policy.gate.set()))
        opening.result()
        assert isinstance(connection.recv(timeout=5), bytes)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)
        with pytest.raises(OSError, match="refused"):
            connect(address)


def test_what_cannot_be_served(policy: GatedPolicy, address: str) -> None:
    with pytest.raises(UserError, match="cannot be served at"), serving(policy, port=int(address.rsplit(":", 1)[1])):
        pass
    with pytest.raises(UserError, match="cannot be served at"), serving(policy, host="no.such.host.invalid"):
        pass

    def load() -> GatedPolicy:
        raise UserError("is not a bundle", "x", "give one")

    with pytest.raises(UserError, match="is not a bundle"):
        asyncio.run(PolicyServer(load).run("127.0.0.1", 0))


SLOW = """
import time
import xwam_ft.policy.serve as serve
serve._loader = lambda *_: lambda: time.sleep(60)
from xwam_ft.cli import main
main()
"""


@pytest.mark.slow
def test_while_it_loads_a_signal_ends_it_at_once(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SLOW, "serve", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    assert "loads" in server.stdout.readline()
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=20)
    assert (server.returncode, err) == (0, "")
    assert "still loading" in out


@pytest.mark.slow
def test_the_verb_ends_cleanly_on_sigterm(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    command = [sys.executable, "-m", "xwam_ft.cli", "serve", str(shard_set.folder), "--replay", "0", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--api-key-file", str(tmp_path / "key")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    address = server.stdout.readline().split()[0]
    connection, metadata = opened(address, additional_headers={"Authorization": f"Api-Key {KEY}"})
    connection.send(wire.pack(metadata["example_observation"]))
    assert isinstance(connection.recv(timeout=20), bytes)
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=20)
    assert (server.returncode, err) == (0, "")
    assert "stopping" in out
    done = subprocess.run([*command[:4], str(tmp_path), "--port", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not a bundle" in done.stderr
    assert "Traceback" not in done.stderr
