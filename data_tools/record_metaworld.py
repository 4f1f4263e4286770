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

import math
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

INSTRUCTIONS = {
    "button-press-topdown": "press the button from above",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "door-open": "open the door",
    "door-close": "close the door",
    "push": "push the puck to the green goal",
    "reach": "move the gripper to the red goal",
    "pick-place": "pick up the puck and bring it to the goal",
    "window-open": "slide the window open",
    "window-close": "slide the window shut",
}
STATE = ["x", "y", "z", "qw", "qx", "qy", "qz", "gripper_opening"]
ACTION = ["x", "y", "z", "qw", "qx", "qy", "qz", "gripper_effort"]
NAMES = {"observation.state": STATE, "action": ACTION, "action.raw": ["dx", "dy", "dz", "gripper_effort"]}
NAMES |= {"next.success": ["success"]}
TURNED = {"corner", "corner2", "corner3", "corner4"}  # mounted upside down
WRIST = {"gripperPOV": "gripper"}  # the benchmark's name -> ours
STEPS_AFTER_SUCCESS = 6
MAX_STEPS = 200
MAX_ATTEMPTS = 5


def fail(what: str, where: str, fix: str) -> typer.Exit:
    print(f"record_metaworld: {where}: {what}. Fix: {fix}", file=sys.stderr)
    return typer.Exit(2)


def missing(error: ImportError) -> typer.Exit:
    return fail(f"the package {error.name!r} is not installed", "Meta-World", "pip install 'xwam-ft[sim]'")


def no_picture(error: Exception) -> typer.Exit:
    sys.unraisablehook = lambda _: None  # mujoco's half-made renderer complains once more when it is collected
    return fail(
        f"no picture can be rendered ({(str(error).splitlines() or [type(error).__name__])[0]})",
        f"MUJOCO_GL={os.environ['MUJOCO_GL']}",
        "install libegl1 and libgl1-mesa-dri (apt-get install) and set MUJOCO_GL=egl",
    )


def benchmark(tasks: list[str]) -> tuple[Any, dict[str, Any]]:
    """Meta-World's experts and environments, when it has all `tasks` and everything it needs is installed."""
    try:
        import mujoco  # noqa: F401  (loads the GL library too, and raises what its binding raises without one)
    except ModuleNotFoundError as error:
        raise missing(error) from None
    except Exception as error:
        raise no_picture(error) from None
    try:
        from metaworld import policies
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise missing(error) from None
    for task in tasks:
        if f"{task}-v3" not in ALL_V3_ENVIRONMENTS:
            known = ", ".join(sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS))
            raise fail(f"unknown task {task!r}", "--task", f"choose one of: {known}")
    return policies, ALL_V3_ENVIRONMENTS


def expert_name(task: str) -> str:
    """Class of the scripted expert of a task: the task in capitals, but for one."""
    words = task.replace("peg-insert-", "peg-insertion-").split("-")
    return f"Sawyer{''.join(word.capitalize() for word in words)}V3Policy"


