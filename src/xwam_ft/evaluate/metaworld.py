"""Meta-World: the benchmark's tasks with our cameras, as the recorder sees them and as an environment of a policy.

Two things differ from the benchmark, here and so in recordings and closed loop alike: cameras it mounts upside down are
turned by 180 degrees, and the one on the gripper turns with the hand (the benchmark's follows its position alone).
Pictures have neither shadows nor reflections. A policy sees pictures, instruction, hand pose and gripper opening; never
an object or goal entry.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import UserError, did_you_mean, listed, require
from xwam_ft.evaluate.environment import Outcome
from xwam_ft.evaluate.perturb import AS_RECORDED
from xwam_ft.media import compressed

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract

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
TURNED = {"corner", "corner2", "corner3", "corner4"}  # mounted upside down
WRIST = {"gripperPOV": "gripper"}  # the benchmark's name -> ours
STATE = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper_opening")
PERIOD = 1 / 80  # seconds a step
METRES_A_STEP = 0.01  # that an action of 1 moves the motion target
UNCOLOURED = (0.5, 0.5, 0.5, 1.0)  # MuJoCo's mark of a surface whose material has the colour
HORIZON = 500  # the benchmark's own limit of steps


def instruction(task: str) -> str:
    return INSTRUCTIONS.get(task, task.replace("-", " "))


def benchmark(tasks: Sequence[str], where: str = "--env") -> tuple[Any, dict[str, Any]]:
    """Meta-World's experts and environments, when it has all `tasks` and everything it needs is installed.

    Raises:
        UserError: a package is not installed, GL cannot be loaded, or a task is unknown.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        importlib.import_module("mujoco")  # loads the GL library too, and raises what its binding raises without one
    except ModuleNotFoundError as error:
        raise require(str(error.name), "sim", "Meta-World") from None
    except Exception as error:
        raise no_picture(error) from None
    try:
        from metaworld import policies
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise require(str(error.name), "sim", "Meta-World") from None
    known = sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS)
    for task in tasks:
        if task not in known:
            hint = did_you_mean(task, known)
            raise UserError(f"unknown Meta-World task {task!r}{hint}", where, f"choose one of: {listed(known, 60)}")
    return policies, ALL_V3_ENVIRONMENTS


def no_picture(error: Exception) -> UserError:
    sys.unraisablehook = lambda _: None  # mujoco's half-made renderer complains once more when it is collected
    return UserError(
        f"no picture can be rendered ({(str(error).splitlines() or [type(error).__name__])[0]})",
        f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}",
        "install libegl1 and libgl1-mesa-dri (apt-get install) and set MUJOCO_GL=egl",
    )


def _mujoco() -> Any:
    """The module, untyped: its bindings are compiled."""
    return importlib.import_module("mujoco")


def expert_name(task: str) -> str:
    """Class of the scripted expert of a task: the task in capitals, but for one."""
    words = task.replace("peg-insert-", "peg-insertion-").split("-")
    return f"Sawyer{''.join(word.capitalize() for word in words)}V3Policy"


