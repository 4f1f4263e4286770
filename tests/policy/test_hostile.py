"""Frames of strangers, many of them: each gets an answer or one sentence, and the server goes on."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from served import GatedPolicy, example, get, opened, until
from websockets.asyncio.client import connect

from xwam_ft.errors import UserError
from xwam_ft.policy import wire
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.server import PolicyServer, ServerLimits, serving
from xwam_ft.shards import ShardSet

HOSTILE_CLIENTS = 3


@pytest.fixture(scope="module")
def policy(shard_set: ShardSet) -> GatedPolicy:
    return GatedPolicy(ReplayPolicy(shard_set, 0))


@pytest.fixture(scope="module")
def address(policy: GatedPolicy) -> Iterator[str]:
    with serving(policy, limits=ServerLimits(message_bytes=200_000, waiting=HOSTILE_CLIENTS, connections=8)) as address:
        yield address


def hostile(rng: random.Random, good: bytes) -> bytes:
    """A frame that is wrong somewhere: bytes changed, cut, doubled or made up; seldom it is right by chance."""
    frame = bytearray(good)
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return bytes(frame[: rng.randrange(len(frame))])
    if kind == 2:
        return bytes(frame + frame[: rng.randrange(1, 50)])
    for _ in range(rng.randrange(1, 20)):  # most of a frame is pixels; what says what they are stands around them
        place = rng.randrange(len(frame)) if kind == 3 else rng.choice((rng.randrange(120), -1 - rng.randrange(400)))
        frame[place] = rng.randrange(256)
    return bytes(frame)


async def fuzz(address: str, good: bytes, frames: int, seed: int) -> Counter[str]:
    """One client's frames: the same connection while it is answered, a new one after every refusal."""
    rng, ends = random.Random(seed), Counter[str]()
    connection = None
    for _ in range(frames):
        if connection is None:
            connection = await connect(address, compression=None, max_size=None, proxy=None)
            await connection.recv()
        await connection.send(hostile(rng, good))
        said = await asyncio.wait_for(connection.recv(), 20)
        ends["refused" if isinstance(said, str) else "answered"] += 1
        if isinstance(said, str):
            assert "Fix:" in said, said  # a sentence, never "the server failed"
            assert "requests waiting" not in said  # refused for what it is, not for the crowd
            await connection.wait_closed()
            connection = None
    if connection is not None:
        await connection.close()
    return ends


async def fuzz_together(address: str, good: bytes, frames: int, seed: int) -> Counter[str]:
    """As many clients at once as may wait, so that one connects while another is answered."""
    seeds = [seed * HOSTILE_CLIENTS + client for client in range(HOSTILE_CLIENTS)]
    shares = [len(range(client, frames, HOSTILE_CLIENTS)) for client in range(HOSTILE_CLIENTS)]
    done = await asyncio.gather(*(fuzz(address, good, *each) for each in zip(shares, seeds, strict=True)))
    return sum(done, Counter[str]())


def requests(address: str) -> Counter[str]:
    """What the server has counted, by how it ended."""
    found = re.findall(r'xwam_ft_requests_total\{result="(\w+)"\} (\d+)', get(address, "/metrics")[1])
    return Counter({name: int(count) for name, count in found})


def small_frame(policy: GatedPolicy) -> bytes:
    small = example(policy.contract)
    small["images"] = {name: np.full((6, 8, 3), 9, np.uint8) for name in small["images"]}
    return wire.pack(small)


def fuzzed(policy: GatedPolicy, address: str, frames: int, seed: int) -> None:
    before = requests(address)
    ends = asyncio.run(fuzz_together(address, small_frame(policy), frames, seed))
    print(f"{ends['refused']} refused, {ends['answered']} answered")  # pytest -s shows it
    assert ends.total() == frames
    assert ends["refused"] > frames / 2
    # The server counts a request when its answer has gone out, so a moment later than the client.
    until(lambda: requests(address) - before == ends)
    connection, metadata = opened(address)
    connection.send(wire.pack(metadata["example_observation"]))
    assert isinstance(connection.recv(timeout=10), bytes)
    connection.close()


@pytest.mark.slow
def test_two_thousand_hostile_frames(policy: GatedPolicy, address: str) -> None:
    fuzzed(policy, address, 2000, seed=0)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_frames(policy: GatedPolicy, address: str) -> None:
    fuzzed(policy, address, 100_000, seed=1)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_frames_without_the_wire(policy: GatedPolicy) -> None:
    server, rng, good, refusals = PolicyServer(lambda: policy), random.Random(2), small_frame(policy), 0
    server.policy = policy
    for _ in range(100_000):
        try:
            server._infer(hostile(rng, good), None)
        except UserError:  # nothing else may come out
            refusals += 1
    assert refusals > 50_000
