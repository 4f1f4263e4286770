#!/usr/bin/env python3
"""A robot loop in LeRobot's style: ask a server for chunks of commands, execute them, look again before they run out.

    xwam-ft serve bundle --port 8000                               # or, without weights: serve shards --replay 0
    python examples/robot_loop.py ws://127.0.0.1:8000 --seconds 10

`Robot` is the part of LeRobot's robots that is used: `get_observation` and `send_action` with flat dicts whose keys are
the contract's columns ("arm.x", "gripper.width") and cameras. Put yours where `StandIn` is made, in SI units; a robot
that speaks degrees or millimetres converts in its two methods.

What keeps it safe: commands stop the moment an answer is late (`--late`) and nothing is left to execute, at Ctrl-C, and
when the server refuses; then `hold` is called. A chunk that was asked for while another runs starts at the step its
observation is old by; where the bundle takes prefixes it goes on from what is still executed (real-time chunking).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import numpy as np
import typer

from xwam_ft.contract import Contract
from xwam_ft.policy.client import PolicyClient, Refused, RunningChunk

DONE, STOPPED = "done", "stopped by hand"
GRACE = 1.0
"""Seconds beyond `late` after which an answer is given up whatever the client does."""
MISSED = 0.005
"""Metres by which inverse kinematics may miss a pose without a word."""
FASTER = "serve with fewer --action-steps, or from a faster device"


class Robot(Protocol):
    """What LeRobot's robots offer, in SI units, and a way to hold still."""

    def get_observation(self) -> dict[str, Any]: ...

    def send_action(self, action: dict[str, float]) -> object: ...

    def hold(self) -> None: ...


@dataclass
class StandIn:
    """A robot that is where it was told to be, and sees a ramp: for trying the loop without one."""

    now: dict[str, Any]
    sent: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    held: int = 0

    def get_observation(self) -> dict[str, Any]:
        return dict(self.now)

    def send_action(self, action: dict[str, float]) -> None:
        self.sent.append(action)
        self.now |= action

    def hold(self) -> None:
        self.held += 1


