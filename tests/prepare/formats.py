"""The recordings of conftest.py written in the other formats, to the layouts their readers document.

No real file of these formats was at hand: they are synthesised from the documentation.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image
from scipy.spatial.transform import Rotation

from xwam_ft.media import write_gray16, write_rgb

FPS = 10
COLUMNS = ("j1", "j2", "grip")
INTRINSICS = [[40.0, 0, 24], [0, 41.0, 16], [0, 0, 1]]


def jpeg(picture: np.ndarray, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=95, comment=comment)
    return buffer.getvalue()


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def padded(pictures: list[bytes]) -> np.ndarray:
    width = max(map(len, pictures))
    return np.stack([np.frombuffer(each.ljust(width, b"\0"), np.uint8) for each in pictures])


def vlen(group: Any, name: str, rows: list[bytes]) -> None:
    made = group.create_dataset(name, (len(rows),), h5py.vlen_dtype(np.uint8))
    for i, row in enumerate(rows):
        made[i] = np.frombuffer(row, np.uint8)


def write_aloha(root: Path, made: Any, *, compressed: bool = False) -> Path:
    root.mkdir(parents=True)
    for i, state in enumerate(made.states):
        with h5py.File(root / f"episode_{i}.hdf5", "w") as file:
            file["observations/qpos"], file["action"] = state, made.actions[i]
            file["observations/qvel"] = np.zeros_like(state)
            if compressed:
                rows = [jpeg(picture) for picture in made.pictures[i]]
                file["observations/images/front"] = padded(rows)
                file["compress_len"] = np.array([[len(row) for row in rows]])
            else:
                file["observations/images/front"] = made.pictures[i]
    return root


def write_robomimic(root: Path, made: Any) -> Path:
    root.mkdir(parents=True)
    with h5py.File(root / "demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": FPS, "robots": ["Panda"]}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for i, state in enumerate(made.states):
            group = data.create_group(f"demo_{i}")
            group["obs/robot0_joint_pos"], group["actions"] = state[:, :2], made.actions[i]
            group["obs/robot0_gripper_qpos"] = state[:, 2:]
            group["obs/front_image"] = made.pictures[i]
            group["obs/front_depth"] = (made.depths[i] / np.float32(1000))[..., None]
            group["states"], group["rewards"] = np.zeros((len(state), 40)), np.zeros(len(state))
    return root


def write_robotwin(root: Path, made: Any, *, standard: bool = False) -> Path:
    """The pictures as cv2.imencode leaves them when it is given RGB: red and blue swapped, unless `standard`."""
    (root / "data").mkdir(parents=True)
    (root / "instructions").mkdir()
    for i, state in enumerate(made.states):
        pictures = made.pictures[i] if standard else made.pictures[i][..., ::-1]
        rows = [jpeg(picture, b"XPL-RGB1" if standard else b"") for picture in pictures]
        with h5py.File(root / "data" / f"episode{i}.hdf5", "w") as file:
            width = max(map(len, rows))
            file["observation/front/rgb"] = np.array(rows, dtype=f"S{width}")
            vlen(file, "observation/front/depth", [png(depth) for depth in made.depths[i]])
            file["observation/front/intrinsic_cv"] = np.tile(INTRINSICS, (len(state), 1, 1))
            file["observation/front/extrinsic_cv"] = np.tile(np.eye(4)[:3] + np.eye(4)[3] * 0.5, (len(state), 1, 1))
            file["joint_action/left_arm"], file["joint_action/left_gripper"] = state[:, :2], state[:, 2]
            file["joint_action/vector"], file["pointcloud"] = state, np.zeros((len(state), 0))
        texts = {"seen": [made.tasks[i]], "unseen": ["something else"]}
        (root / "instructions" / f"episode{i}.json").write_text(json.dumps(texts))
    return root


def write_robomind(root: Path, made: Any) -> Path:
    for i, state in enumerate(made.states):
        path = root / f"run_{i}" / "data" / "trajectory.hdf5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["puppet/joint_position"], file["master/joint_position"] = state, made.actions[i]
            vlen(file, "observations/rgb_images/front", [png(picture) for picture in made.pictures[i]])
            vlen(file, "observations/depth_images/front", [png(depth) for depth in made.depths[i]])
            file["language_raw"] = made.tasks[i]
    return root


def poses(made: Any, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions [F, 3], rotation vectors [F, 3] and gripper [F] made from an episode's numbers."""
    state = made.states[i].astype(np.float64)
    return state, state[:, ::-1] * 0.7, state[:, 2]


