"""The thin client: light, bounded in time, and never takes a late answer for another's."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from served import GatedPolicy, example

from xwam_ft.policy.client import PolicyClient, Refused
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.server import serving
from xwam_ft.shards import ShardSet


@pytest.fixture(scope="module")
def policy(shard_set: ShardSet) -> GatedPolicy:
    return GatedPolicy(ReplayPolicy(shard_set, 0))


@pytest.fixture(scope="module")
def address(policy: GatedPolicy) -> Iterator[str]:
    with serving(policy, api_key="0123456789abcdef") as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[PolicyClient]:
    with PolicyClient(address, "0123456789abcdef", patience=5) as client:
        yield client


def test_it_loads_neither_torch_nor_lightning() -> None:
    code = """
import sys
from xwam_ft.policy.client import PolicyClient
from xwam_ft.contract import Contract
heavy = {"torch", "lightning", "diffusers", "transformers", "av", "scipy.optimize"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_answer_is_the_policy_s(policy: GatedPolicy, client: PolicyClient) -> None:
    assert client.contract == policy.contract
    request = example(policy.contract)
    table = np.concatenate(list(policy.infer(request).commands.slots.values()), axis=1)
    np.testing.assert_array_equal(client.infer(request)["actions"], table)
    np.testing.assert_array_equal(client.infer(request, chunk=2)["actions"], table[:2])
    assert len(client.columns) == table.shape[1]


def test_options_in_the_observation_stay(policy: GatedPolicy, client: PolicyClient) -> None:
    request = {**example(policy.contract), "options": {"chunk": 2}}
    assert len(client.infer(request, seed=3)["actions"]) == 2


@contextmanager
def freezing(port: int) -> Iterator[tuple[str, threading.Event]]:
    """A way to the server at `port` that takes nothing more once the event is set, and keeps its connections open."""
    frozen = threading.Event()

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while not frozen.is_set() and (sent := source.recv(1024)) and not frozen.is_set():
                sink.sendall(sent)

    with socket.create_server(("127.0.0.1", 0)) as door, ExitStack() as open_ones:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def welcome() -> None:
            with suppress(OSError):
                while True:
                    near = open_ones.enter_context(door.accept()[0])
                    far = open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=forward, args=pair, daemon=True).start()

        threading.Thread(target=welcome, daemon=True).start()
        yield f"ws://127.0.0.1:{door.getsockname()[1]}", frozen


def test_a_server_that_freezes_while_it_is_sent_to_is_a_timeout(policy: GatedPolicy, address: str) -> None:
    """The frame is larger than what the system buffers, and nobody reads it: sending itself waits."""
    request = example(policy.contract)
    request["images"] = {name: np.zeros((2160, 3840, 3), np.uint8) for name in request["images"]}
    with (
        freezing(int(address.rsplit(":", 1)[1])) as (way, frozen),
        PolicyClient(way, "0123456789abcdef", patience=5) as client,
    ):
        frozen.set()
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.5 s"):
            client.infer(request, timeout=0.5)
        assert time.monotonic() - started < 5
        frozen.clear()
        assert len(client.infer(example(policy.contract))["actions"]) > 0  # by a new connection


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:abc", "127.0.0.1:99999"])
def test_what_is_no_address_is_said_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"address.*Fix: give ws://host:port"):
        PolicyClient(address, patience=30)
    assert time.monotonic() - started < 10


def test_a_late_answer_is_thrown_away(policy: GatedPolicy, client: PolicyClient) -> None:
    request = example(policy.contract)
    policy.close_gate()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        client.infer(request, timeout=0.2)
    assert time.monotonic() - started < 1.5
    threading.Timer(0.1, policy.gate.set).start()
    assert len(client.infer(request, chunk=3)["actions"]) == 3  # not the eight asked for before


def test_a_refusal_is_the_server_s_sentence_and_the_next_call_connects_again(
    policy: GatedPolicy, client: PolicyClient
) -> None:
    request = example(policy.contract)
    with pytest.raises(Refused, match="unknown option 'sed'"):
        client.infer(request, sed=1)
    assert len(client.infer(request)["actions"]) == 8
    with pytest.raises(TypeError, match="not sent"):
        client.infer(request | {"prompt": object()})
    assert len(client.infer(request)["actions"]) == 8


def test_no_server_a_wrong_key_and_no_address(address: str) -> None:
    with pytest.raises(Refused, match="Authorization: Api-Key KEY"):
        PolicyClient(address)
    with pytest.raises(ConnectionError, match="no server answers"):
        PolicyClient("127.0.0.1:9", patience=0.3)
    with pytest.raises(ConnectionError, match="is no address"):
        PolicyClient("ws://", patience=0.3)


def test_a_server_that_goes_away_is_a_connection_error(policy: GatedPolicy) -> None:
    with serving(policy) as address:
        client = PolicyClient(address)
    with pytest.raises(ConnectionError):
        client.infer(example(policy.contract), timeout=0.5)


def test_a_server_that_comes_back_with_another_robot_is_refused(policy: GatedPolicy, shard_set: ShardSet) -> None:
    """A loop holds columns and period from the first time: the same numbers would be sent to other joints."""
    with serving(policy) as address:
        client = PolicyClient(address, patience=5)
        request = example(policy.contract)
        assert len(client.infer(request)["actions"]) == 8
    port = int(address.rsplit(":", 1)[1])
    more = policy.contract.model_copy(update={"prompts": ("pick up the cube", "another")})
    slower = policy.contract.model_copy(
        update={"timing": policy.contract.timing.model_copy(update={"fps": policy.contract.timing.fps / 2})}
    )
    for contract, refused in ((more, False), (slower, True), (policy.contract, False)):
        other = GatedPolicy(ReplayPolicy(shard_set, 0))
        other.contract = contract
        with serving(other, port=port):
            with suppress(ConnectionError):  # of the connection that the last server closed
                client.infer(request)
            if not refused:
                assert len(client.infer(request)["actions"]) == 8
                continue
            with pytest.raises(Refused, match=r"serves another bundle .*its timing differs.*new PolicyClient"):
                client.infer(request)
            with PolicyClient(address, patience=5) as new:
                assert new.metadata["action_period"] == contract.timing.action_period
    client.close()
