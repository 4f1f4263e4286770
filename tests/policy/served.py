"""A policy that can be held up, and the plain ways to talk to a server, for the tests of both ends."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from websockets.sync.client import ClientConnection, connect

from xwam_ft.contract import Contract
from xwam_ft.policy import wire
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.request import PolicyOutput


class GatedPolicy:
    """A replay that answers when `gate` is open, and keeps the seeds it was asked with."""

    def __init__(self, replay: ReplayPolicy) -> None:
        self.replay, self.contract, self.prompts = replay, replay.contract, replay.prompts
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()
        self.seeds: list[int] = []
        self.fails: Exception | None = None

    def infer(self, request: Mapping[str, Any]) -> PolicyOutput:
        self.asked.set()
        assert self.gate.wait(20)
        self.seeds.append(request.get("options", {}).get("seed", -1))
        if self.fails is not None:
            raise self.fails
        self.replay.reset()  # an answer is a function of the request here
        return self.replay.infer(request)

    def warm_up(self) -> float:
        return self.replay.warm_up()

    def close_gate(self) -> None:
        self.gate.clear()
        self.asked.clear()


def get(address: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of a plain HTTP request."""
    request = urllib.request.Request(address.replace("ws://", "http://") + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def example(contract: Contract, **options: Any) -> dict[str, Any]:
    from xwam_ft.policy.request import example_observation

    made = example_observation(contract, "pick up the cube")
    return made | {"options": options} if options else made


def opened(address: str, **options: Any) -> tuple[ClientConnection, dict[str, Any]]:
    """A connection and the metadata it began with."""
    connection = connect(address, compression=None, max_size=None, close_timeout=2, **options)
    said = connection.recv(timeout=10)
    assert isinstance(said, bytes)
    return connection, wire.unpack(said)


def until(met: Any) -> None:
    """Wait for a condition, ten seconds at most."""
    end = time.monotonic() + 10
    while not met():
        assert time.monotonic() < end
        time.sleep(0.005)
