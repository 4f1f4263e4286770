"""What is in a message: ROS 2 CDR or JSON decoded, numbers with names, pictures.

Numbers are named by their field: a joint by its name (velocity and effort with that ending), a pose x y z qx qy qz qw,
an array by 0, 1, ..., anything else by its path (`twist.linear.x`). Pictures: CompressedImage (JPEG, PNG,
compressedDepth of 16UC1) and Image (rgb8, bgr8, rgba8, bgra8, mono8, 16UC1, mono16, 32FC1) of sensor_msgs, and
Foxglove's JSON ones, whose `data` is base64. Depth is millimetres; 32FC1, metres, is rounded to them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.prepare.sources.mcap_index import Topic

PICTURE = re.compile(r"(?:^|[/.])(?:Compressed|Raw)?Image$")
# Neither numbers of the robot nor pictures, whatever they hold.
OTHERS = (
    "CameraInfo",
    "TFMessage",
    "Log",
    "ParameterEvent",
    "PointCloud2",
    "PointCloud",
    "DiagnosticArray",
    "LaserScan",
)
UNNAMED = {"pose", "position", "orientation", "rotation", "quaternion", "translation", "transform", "data"}
LEFT_OUT = {"header", "layout", "stamp", "timestamp", "frame_id", "child_frame_id", "name"}
TURNS = ("orientation", "rotation", "quaternion")
MOST = 256  # numbers a message: more is a map or a scan
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1}
DEPTHS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
DEPTH_HEADER = 12  # bytes compressedDepth puts before its PNG


@dataclass(frozen=True)
class Message:
    """Field access alike for CDR objects and JSON dicts."""

    body: Any

    def get(self, name: str, default: Any = None) -> Any:
        return self.body.get(name, default) if isinstance(self.body, dict) else getattr(self.body, name, default)

    def fields(self) -> list[tuple[str, Any]]:
        if isinstance(self.body, dict):
            return list(self.body.items())
        return [(name, getattr(self.body, name)) for name in getattr(self.body, "__slots__", ())]


def is_picture(topic: Topic) -> bool:
    return PICTURE.search(topic.schema) is not None


def is_numbers(topic: Topic) -> bool:
    """Whether it can hold numbers; a look at a message tells."""
    return not is_picture(topic) and re.split(r"[/.]", topic.schema)[-1] not in OTHERS


def is_text(topic: Topic) -> bool:
    """Whether its messages are texts."""
    return re.search(r"(?:^|[/.])String$", topic.schema) is not None


def decoder_of(topic: Topic) -> Callable[[bytes], Message]:
    """How the messages of a topic are decoded.

    Raises:
        EpisodeError: another encoding than ROS 2 CDR with a ros2msg schema, or JSON.
    """
    return _decoder(topic.name, topic.encoding, topic.schema, topic.schema_encoding, topic.schema_data)


@functools.lru_cache(maxsize=256)
def _decoder(topic: str, encoding: str, schema: str, schema_encoding: str, data: bytes) -> Callable[[bytes], Message]:
    if encoding == "json":

        def from_json(message: bytes) -> Message:
            try:
                return Message(json.loads(message))
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise EpisodeError(f"topic {topic} has a message that is not JSON") from None

        return from_json
    from mcap.records import Schema
    from mcap_ros2.decoder import DecoderFactory

    try:
        decode = DecoderFactory().decoder_for(encoding, Schema(id=1, name=schema, encoding=schema_encoding, data=data))
    except Exception as error:  # the message definition's parser raises many kinds
        raise EpisodeError(f"topic {topic} has a message definition that cannot be parsed ({error})") from None
    if decode is None:
        given = f"{encoding or 'nothing'} with a {schema_encoding or 'missing'} schema"
        raise EpisodeError(f"topic {topic} is encoded as {given}; cdr with ros2msg and json are read")

    def from_cdr(message: bytes) -> Message:
        try:
            return Message(decode(message))
        except Exception as error:  # struct.error, IndexError, UnicodeDecodeError, ...
            raise EpisodeError(f"topic {topic} has a message that is not a {schema} ({error})") from None

    return from_cdr


def text_of(message: Message) -> str | None:
    """The text of a String message."""
    found = message.get("data")
    return found if isinstance(found, str) else None


def numbers_of(message: Message) -> dict[str, float | bool]:
    """Every number of a message by name; none where it holds none, or too many."""
    names = message.get("name")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        found: dict[str, float | bool] = {}
        for key, ending in (("position", ""), ("velocity", ".velocity"), ("effort", ".effort")):
            values = message.get(key)
            if values is not None and len(values) == len(names):
                found |= {f"{name}{ending}": float(value) for name, value in zip(names, values, strict=True)}
        return found
    found = {}
    _collect(message, (), found)
    return found if len(found) <= MOST else {}


def _collect(message: Message, path: tuple[str, ...], found: dict[str, float | bool]) -> None:
    for name, value in message.fields():
        if name in LEFT_OUT or "covariance" in name:
            continue
        here = (*path, name)
        if isinstance(value, bool | int | float):
            found[_named(here)] = value
        elif isinstance(value, list | tuple | np.ndarray):
            for i, item in enumerate(value[: MOST + 1]):
                if isinstance(item, bool | int | float):
                    found[_named((*here, str(i)))] = item
                elif isinstance(item, dict) or hasattr(item, "__slots__"):
                    _collect(Message(item), (*here, str(i)), found)
        elif isinstance(value, dict) or (hasattr(value, "__slots__") and not isinstance(value, str | bytes)):
            _collect(Message(value), here, found)


def _named(path: tuple[str, ...]) -> str:
    words = [word for word in path if word not in UNNAMED]
    if len(path) > 1 and path[-2] in TURNS and path[-1] in ("x", "y", "z", "w"):
        words[-1] = f"q{path[-1]}"
    return ".".join(words)


# --- pictures ---------------------------------------------------------------------------------------------------


def picture_of(message: Message, where: str) -> np.ndarray:
    """A picture as it was recorded: uint8 RGB [H, W, 3], or uint16 depth in mm [H, W].

    Raises:
        EpisodeError: an encoding that is not read, or bytes that do not fit it.
    """
    data = message.get("data")
    try:
        data = base64.b64decode(data, validate=True) if isinstance(data, str) else bytes(data or b"")
    except binascii.Error:
        raise EpisodeError(f"{where} has a picture that is not base64") from None
    encoding, form = message.get("encoding"), message.get("format")
    if encoding is None and form is not None:
        return _compressed(data, str(form), where)
    return _raw(message, data, str(encoding), where)


def _compressed(data: bytes, form: str, where: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if "compressedDepth" in form:
        if not form.startswith("16UC1"):
            raise EpisodeError(f"{where} has depth as {form!r}; compressedDepth of 16UC1 is read")
        data = data[DEPTH_HEADER:]
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.mode.startswith("I"):
            return np.asarray(picture).astype(np.uint16)
        return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise EpisodeError(
            f"{where} has a picture of format {form!r} that does not decode ({len(data)} bytes)"
        ) from None


def _raw(message: Message, data: bytes, encoding: str, where: str) -> np.ndarray:
    height, width = int(message.get("height", 0)), int(message.get("width", 0))
    kind = "u1" if encoding in CHANNELS else DEPTHS.get(encoding)
    if kind is None:
        raise EpisodeError(f"{where} has pictures as {encoding!r}; read are {', '.join((*CHANNELS, *DEPTHS))}")
    order = ">" if message.get("is_bigendian") else "<"
    item = np.dtype(order + kind)
    row = width * CHANNELS.get(encoding, 1) * item.itemsize
    step = int(message.get("step") or row)  # rows may be padded
    if not height or not width or step < row or len(data) < (height - 1) * step + row:
        raise EpisodeError(f"{where} has a picture of {len(data)} bytes for {width}x{height} {encoding}")
    padded = np.frombuffer(data.ljust(height * step, b"\0"), np.uint8, height * step).reshape(height, step)
    pixels = np.ascontiguousarray(padded[:, :row]).view(item).reshape(height, width, -1)
    if encoding == "32FC1":
        metres = np.nan_to_num(pixels[:, :, 0].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return np.clip(np.round(metres * 1000), 0, 65535).astype(np.uint16)
    if encoding in DEPTHS:
        return pixels[:, :, 0].astype(np.uint16)
    if encoding.startswith("bgr"):
        return np.ascontiguousarray(pixels[:, :, 2::-1])
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])


def as_rgb(picture: np.ndarray, where: str) -> UInt8[ndarray, "h w 3"]:
    if picture.ndim != 3:
        raise EpisodeError(f"{where} has 16-bit depth, not colours; name it under `depth`")
    return picture


def as_depth(picture: np.ndarray, where: str) -> UInt16[ndarray, "h w"]:
    if picture.ndim != 2:
        raise EpisodeError(f"{where} has colours, not 16-bit depth")
    return picture
