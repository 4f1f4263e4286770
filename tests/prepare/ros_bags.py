"""MCAP files written on the spot: cameras, depth, joints, a pose and commands, each with its own clock."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from mcap_ros2.writer import Writer
from PIL import Image
from scipy.spatial.transform import Rotation

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND  # as a real clock stands: float64 seconds would lose microseconds
HEADER = "std_msgs/Header header\n"
TAIL = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
"""
POSE = """
================================================================================
MSG: geometry_msgs/Pose
geometry_msgs/Point position
geometry_msgs/Quaternion orientation
================================================================================
MSG: geometry_msgs/Point
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
"""
LAYOUT = """
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""
DEFINITIONS = {
    "sensor_msgs/msg/CompressedImage": HEADER + "string format\nuint8[] data" + TAIL,
    "sensor_msgs/msg/Image": HEADER
    + "uint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\nuint8[] data"
    + TAIL,
    "sensor_msgs/msg/JointState": HEADER
    + "string[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort"
    + TAIL,
    "geometry_msgs/msg/PoseStamped": HEADER + "geometry_msgs/Pose pose" + TAIL + POSE,
    "std_msgs/msg/Float64MultiArray": "std_msgs/MultiArrayLayout layout\nfloat64[] data" + LAYOUT,
    "std_msgs/msg/Bool": "bool data",
    "std_msgs/msg/String": "string data",
}
STAMP = {"header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "f"}}


def picture(number: int, height: int = 16, width: int = 24) -> np.ndarray:
    """A picture that carries its number: red is 4 times it, green 40 more than twice."""
    pixels = np.full((height, width, 3), 40, dtype=np.uint8)
    pixels[..., 0] = number * 4
    pixels[..., 1] += 2 * number
    pixels[..., 2] = np.arange(width)
    return pixels


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def compressed(pixels: np.ndarray, form: str = "png", prefix: bytes = b"") -> dict[str, Any]:
    return {**STAMP, "format": form, "data": prefix + encoded(pixels)}


def raw(pixels: np.ndarray, encoding: str, padding: int = 0) -> dict[str, Any]:
    rows = pixels.reshape(len(pixels), -1)
    data = np.pad(np.ascontiguousarray(rows).view(np.uint8).reshape(len(pixels), -1), ((0, 0), (0, padding)))
    height, width = pixels.shape[:2]
    head = {"height": height, "width": width, "encoding": encoding, "is_bigendian": 0, "step": data.shape[1]}
    return {**STAMP, **head, "data": data.tobytes()}


def joints(values: dict[str, float]) -> dict[str, Any]:
    return {**STAMP, "name": list(values), "position": list(values.values()), "velocity": [], "effort": []}


def pose(position: np.ndarray, turn: Rotation) -> dict[str, Any]:
    x, y, z, w = turn.as_quat()
    place = dict(zip("xyz", position.tolist(), strict=True))
    return {**STAMP, "pose": {"position": place, "orientation": {"x": x, "y": y, "z": z, "w": w}}}


Stream = tuple[str, str, list[tuple[float, Any]]]  # topic, type, (seconds, message)


def write_bag(path: Path, streams: list[Stream], **options: Any) -> Path:
    """A ROS 2 recording, its messages in the order of their log times, as a recorder writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = Writer(stream, **{"chunk_size": 2048, **options})
        types = {kind: writer.register_msgdef(kind, DEFINITIONS[kind]) for _, kind, _ in streams}
        rows = [(seconds, topic, kind, message) for topic, kind, rows in streams for seconds, message in rows]
        for seconds, topic, kind, message in sorted(rows, key=lambda row: row[0]):
            writer.write_message(topic, types[kind], message, log_time=START + round(seconds * SECOND))
        writer.finish()
    return path


def write_json(path: Path, streams: list[tuple[str, str, list[tuple[float, Any]]]], **options: Any) -> Path:
    """A Foxglove recording in JSON; `options` are those of the mcap writer."""
    metadata = options.pop("metadata", {})
    with path.open("wb") as stream:
        writer = McapWriter(stream, **options)
        writer.start()
        writer.add_metadata("episode", metadata)
        for topic, kind, rows in streams:
            schema = writer.register_schema(kind, "jsonschema", b"{}")
            channel = writer.register_channel(topic, "json", schema)
            for seconds, message in rows:
                at = START + round(seconds * SECOND)
                writer.add_message(channel, at, json.dumps(message).encode(), at)
        writer.finish()
    return path


def json_picture(pixels: np.ndarray) -> dict[str, Any]:
    return {"timestamp": {"sec": 0, "nsec": 0}, "format": "png", "data": base64.b64encode(encoded(pixels)).decode()}


def ticks(rate: float, seconds: float, offset: float = 0.0) -> np.ndarray:
    return offset + np.arange(int(seconds * rate + 1e-9)) / rate


def arm(
    seconds: float = 2.0, motion: Callable[[np.ndarray], np.ndarray] = np.sin, task: str = "stack the cups"
) -> list[Stream]:
    """One arm: cameras at 10 and 15 pictures a second, depth at 10, joints and a pose at 50, commands at 5 numbers a
    second, a gripper that is told twice."""
    state, slow = ticks(50, seconds, 0.003), ticks(10, seconds, 0.02)
    turn = Rotation.from_rotvec(np.stack([0 * state, 0 * state, motion(state)], axis=1))
    places = np.stack([motion(state), state, 0 * state], axis=1)
    depth = (1000 + np.arange(24, dtype=np.uint16) * 10)[None].repeat(16, axis=0)
    return [
        (
            "/cam_high/image_raw/compressed",
            "sensor_msgs/msg/CompressedImage",
            [(t, compressed(picture(i))) for i, t in enumerate(slow)],
        ),
        (
            "/cam_wrist/image_raw",
            "sensor_msgs/msg/Image",
            [(t, raw(picture(i)[..., ::-1], "bgr8", 8)) for i, t in enumerate(ticks(15, seconds))],
        ),
        ("/cam_high/depth", "sensor_msgs/msg/Image", [(t, raw(depth + i, "16UC1")) for i, t in enumerate(slow + 0.01)]),
        (
            "/joint_states",
            "sensor_msgs/msg/JointState",
            [(t, joints({"j1": float(motion(t)), "j2": 2.0 * t})) for t in state],
        ),
        (
            "/ee_pose",
            "geometry_msgs/msg/PoseStamped",
            [(t, pose(p, r)) for t, p, r in zip(state, places, turn, strict=True)],
        ),
        (
            "/arm/command",
            "std_msgs/msg/Float64MultiArray",
            [(t, {"layout": {"dim": [], "data_offset": 0}, "data": [t, -t]}) for t in ticks(5, seconds, 0.01)],
        ),
        ("/gripper_cmd", "std_msgs/msg/Bool", [(0.0, {"data": False}), (1.0, {"data": True})]),
        ("/task", "std_msgs/msg/String", [(0.0, {"data": task})]),
    ]


def all_options() -> list[dict[str, Any]]:
    """Ways in which a finished file may have been written."""
    return [
        {},
        {"compression": CompressionType.NONE},
        {"compression": CompressionType.LZ4},
        {"use_chunking": False},
        {"index_types": IndexType.NONE},
        {"repeat_channels": False, "repeat_schemas": False},
    ]