class Simulator:
    """One Meta-World task with its expert, its cameras and a renderer."""

    def __init__(self, task: str, cameras: list[str], height: int, width: int) -> None:
        import mujoco

        policies, environments = benchmark([task])
        self.task = task
        self.expert: Any = getattr(policies, expert_name(task))()
        self.environment: Any = environments[f"{task}-v3"]()
        env = self.environment
        # The expert needs object and goal entries; they are never written.
        env._partially_observable, env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = (
            False,
            False,
            True,
            True,
        )
        env.__dict__.pop("sawyer_observation_space", None)
        self.model, self.data = env.model, env.data
        known_cameras = [self.model.camera(i).name for i in range(self.model.ncam)]
        for camera in cameras:
            if camera not in known_cameras:
                raise fail(f"unknown camera {camera!r}", "--camera", f"choose of: {', '.join(known_cameras)}")
        self.cameras = cameras
        for camera in set(cameras) & set(WRIST):
            self._bolt(self.model.camera(camera).id)
        self.model.vis.quality.offsamples, self.model.vis.quality.shadowsize = 0, 512
        self.size = (height, width)
        try:
            self.renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # mujoco raises what its GL backend raises: many types
            raise no_picture(error) from None

    def _bolt(self, camera: int) -> None:
        """Fix a camera to the hand as it stands while the hand points straight down.

        The benchmark's camera follows the hand's position alone; one bolted to a gripper turns with it, and only then
        has it a hand-eye transform.
        """
        import mujoco

        down = np.zeros(9)
        mujoco.mju_quat2Mat(down, np.array([1.0, 0.0, 1.0, 0.0]) / math.sqrt(2))
        turn = np.zeros(4)
        mujoco.mju_mat2Quat(turn, (down.reshape(3, 3).T @ self.model.cam_mat0[camera].reshape(3, 3)).flatten())
        self.model.cam_pos[camera] = down.reshape(3, 3).T @ self.model.cam_pos0[camera]
        self.model.cam_quat[camera] = turn
        self.model.cam_mode[camera] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED

    def hand(self) -> np.ndarray:
        """Pose of the hand in the robot's base frame: x y z, quaternion w x y z with w >= 0."""
        body = self.data.body("hand")
        quaternion = body.xquat / np.linalg.norm(body.xquat)
        return np.concatenate([body.xpos, quaternion if quaternion[0] >= 0 else -quaternion])

    def target(self) -> np.ndarray:
        """The motion target in the same form."""
        quaternion = self.data.mocap_quat[0] / np.linalg.norm(self.data.mocap_quat[0])
        return np.concatenate([self.data.mocap_pos[0], quaternion if quaternion[0] >= 0 else -quaternion])

    def pictures(self, *, depth: bool) -> dict[str, np.ndarray]:
        """Every camera: RGB uint8 [H, W, 3], or depth along the optical axis in metres [H, W]."""
        made: dict[str, np.ndarray] = {}
        if depth:
            self.renderer.enable_depth_rendering()
        for camera in self.cameras:
            self.renderer.update_scene(self.data, camera=camera)
            picture = self.renderer.render()
            made[WRIST.get(camera, camera.lower())] = (picture[::-1, ::-1] if camera in TURNED else picture).copy()
        if depth:
            self.renderer.disable_depth_rendering()
        return made

    def calibration(self) -> dict[str, Any]:
        """Intrinsics and pose of every camera, OpenCV axes."""
        height, width = self.size
        cameras: dict[str, Any] = {}
        for camera in self.cameras:
            index = self.model.camera(camera).id
            focal = height / 2 / math.tan(math.radians(self.model.cam_fovy[index]) / 2)
            axes = np.diag([1.0, -1.0, -1.0]) @ (np.diag([-1.0, -1.0, 1.0]) if camera in TURNED else np.eye(3))
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = self.data.cam_xmat[index].reshape(3, 3) @ axes, self.data.cam_xpos[index]
            if camera in WRIST:
                body = self.data.body("hand")
                hand = np.eye(4)
                hand[:3, :3], hand[:3, 3] = body.xmat.reshape(3, 3), body.xpos
                pose = np.linalg.inv(hand) @ pose
            cameras[WRIST.get(camera, camera.lower())] = {
                "kind": "wrist" if camera in WRIST else "static",
                "intrinsics": [focal, focal, (width - 1) / 2, (height - 1) / 2],
                "pose": np.round(pose, 9).tolist(),
            }
        return {"frame": "robot base", "axes": "OpenCV: x right, y down, z forward", "cameras": cameras}

    def reset(self, seed: int) -> np.ndarray:
        """Put goal and objects where `seed` says; returns what the expert (and only the expert) may see."""
        self.environment.seed(seed)
        return self.environment.reset()[0]

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
            INSTRUCTIONS.get(self.task, self.task.replace("-", " ")),
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
        raise fail("exists already", str(out), "choose another folder or remove it")
    benchmark(task)
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
            simulator = Simulator(name, camera, height, width)
            for index in progress.track(range(episodes), description=name):
                for attempt in range(MAX_ATTEMPTS):
                    start = int(np.random.SeedSequence([seed, number, index, attempt]).generate_state(1)[0] % 2**31)
                    if (recording := simulator.episode(start, depth=depth)) is not None:
                        recordings.append(recording)
                        break
                    failures += 1
                else:
                    raise fail(
                        f"the expert failed {MAX_ATTEMPTS} times in a row", f"--task {name}", "take another task"
                    )
            calibration = calibration or simulator.calibration()
            simulator.renderer.close()  # while GL still stands: at interpreter exit it no longer does
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
    typer.run(record)
