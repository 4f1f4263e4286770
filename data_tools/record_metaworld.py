"""Record Meta-World tasks with the benchmark's own scripted experts as a LeRobot v3.0 dataset.

    python data_tools/record_metaworld.py OUT --task button-press-topdown --task drawer-close --episodes 6

Needs `pip install 'xwam-ft[sim]'` and a renderer (MUJOCO_GL=egl works without a screen).

What is recorded, at the simulator's 80 steps a second, one row before every step:
    observation.state   hand pose (x y z in metres, quaternion w x y z with w >= 0, robot base frame) and the opening
                        of the gripper (0 closed .. 1 open), as the robot would report them
    action              commanded hand pose (the motion target after the step, same frame and form) and gripper effort
                        (-1 opens, 1 closes). Both are of the simulator's body "hand", so no constant offset lies
                        between them: at rest they agree to 4 mm and 0.1 degree. On its way the hand follows its
                        target softly: 5 cm behind it as a rule, up to 14 cm and 13 degrees (measured on the bundled
                        set), and it stays behind where something resists, which is how the expert presses.
    action.raw          the benchmark's own four numbers
    next.success        the benchmark's criterion after the step
Cameras are turned by 180 degrees where the benchmark mounts them upside down, and the one on the gripper turns with
it (the benchmark's follows its position alone). meta/calibration.json holds, per camera,
intrinsics (fx fy cx cy, pixel centres at integers) and pose: camera in the base frame, or in the hand's frame for the
camera on the gripper; OpenCV axes (x right, y down, z forward). No object or goal entry is recorded.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parent))
from _lerobot_writer import Recording, write_dataset
from xwam_ft.errors import EXIT_CODE, UserError
from xwam_ft.evaluate.metaworld import STATE as STATE_NAMES
from xwam_ft.evaluate.metaworld import Simulator, benchmark, instruction

STATE: list[str] = list(STATE_NAMES)
ACTION = ["x", "y", "z", "qw", "qx", "qy", "qz", "gripper_effort"]
NAMES: dict[str, list[str]] = {
    "observation.state": STATE,
    "action": ACTION,
    "action.raw": ["dx", "dy", "dz", "gripper_effort"],
    "next.success": ["success"],
}
STEPS_AFTER_SUCCESS = 6
MAX_STEPS = 200
MAX_ATTEMPTS = 5


class Recorder(Simulator):
    """Lets the expert act, and keeps what a robot would have recorded."""

    def episode(self, seed: int, *, depth: bool) -> Recording | None:
        """Let the expert act from the start that `seed` fixes; None if it does not succeed."""
        observation = self.reset(seed)
        rows: dict[str, list[Any]] = {name: [] for name in NAMES}
        videos: dict[str, list[np.ndarray]] = {}
        depths: dict[str, list[np.ndarray]] = {}
        left = MAX_STEPS
        while left > 0:
            action = np.clip(self.expert.get_action(observation), -1.0, 1.0).astype(np.float32)
            rows["observation.state"].append(np.append(self.hand(), observation[3]))
            for kind, store in ((False, videos), (True, depths)):
                if kind and not depth:
                    continue
                for camera, picture in self.pictures(depth=kind).items():
                    store.setdefault(camera, []).append(picture)
            observation, _, _, _, info = self.environment.step(action)
            rows["action"].append(np.append(self.target(), action[3]))
            rows["action.raw"].append(action)
            rows["next.success"].append(bool(info["success"]))
            left = min(left - 1, STEPS_AFTER_SUCCESS) if info["success"] else left - 1
        if not any(rows["next.success"]):
            return None
        tables = {name: np.array(values, dtype=np.float32) for name, values in rows.items() if name != "next.success"}
        return Recording(
            instruction(self.task),
            tables | {"next.success": np.array(rows["next.success"])},
            {camera: np.stack(pictures) for camera, pictures in videos.items()},
            {camera: np.stack(pictures) for camera, pictures in depths.items()},
        )


def record(
    out: Annotated[Path, typer.Argument(help="Dataset folder to make.")],
    task: Annotated[list[str], typer.Option(help="Meta-World task, without -v3; repeatable.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes a task.")] = 10,
    seed: Annotated[int, typer.Option(help="Fixes starts and goals, with the place of the task in the list.")] = 0,
    height: Annotated[int, typer.Option(min=16)] = 96,
    width: Annotated[int, typer.Option(min=16)] = 128,
    camera: Annotated[list[str], typer.Option(help="The benchmark's camera name; repeatable.")] = [  # noqa: B006
        "corner",
        "corner3",
        "gripperPOV",
    ],
    depth: Annotated[bool, typer.Option(help="Record rendered depth too.")] = True,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Quality of RGB video; lower is better.")] = 20,
    depth_crf: Annotated[int, typer.Option(min=-12, max=51, help="Quality of depth video; lower is better.")] = -12,
) -> None:
    """Record successful expert episodes of one or more tasks."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if out.exists():
        raise UserError("exists already", str(out), "choose another folder or remove it")
    benchmark(task, "--task")
    warnings.filterwarnings("ignore", message="Constant")  # the experts ask for more than the environment grants
    recordings: list[Recording] = []
    calibration: dict[str, Any] = {}
    failures = 0
    bar = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*bar) as progress:
        for number, name in enumerate(dict.fromkeys(task)):
            simulator = Recorder(name, camera, height, width)
            for index in progress.track(range(episodes), description=name):
                for attempt in range(MAX_ATTEMPTS):
                    start = int(np.random.SeedSequence([seed, number, index, attempt]).generate_state(1)[0] % 2**31)
                    if (recording := simulator.episode(start, depth=depth)) is not None:
                        recordings.append(recording)
                        break
                    failures += 1
                else:
                    raise UserError(
                        f"the expert failed {MAX_ATTEMPTS} times in a row", f"--task {name}", "take another task"
                    )
            calibration = calibration or simulator.calibration()
            simulator.close()
    partial = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    write_dataset(
        partial,
        recordings,
        fps=80,
        robot="metaworld_sawyer",
        names=NAMES,
        calibration=calibration,
        crf=crf,
        depth_crf=depth_crf,
    )
    partial.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    frames = [recording.length for recording in recordings]
    print(
        f"{out}: {len(recordings)} episodes, {sum(frames)} frames ({min(frames)} to {max(frames)} an episode), ", end=""
    )
    print(f"{failures} failed attempts left out, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    try:
        typer.run(record)
    except UserError as error:
        print(f"record_metaworld: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