class Simulator:
    """One task with its expert, its cameras (the benchmark's names) and a renderer."""

    def __init__(self, task: str, cameras: Sequence[str], height: int, width: int) -> None:
        policies, environments = benchmark([task])
        mujoco = _mujoco()
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
                raise UserError(
                    f"Meta-World has no camera {camera!r}", "cameras", f"choose of: {listed(known_cameras)}"
                )
        self.cameras = list(cameras)
        for camera in set(cameras) & set(WRIST):
            self._bolt(self.model.camera(camera).id)
        self.model.vis.quality.offsamples = 0
        self.size = (height, width)
        try:
            self.renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # mujoco raises what its GL backend raises: many types
            raise no_picture(error) from None
        # On a software renderer each costs another pass over all meshes: a picture takes 10 ms instead of 30.
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0

    def _bolt(self, camera: int) -> None:
        """Fix a camera to the hand as it stands while the hand points straight down.

        The benchmark's camera follows the hand's position alone; one bolted to a gripper turns with it, and only then
        has it a hand-eye transform.
        """
        mujoco = _mujoco()
        down = np.zeros(9)
        mujoco.mju_quat2Mat(down, np.array([1.0, 0.0, 1.0, 0.0]) / math.sqrt(2))
        turn = np.zeros(4)
        mujoco.mju_mat2Quat(turn, (down.reshape(3, 3).T @ self.model.cam_mat0[camera].reshape(3, 3)).flatten())
        self.model.cam_pos[camera] = down.reshape(3, 3).T @ self.model.cam_pos0[camera]
        self.model.cam_quat[camera] = turn
        self.model.cam_mode[camera] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED

    def hand(self) -> ndarray:
        """Pose of the hand in the robot's base frame: x y z, quaternion w x y z with w >= 0."""
        body = self.data.body("hand")
        quaternion = body.xquat / np.linalg.norm(body.xquat)
        return np.concatenate([body.xpos, quaternion if quaternion[0] >= 0 else -quaternion])

    def target(self) -> ndarray:
        """The motion target in the same form."""
        quaternion = self.data.mocap_quat[0] / np.linalg.norm(self.data.mocap_quat[0])
        return np.concatenate([self.data.mocap_pos[0], quaternion if quaternion[0] >= 0 else -quaternion])

    def pictures(self, *, depth: bool, of: Any = None, things: Sequence[_Thing] = ()) -> dict[str, ndarray]:
        """Every camera: RGB uint8 [H, W, 3], or depth along the optical axis in metres [H, W].

        Args:
            of: another state of the same model than the one at hand.
            things: what can be seen beside it.
        """
        made: dict[str, ndarray] = {}
        if depth:
            self.renderer.enable_depth_rendering()
        for camera in self.cameras:
            self.renderer.update_scene(self.data if of is None else of, camera=camera)
            for thing in things:
                thing.put_into(self.renderer.scene)
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

    def reset(self, seed: int) -> ndarray:
        """Put goal and objects where `seed` says; returns what the expert (and only the expert) may see."""
        self.environment.seed(seed)
        return self.environment.reset()[0]

    def close(self) -> None:
        """Free the renderer while GL still stands: at interpreter exit it no longer does."""
        self.renderer.close()


class MetaWorld:
    """A task as the environment of a policy that was trained on recordings of data_tools/record_metaworld.py.

    Args:
        task: without "-v3".
        contract: the policy's; its cameras are rendered at its picture size.
        perturbed: what is made harder (see perturb.py).

    Raises:
        UserError: the contract asks for a camera, a state or a command that this environment does not have.
    """

    def __init__(self, task: str, contract: Contract, perturbed: Mapping[str, float] | None = None) -> None:
        benchmark([task])
        _require_fit(task, contract)
        theirs = {ours: name for name, ours in WRIST.items()}
        cameras = [theirs.get(name, name) for name in contract.camera_names]
        self.instruction, self.period, self.max_steps = instruction(task), PERIOD, HORIZON
        self.contract = contract
        self.simulator = Simulator(task, cameras, contract.image.height, contract.image.width)
        self._opening = 1.0
        self._perturbed = {**AS_RECORDED, **(perturbed or {})}
        self._scene = _Scene(self.simulator.model, self.simulator.cameras)
        self._noise = np.random.default_rng(0)
        self._late: deque[Any] = deque(maxlen=int(self._perturbed["delay"]) + 1)  # states, the oldest first

    def reset(self, seed: int) -> None:
        self._scene.perturb(self._perturbed, seed)
        self._noise = np.random.default_rng([seed, 1])
        self._opening = float(self.simulator.reset(seed)[3])
        self._late.clear()
        self._remember()

    def _remember(self) -> None:
        """Keep the state at hand for pictures that come late."""
        if self._late.maxlen != 1:
            self._late.append(copy(self.simulator.data))

    def observe(self) -> dict[str, Any]:
        numbers: dict[str, float] = dict(zip(STATE, [*self.simulator.hand(), self._opening], strict=True))
        state = {
            slot.name: [numbers[column] for column in slot.columns] for slot in self.contract.slots if slot.present
        }
        late = self._late[0] if self._late else None
        pictures = self.simulator.pictures(depth=False, of=late, things=self._scene.things)
        if spread := 255 * self._perturbed["noise"]:
            noisy = {name: picture + self._noise.normal(0, spread, picture.shape) for name, picture in pictures.items()}
            pictures = {name: np.clip(np.rint(picture), 0, 255).astype(np.uint8) for name, picture in noisy.items()}
        if (quality := int(self._perturbed["jpeg"])) < 100:
            pictures = {name: compressed(picture[None], "jpeg", quality)[0] for name, picture in pictures.items()}
        return {"images": pictures, "state": state, "prompt": self.instruction}

    def step(self, command: Mapping[str, Float[ndarray, " n"]]) -> Outcome:
        """Move the target towards the commanded position as far as a step may, and set the gripper's effort.

        The benchmark cannot turn its hand: the commanded rotation is not used.
        """
        action = np.zeros(4)
        for slot in self.contract.slots:
            if slot.name not in command:  # observed only
                continue
            if slot.kind == "pose":
                target = self.simulator.data.mocap_pos[0]
                action[:3] = np.clip((command[slot.name][:3] - target) / METRES_A_STEP, -1, 1)
            else:
                action[3] = np.clip(command[slot.name][0], -1, 1)
        seen, _, _, _, info = self.simulator.environment.step(action.astype(np.float32))
        self._opening = float(seen[3])
        self._remember()
        return Outcome.SUCCESS if info["success"] else Outcome.GOES_ON

    def close(self) -> None:
        self.simulator.close()


