#!/usr/bin/env python3
"""An SO-101 follower on LeRobot's driver, acting by a served bundle.

    xwam-ft serve bundle --port 8000
    python examples/so101_loop.py ws://gpu-box:8000 "Put the red cube into the box" --port /dev/ttyACM0 \\
        --camera front=0 --camera wrist=2
    python examples/so101_loop.py ws://gpu-box:8000 "Put the red cube into the box" --dummy     # without a robot

Observations go as LeRobot gives them (`shoulder_pan.pos` in degrees, `gripper.pos` from 0 to 100, a picture a camera),
and commands come back so: the bundle's contract knows the names and units its recordings had (`aliases`). Cameras are
named as in the recordings. The loop itself, and what makes it stop, is robot_loop.py's: chunks at the contract's rate,
the next asked for while one runs, real-time chunking where the bundle was trained with action prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import typer

from robot_loop import DONE, STOPPED, Loop, Robot
from xwam_ft.aliases import resolved, robot_command
from xwam_ft.errors import EXIT_CODE, UserError
from xwam_ft.policy.client import PolicyClient, Refused

MOTORS = tuple(f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"))
GRIPPER = "gripper.pos"


class So101Loop(Loop):
    """A loop in the robot's own names and units."""

    def observation(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        # Resolved here as well as there, so that a wrong camera or motor is told before anything is sent.
        return dict(resolved(self.contract, {**seen, "task": self.prompt}))

    def command(self, row: np.ndarray) -> dict[str, float]:
        return robot_command(self.contract, row)


@dataclass
class Dummy:
    """An SO-101 that is where it was told to be, and sees the same pictures: for trying the loop without one."""

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


class Follower:
    """LeRobot's SO-101 follower."""

    def __init__(self, port: str, name: str, cameras: Mapping[str, int], fps: int, furthest: float) -> None:
        from lerobot.cameras.opencv import OpenCVCameraConfig

        try:
            from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
        except ImportError:  # before LeRobot 0.5
            from lerobot.robots.so101_follower import SO101Follower, SO101FollowerConfig
        views = {view: OpenCVCameraConfig(index_or_path=at, fps=fps) for view, at in cameras.items()}
        held = {"use_degrees": True, "max_relative_target": furthest, "disable_torque_on_disconnect": False}
        config = SO101FollowerConfig(port=port, id=name, cameras=views, **held)
        self.robot = SO101Follower(config)
        self.robot.connect()

    def get_observation(self) -> dict[str, Any]:
        return self.robot.get_observation()

    def send_action(self, action: dict[str, float]) -> object:
        return self.robot.send_action(action)

    def hold(self) -> None:
        """Stay where it is; the motors keep their torque, so that nothing falls."""
        seen = self.robot.get_observation()
        self.robot.send_action({name: seen[name] for name in (*MOTORS, GRIPPER)})


def dummy(client: PolicyClient) -> Dummy:
    """In the state of the example that the server's metadata brings."""
    contract, example = client.contract, client.metadata["example_observation"]
    columns = [np.atleast_1d(example["state"][slot.name]) for slot in contract.slots if slot.present and slot.commanded]
    return Dummy({**example["images"], **robot_command(contract, np.concatenate(columns))})


def require_motors(robot: Robot, loop: So101Loop) -> None:
    """Ask once before anything moves: names, units and cameras must be those of the recordings."""
    seen = robot.get_observation()
    loop.observation(seen)
    if strange := sorted(set(loop.command(np.zeros(len(loop.client.columns)))) - set(seen)):
        raise UserError(f"commands {', '.join(strange)}, which this robot does not report", "the bundle", "check it")


def main(
    address: Annotated[str, typer.Argument(help="Of the server, ws://host:port.")],
    prompt: Annotated[str, typer.Argument(help="The task in words; case and period do not matter.")],
    port: Annotated[str | None, typer.Option(help="Serial port of the arm.")] = None,
    camera: Annotated[list[str] | None, typer.Option(metavar="NAME=INDEX", help="Repeatable.")] = None,
    name: Annotated[str, typer.Option(help="The id it was calibrated under.")] = "follower",
    is_dummy: Annotated[bool, typer.Option("--dummy", help="Without a robot.")] = False,
    seconds: Annotated[float, typer.Option(help="How long to act.")] = 30.0,
    execute: Annotated[int | None, typer.Option(min=1, help="Steps before the next chunk is asked for.")] = None,
    late: Annotated[float, typer.Option(help="Seconds an answer may take before the robot holds still.")] = 2.0,
    furthest: Annotated[float, typer.Option(help="Degrees a motor may be sent in one command.")] = 15.0,
    api_key: Annotated[str | None, typer.Option(envvar="XWAM_FT_API_KEY", help="Better given by the variable.")] = None,
) -> None:
    """Act by a served bundle."""
    if is_dummy == (port is not None):
        typer.echo("give --port, or --dummy", err=True)
        raise typer.Exit(EXIT_CODE)
    try:
        with PolicyClient(address, api_key) as client:
            timing = client.contract.timing
            views = {view: int(at) for view, _, at in (text.partition("=") for text in camera or [])}
            if port is None:
                robot: Dummy | Follower = dummy(client)
            else:
                robot = Follower(port, name, views, round(timing.fps), furthest)
            loop = So101Loop(client, robot, prompt, execute or max(1, timing.action_steps // 2), late)
            require_motors(robot, loop)
            why = loop.run(seconds)
    except (ConnectionError, Refused, UserError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(EXIT_CODE) from None
    typer.echo(why)
    if why not in (DONE, STOPPED):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