class Loop:
    """Executes chunks at the contract's rate.

    Args:
        client: connected.
        robot: in SI units.
        prompt: one the policy knows.
        execute: steps of a chunk after which the next is asked for; the rest is what may run on while it is awaited.
        late: seconds an answer may take.
    """

    def __init__(self, client: PolicyClient, robot: Robot, prompt: str, execute: int, late: float) -> None:
        self.client, self.robot, self.prompt, self.late = client, robot, prompt, late
        self.contract: Contract = client.contract
        self.execute = min(execute, self.contract.timing.action_steps)
        self.period = self.contract.timing.action_period
        self.columns = command_columns(self.contract)

    def run(self, seconds: float) -> str:
        """Act for so long; says why it ended. The robot holds still whatever happened."""
        pool = ThreadPoolExecutor(1)
        try:
            return self._run(time.monotonic() + seconds, pool)
        except FutureTimeout:
            return f"no answer within {self.late:g} s"
        except (TimeoutError, ConnectionError, Refused) as error:
            return str(error)
        except KeyboardInterrupt:
            return STOPPED
        finally:
            self.robot.hold()
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, end: float, pool: ThreadPoolExecutor) -> str:
        first = self.ask(pool, None).result(timeout=self.late + GRACE)
        chunk = replace(first, start=time.monotonic())  # the robot stood still: a chunk may start when it arrives
        coming: Future[RunningChunk] | None = None
        while (now := time.monotonic()) < end:
            step = chunk.step(now)
            if coming is None and step >= self.execute:
                coming = self.ask(pool, chunk)
            if coming is not None and coming.done() and coming.exception() is None:
                chunk, coming = coming.result(), None
                continue
            if step >= len(chunk.actions):  # what is left is executed, even where the next chunk will not come
                assert coming is not None
                chunk, coming = coming.result(timeout=self.late + GRACE), None  # until then nothing is sent
                if time.monotonic() - chunk.start >= len(chunk.actions) * self.period:
                    took = time.monotonic() - chunk.start
                    lasts = len(chunk.actions) * self.period
                    return f"an answer took {took:.2g} s and its commands last {lasts:.2g} s; {FASTER}"
                continue
            self.robot.send_action(self.command(chunk.actions[step]))
            time.sleep(max(0.0, chunk.start + (step + 1) * self.period - time.monotonic()))
        return DONE

    def ask(self, pool: ThreadPoolExecutor, running: RunningChunk | None) -> Future[RunningChunk]:
        """Look, and ask what to do from now on. Only the asking runs beside the loop: a robot's bus takes one."""
        seen = time.monotonic()
        return pool.submit(self._answer, self.observation(self.robot.get_observation()), running, seen)

    def _answer(self, observation: dict[str, Any], running: RunningChunk | None, seen: float) -> RunningChunk:
        chunk = self.client.follow(observation, running, seen=seen, timeout=self.late)
        answer = chunk.answer
        for slot, missed in answer.get("residual", {}).items():
            if (far := float(np.max(np.asarray(missed)[:, 0], initial=0.0))) > MISSED:
                typer.echo(f"inverse kinematics of {slot} misses by up to {1000 * far:.0f} mm", err=True)
        for warning in answer.get("warnings", []):
            typer.echo(f"warning: {warning}", err=True)
        if answer.get("clamped"):
            typer.echo(f"clamped to the limits: {answer['clamped']}", err=True)
        if chunk.lacking:
            typer.echo(
                f"answers are {chunk.lacking} commands too late to go on from without a jump; {FASTER}", err=True
            )
        return chunk

    def command(self, row: np.ndarray) -> dict[str, float]:
        """A row of commands -> what the robot takes."""
        return dict(zip(self.columns, map(float, row), strict=True))

    def observation(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """LeRobot's flat dict -> the contract's observation."""
        slots = [slot for slot in self.contract.slots if slot.present]
        return {
            "images": {name: seen[name] for name in self.contract.camera_names},
            "state": {slot.name: np.array([seen[column] for column in slot.columns]) for slot in slots},
            "prompt": self.prompt,
        }


def command_columns(contract: Contract) -> list[str]:
    """The robot's names for the numbers of `actions`: the columns its state is reported in."""
    return [column for slot in contract.slots if slot.commanded and slot.present for column in slot.columns]


def stand_in(client: PolicyClient) -> StandIn:
    """Made from the example the server's metadata brings."""
    example = client.metadata["example_observation"]
    now: dict[str, Any] = dict(example["images"])
    for slot in client.contract.slots:
        if slot.present:
            now |= dict(zip(slot.columns, map(float, example["state"][slot.name]), strict=True))
    return StandIn(now)


def main(
    address: Annotated[str, typer.Argument(help="Of the server, ws://host:port.")],
    prompt: Annotated[str | None, typer.Option(help="Default: the first the policy knows.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to act.")] = 10.0,
    execute: Annotated[int | None, typer.Option(min=1, help="Steps before the next chunk is asked for.")] = None,
    late: Annotated[float, typer.Option(help="Seconds an answer may take before the robot holds still.")] = 2.0,
    api_key: Annotated[str | None, typer.Option(envvar="XWAM_FT_API_KEY", help="Better given by the variable.")] = None,
) -> None:
    """Run the loop on a stand-in robot."""
    try:
        client = PolicyClient(address, api_key)
    except (ConnectionError, Refused) as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    with client:
        robot = stand_in(client)
        half = max(1, client.contract.timing.action_steps // 2)
        loop = Loop(client, robot, prompt or client.metadata["prompts"][0], execute or half, late)
        why = loop.run(seconds)
    typer.echo(f"{why}: {len(robot.sent)} commands sent")
    if why not in (DONE, STOPPED):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