def write_xwam(root: Path, made: Any, *, rotation: str = "rotvec") -> Path:
    """One video of all episodes, so that start and end matter; one `end` is the last frame, the others one after."""
    (root / "videos").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    write_rgb(root / "videos" / "front.mp4", np.concatenate(made.pictures), FPS)
    write_gray16(root / "videos" / "front_depth.mkv", np.concatenate(made.depths), FPS)
    start, listing = 0, {}
    for i, state in enumerate(made.states):
        length = len(state)
        position, turn, gripper = poses(made, i)
        matrix = Rotation.from_rotvec(turn).as_matrix()
        form = {"rotvec": turn, "flat": matrix.reshape(-1, 9), "matrix": matrix}[rotation].tolist()
        part = {"left_ee_pos": position.tolist(), "left_ee_rotm": form, "left_gripper_pos": gripper.tolist()}
        files = {"rgb_path": "videos/front.mp4", "depth_path": "videos/front_depth.mkv"}
        view = {"type": "static", **files, "start": start, "end": start + length - (i == 0), "fps": FPS}
        tree = {
            "num_frames": length,
            "instructions": [made.tasks[i]],
            "observations": {"front": view},
            "proprios": part,
            "actions": {**part, "left_ee_pos": (position + 0.01).tolist()},
            "raw_actions": np.zeros((length, 7)).tolist(),
        }
        (root / "data" / "chunk-000" / f"episode_{i:06d}.json").write_text(json.dumps(tree))
        listing[f"episode_{i:06d}"] = length
        start += length
    (root / "metadata.json").write_text(json.dumps(listing))
    return root


def write_folder(root: Path, made: Any, *, table: str = "csv", pictures: bool = False, camera: str = "front") -> Path:
    for i, state in enumerate(made.states):
        folder = root / f"run {i}"
        folder.mkdir(parents=True)
        both = {name: state[:, at].astype(np.float64) for at, name in enumerate(COLUMNS)}
        both |= {f"action.{name}": made.actions[i][:, at].astype(np.float64) for at, name in enumerate(COLUMNS)}
        both |= {"timestamp": np.arange(len(state)) / FPS}
        if table == "npz":
            np.savez(folder / "table.npz", state=state, action=made.actions[i])
        elif table == "parquet":
            pq.write_table(pa.table(both), folder / "table.parquet")
        else:
            texts = {"instruction": [made.tasks[i]] * len(state), "operator": ["ann"] * len(state)}
            pa.csv.write_csv(pa.table({**both, **texts}), folder / "table.csv")
        if pictures:
            for name, frames in ((camera, made.pictures[i]), (f"{camera}_depth", made.depths[i])):
                (folder / name).mkdir()
                for at, frame in enumerate(frames):  # frame_10 comes after frame_9
                    Image.fromarray(frame).save(folder / name / f"frame_{at}.png")
        else:
            write_rgb(folder / f"{camera}.mp4", made.pictures[i], FPS)
            write_gray16(folder / f"{camera}_depth.mkv", made.depths[i], FPS)
    (root / "recording.json").write_text(json.dumps({"fps": FPS, "robot": "toy"}))
    return root


WRITERS: dict[str, Any] = {
    "aloha": write_aloha,
    "aloha_jpeg": lambda root, made: write_aloha(root, made, compressed=True),
    "robomimic": write_robomimic,
    "robotwin": write_robotwin,
    "robomind": write_robomind,
    "xwam": write_xwam,
    "folder_csv": write_folder,
    "folder_pictures": lambda root, made: write_folder(root, made, table="npz", pictures=True),
}
