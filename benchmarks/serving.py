#!/usr/bin/env python3
"""What the wire costs: a request over loopback beside the same one in process, and four clients at once.

The policy does everything but the network, so that what is measured is reading, checking, packing and
the socket: 3 pictures of 256x320 by default. Overhead is the round trip less the policy's own time.

    python benchmarks/serving.py --requests 500
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer

from _measure import machine, print_table
from _sizes import PROMPT, SIZES, command
from xwam_ft import observation
from xwam_ft.contract import Contract, Image
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.request import PolicyOutput, example_observation, implausible, read_options
from xwam_ft.policy.server import serving


class InstantPolicy:
    """Everything a policy does but the network: an observation is checked and resized, an action decoded."""

    def __init__(self, contract: Contract) -> None:
        self.contract, self.prompts = contract, (PROMPT,)
        self.action = np.zeros((contract.timing.action_steps, contract.action_dim))

    def infer(self, request: Mapping[str, Any]) -> PolicyOutput:
        started = time.perf_counter()
        read_options(request, self.contract)
        inputs = observation.encode(self.contract, request)
        warnings = implausible(self.contract, inputs)
        commands = observation.decode(self.contract, self.action, inputs.state, request)
        return PolicyOutput(commands, self.action, {"total": time.perf_counter() - started}, warnings)

    def warm_up(self) -> float:
        return self.infer(example_observation(self.contract, PROMPT)).seconds["total"]


def main(
    requests: Annotated[int, typer.Option(min=10, help="Of each measurement.")] = 500,
    height: Annotated[int, typer.Option(help="Of the pictures sent.")] = 256,
    width: Annotated[int, typer.Option(help="Of the pictures sent.")] = 320,
    clients: Annotated[int, typer.Option(min=1, help="At once, for the rate.")] = 4,
) -> None:
    """Print round trips and rates."""
    contract = SIZES["tiny"]().contract.model_copy(update={"image": Image(height=height, width=width)})
    policy = InstantPolicy(contract)
    request = example_observation(contract, PROMPT)
    typer.echo(command(__file__, requests=requests, height=height, width=width, clients=clients))
    typer.echo(machine("cpu"))
    typer.echo(f"{len(contract.cameras)} pictures of {height}x{width}, {requests} requests")
    began = time.process_time()
    inside = timed(lambda: policy.infer(request), requests)
    alone = time.process_time() - began
    with serving(policy) as address:
        with PolicyClient(address) as client:
            served: list[float] = []
            began = time.process_time()
            whole = timed(lambda: served.append(client.infer(request)["server_timing"]["infer_ms"]), requests)
            together = time.process_time() - began
        rate, many = crowd(address, request, clients, requests)
    overhead = whole - np.array(served[-requests:])
    rows = [
        ("in process", *cells(inside)),
        ("over loopback", *cells(whole)),
        ("overhead: round trip less the policy's time", *cells(overhead)),
        (f"over loopback, {clients} clients at once", *cells(many)),
    ]
    print_table("a request, ms", ("", "median", "p90", "p99"), rows)
    each = 1e3 / len(served)
    both = [("in process", f"{alone * each:.2f}"), ("over loopback, client and server", f"{together * each:.2f}")]
    print_table("CPU a request, ms: what other work on the machine changes least", ("", "mean"), both)
    print_table("rate", ("", "requests/s"), [(f"{clients} clients at once", f"{rate:.0f}")])


def timed(call: Any, requests: int) -> np.ndarray:
    """Milliseconds of every call, after a few that are not counted."""
    for _ in range(5):
        call()
    taken: list[float] = []
    for _ in range(requests):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return 1e3 * np.array(taken)


def crowd(address: str, request: Mapping[str, Any], clients: int, requests: int) -> tuple[float, np.ndarray]:
    """Requests a second of several clients together, and the milliseconds of each request."""
    taken: list[np.ndarray] = []
    ready = threading.Barrier(clients + 1)

    def ask() -> None:
        with PolicyClient(address) as client:
            client.infer(request)
            ready.wait()
            taken.append(timed(lambda: client.infer(request), max(1, requests // clients)))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    many = np.concatenate(taken)
    return (len(many) + 5 * clients) / (time.perf_counter() - started), many


def cells(milliseconds: np.ndarray) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in np.quantile(milliseconds, (0.5, 0.9, 0.99)))


if __name__ == "__main__":
    typer.run(main)