class _Scene:
    """Lamps, surfaces and cameras of a model as they were, so that each episode can change them anew."""

    def __init__(self, model: Any, cameras: Sequence[str]) -> None:
        self.model = model
        self.cameras = [model.camera(name).id for name in cameras]
        head = model.vis.headlight
        self._lamps = [(lamp, lamp.copy()) for lamp in (model.light_diffuse, head.diffuse, head.ambient)]
        self._surfaces = [(table, table.copy()) for table in (model.mat_rgba, model.geom_rgba)]
        self._places, self._turns = model.cam_pos.copy(), model.cam_quat.copy()
        self.things: list[_Thing] = []

    def perturb(self, strengths: Mapping[str, float], seed: int) -> None:
        for lamp, before in self._lamps:
            lamp[:] = before * strengths["light"]
        draws = np.random.default_rng([seed, 0])
        for table, before in self._surfaces:
            share = strengths["colour"] * np.any(before != UNCOLOURED, axis=1, keepdims=True)
            table[:, :3] = (1 - share) * before[:, :3] + share * draws.uniform(size=(len(before), 3))
        self.model.cam_pos[:], self.model.cam_quat[:] = self._places, self._turns
        for camera in self.cameras:
            away = draws.normal(size=3)
            self.model.cam_pos[camera] += strengths["camera"] * away / np.linalg.norm(away)
        for camera in self.cameras:
            axis = draws.normal(size=3)
            turn, turned = np.zeros(4), np.zeros(4)
            _mujoco().mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), math.radians(strengths["turn"]))
            _mujoco().mju_mulQuat(turned, self._turns[camera], turn)
            self.model.cam_quat[camera] = turned
        self.things = [_Thing.drawn(draws) for _ in range(int(strengths["things"]))]


@dataclass(frozen=True)
class _Thing:
    """A box, ball or cylinder on the table, beside where tasks happen. Seen, not touched."""

    kind: str
    size: float  # m, half of its width
    place: tuple[float, float]  # x y, m
    colour: tuple[float, float, float]

    @classmethod
    def drawn(cls, draws: np.random.Generator) -> _Thing:
        kind, side = ("box", "sphere", "cylinder")[draws.integers(3)], (-1, 1)[draws.integers(2)]
        size, place = draws.uniform(0.02, 0.05), (side * draws.uniform(0.25, 0.45), draws.uniform(0.4, 0.9))
        red, green, blue = draws.uniform(size=3)
        return cls(kind, float(size), place, (red, green, blue))

    def put_into(self, scene: Any) -> None:
        mujoco = _mujoco()
        geom = scene.geoms[scene.ngeom]
        kind = getattr(mujoco.mjtGeom, f"mjGEOM_{self.kind.upper()}")
        place, colour = np.array([*self.place, self.size]), np.array([*self.colour, 1.0], np.float32)
        mujoco.mjv_initGeom(geom, kind, np.full(3, self.size), place, np.eye(3).reshape(-1), colour)
        scene.ngeom += 1


def _require_fit(task: str, contract: Contract) -> None:
    where, fix = f"metaworld:{task}", "evaluate a bundle trained on recordings of data_tools/record_metaworld.py"
    known = ["topview", "corner", "corner2", "corner3", "corner4", "behindGripper", *WRIST.values()]
    for camera in contract.camera_names:
        if camera not in known:
            raise UserError(f"the bundle sees through a camera {camera!r}, and it has {listed(known)}", where, fix)
    if abs(contract.timing.action_period - PERIOD) > 1e-9:
        theirs = contract.timing.action_period
        raise UserError(f"the bundle commands every {theirs:.4g} s, and it steps every {PERIOD:.4g} s", where, fix)
    for slot in contract.slots:
        if strange := [column for column in slot.columns if column not in STATE]:
            raise UserError(
                f"the bundle's slot {slot.name!r} reads {listed(strange)}, and it reports {listed(STATE)}", where, fix
            )
    kinds = sorted(slot.kind for slot in contract.slots if slot.commanded and slot.present)
    if kinds != ["gripper", "pose"]:
        raise UserError(f"the bundle commands {listed(kinds)}, and it takes one pose and one gripper", where, fix)
