"""RLDS datasets (tfds' TFRecord files): one record an episode, read without TensorFlow.

`features.json` beside the records says what each list holds; without it that is guessed: lists of JPEG or PNG bytes are
cameras, other bytes text, numbers divide evenly into the steps. `steps/observation/state` becomes the columns
`observation.state/0`, ..., `steps/action` becomes `action/0`, ...; a camera is `observation.<name>`. RLDS stores no
names of numbers, no units and no rate: the embodiment file states `fps`.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.prepare.episode import Episode, EpisodeError, Table, View
from xwam_ft.prepare.sources import CameraInfo, Source, SourceInfo
from xwam_ft.prepare.sources.tfrecord import ExampleFeature, RecordPlace, check_record, example, records

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

reads = "RLDS datasets (features.json and .tfrecord files)"

BOOKKEEPING = ("is_first", "is_last", "is_terminal", "discount", "reward")
TEXTS = re.compile(r"instruction|language|task", re.IGNORECASE)
PICTURES = (b"\xff\xd8\xff", b"\x89PNG")
MOST = 256  # numbers a step: more is an embedding
STEPS = "steps/"


@dataclass(frozen=True)
class Field:
    """One feature of a step, or of the episode."""

    key: str  # in the Example
    kind: Literal["numbers", "picture", "text"]
    width: int = 1  # numbers a step
    dtype: str = "float32"
    encoding: str = "none"  # of a tensor: none, bytes or zlib

    @property
    def name(self) -> str:
        return self.key.removeprefix(STEPS).replace("/", ".")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,) if self.width == 1 else tuple(f"{self.name}/{i}" for i in range(self.width))

    @property
    def of_step(self) -> bool:
        return not self.key.startswith("episode_metadata/")

    def read(self, feature: ExampleFeature) -> np.ndarray:
        """The numbers of all steps in a row."""
        if self.encoding == "none":
            return feature.ints().astype(np.float64) if feature.kind == "int" else feature.floats()
        opened = [zlib.decompress(item) if self.encoding == "zlib" else bytes(item) for item in feature.items()]
        return np.frombuffer(b"".join(opened), np.dtype(self.dtype)).astype(np.float64)


@dataclass(frozen=True)
class RldsView:
    """One camera: encoded pictures in a record."""

    path: Path
    place: RecordPlace
    key: str
    frames: int

    def size(self) -> tuple[int, int]:
        height, width = np.asarray(self._open([0])[0]).shape[:2]
        return int(height), int(width)

    def codec(self) -> str:
        return "pictures"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        return self._stack([np.asarray(picture.convert("RGB")) for picture in self._open(rows)])

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"]:
        pictures = self._open(rows)
        if colours := next((picture.mode for picture in pictures if not picture.mode.startswith("I")), None):
            raise EpisodeError(f"{self.path}: {self.key} holds {colours} pictures, not 16-bit depth")
        return self._stack([np.asarray(picture).astype(np.uint16) for picture in pictures])

    def _stack(self, pictures: list[np.ndarray]) -> np.ndarray:
        if len({picture.shape for picture in pictures}) > 1:
            raise EpisodeError(f"{self.path}: {self.key} holds pictures of different sizes")
        return np.stack(pictures)

    def _open(self, rows: Sequence[int]) -> list[Any]:
        from PIL import Image, UnidentifiedImageError

        found = example(self.path, self.place)
        items = found[self.key].items() if self.key in found else []
        pictures: list[Any] = []
        for row in rows:
            if row >= len(items) or not len(items[row]):
                raise EpisodeError(f"{self.path}: {self.key} holds no picture for step {row}")
            try:
                picture = Image.open(io.BytesIO(items[row]))
                picture.load()
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
                raise EpisodeError(f"{self.path}: {self.key} holds no JPEG or PNG at step {row}") from None
            pictures.append(picture)
        return pictures


@dataclass(frozen=True)
class RldsTable:
    path: Path
    place: RecordPlace
    fields: tuple[Field, ...]
    length: int

    def read(self) -> Table:
        check_record(self.path, self.place)
        found = example(self.path, self.place)
        columns: dict[str, np.ndarray] = {}
        for field in self.fields:
            if field.kind != "numbers" or not field.of_step or field.key not in found:
                continue
            try:
                numbers = field.read(found[field.key])
            except (ValueError, zlib.error) as error:
                raise EpisodeError(f"{self.path}: {field.key} does not decode ({error})") from None
            if len(numbers) != self.length * field.width:
                raise EpisodeError(
                    f"{self.path}: {field.key} holds {len(numbers)} numbers, not {self.length} steps of {field.width}"
                )
            by_step = numbers.reshape(self.length, field.width)
            columns.update({name: by_step[:, i] for i, name in enumerate(field.columns)})
        return Table(columns, None, None)  # no time is recorded


class Rlds(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        files = _tfrecords(path)
        self.places: list[tuple[Path, RecordPlace]] = []
        self.broken: list[tuple[Path, str]] = []
        for file in files:
            places, problem = records(file)
            self.places += [(file, place) for place in places]
            self.broken += [] if problem is None else [(file, problem)]
        if not self.places:
            raise UserError(
                self.broken[0][1].removeprefix(f"{files[0]} ") if self.broken else "holds no record",
                files[0],
                "download it again",
            )
        declared = files[0].parent / "features.json"
        self.declared = declared if declared.is_file() else None
        self.fields = _declared(declared) if self.declared else _guessed(*self.places[0])
        self.missing = _missing(files)

    @property
    def info(self) -> SourceInfo:
        cameras = {
            field.name: CameraInfo(field.name, depth=field.dtype == "uint16")
            for field in self.fields
            if field.kind == "picture"
        }
        used = [field for field in self.fields if field.kind == "numbers" and field.of_step]
        return SourceInfo(
            path=self.path,
            format="RLDS" if self.declared else "TFRecord (no features.json: guessed)",
            fps=None,
            robot="unknown",
            cameras=cameras,
            columns=tuple(column for field in used for column in field.columns),
        )

    def episodes(self) -> list[Episode]:
        found = [self._episode(index, path, place) for index, (path, place) in enumerate(self.places)]
        for path, problem in self.broken:  # what a broken file held is counted, never passed over
            nothing = RldsTable(path, RecordPlace(0, 0), (), 0)
            found.append(Episode(self.path, len(found), 0, {}, nothing, problems=(problem,)))
        return found

    def _episode(self, index: int, path: Path, place: RecordPlace) -> Episode:
        table = RldsTable(path, place, self.fields, 0)
        try:
            features = example(path, place)
            length = self._length(path, features)
        except EpisodeError as error:
            return Episode(self.path, index, 0, {}, table, problems=(str(error),))
        views: dict[str, View] = {}
        for field in self.fields:
            if field.kind == "picture" and field.key in features:
                views[field.name] = RldsView(path, place, field.key, length)
        return Episode(
            dataset=self.path,
            index=index,
            length=length,
            views=views,
            table=RldsTable(path, place, self.fields, length),
            instructions=self._instructions(features),
            success=_success(features),
            notes=(f"not all files are there: {self.missing}",) if index == 0 and self.missing else (),
        )

    def _length(self, path: Path, features: dict[str, ExampleFeature]) -> int:
        """Steps of an episode: its pictures, else its texts, else by its shortest list of numbers."""
        of_step = [field for field in self.fields if field.of_step and field.key in features]
        for kind in ("picture", "text"):
            if counts := [len(features[field.key].items()) for field in of_step if field.kind == kind]:
                return max(counts)
        numbers = [field for field in of_step if field.kind == "numbers" and field.encoding == "none"]
        if not numbers:
            raise EpisodeError(f"{path}: a record holds none of the features {listed(f.key for f in self.fields)}")
        field = min(numbers, key=lambda field: len(features[field.key].body))
        return len(field.read(features[field.key])) // field.width

    def _instructions(self, features: dict[str, ExampleFeature]) -> tuple[str, ...]:
        for field in self.fields:
            if field.kind == "text" and TEXTS.search(field.key) and field.key in features:
                items = [bytes(item).decode(errors="replace").strip() for item in features[field.key].items()]
                if texts := tuple(dict.fromkeys(text for text in items if text)):
                    return texts
        return ()


def detect(path: Path) -> bool:
    return bool(_found(path))


def read(path: Path) -> Source:
    """Open a dataset: one `.tfrecord` file, the folder of a version, or the folder above it.

    Raises:
        UserError: no record in it, several versions, or a features.json that is not one.
    """
    return Rlds(path)


def _found(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if ".tfrecord" in path.name else []
    pattern = "*.tfrecord*"
    inside = sorted(path.glob(pattern)) or sorted(path.glob(f"*/{pattern}"))
    return [file for file in inside if file.is_file() and not file.name.endswith((".json", ".index"))]


def _tfrecords(path: Path) -> list[Path]:
    files = _found(path)
    if len(folders := sorted({file.parent for file in files})) > 1:
        raise UserError(
            f"holds several datasets ({listed(folder.name for folder in folders)})", path, "give one of them"
        )
    return files


def _missing(files: list[Path]) -> str:
    """The shards that names like `x-train.tfrecord-00003-of-00010` speak of and that are not there; "" for none."""
    there: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.+\.tfrecord)-(\d+)-of-(\d+)", file.name):
            there.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    parts = [f"{stem} has {len(found)} of {count}" for (stem, count), found in there.items() if len(found) < count]
    return listed(parts) if parts else ""


def _declared(path: Path) -> tuple[Field, ...]:
    """The fields of a features.json."""
    found: list[Field] = []

    def walk(node: dict[str, Any], key: str) -> None:
        if "featuresDict" in node:
            for name, inner in node["featuresDict"]["features"].items():
                walk(inner, f"{key}/{name}" if key else name)
        elif "sequence" in node:
            walk(node["sequence"]["feature"], key)
        elif "image" in node:
            found.append(Field(key, "picture", dtype=str(node["image"].get("dtype") or "uint8")))
        elif "text" in node:
            found.append(Field(key, "text"))
        elif "tensor" in node:
            tensor = node["tensor"]
            shape = [int(size) for size in (tensor.get("shape") or {}).get("dimensions", [])]
            dtype, width = str(tensor.get("dtype", "float32")), int(np.prod(shape))
            if dtype in ("string", "object"):
                found.append(Field(key, "text"))
            elif 0 < width <= MOST and key.rsplit("/", 1)[-1] not in BOOKKEEPING:
                found.append(Field(key, "numbers", width, dtype, str(tensor.get("encoding") or "none").lower()))

    try:
        walk(read_json(path), "")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is not the description of a tfds dataset ({error!r})", path, "download it again") from None
    if not any(field.kind == "picture" for field in found):
        raise UserError("declares no pictures", path, "give a dataset with camera images in its steps")
    return tuple(found)


def _guessed(path: Path, place: RecordPlace) -> tuple[Field, ...]:
    """The fields of a record nobody described."""
    features = example(path, place)
    items = {key: feature.items() for key, feature in sorted(features.items()) if feature.kind == "bytes"}
    pictures = {key for key, values in items.items() if values and bytes(values[0][:4]).startswith(PICTURES)}
    if not pictures:
        raise UserError("holds no JPEG or PNG in its first record", path, "give a dataset with camera images")
    steps = max(len(items[key]) for key in pictures)
    found: list[Field] = []
    for key, feature in sorted(features.items()):
        if key in items:
            found.append(
                Field(key, "picture" if key in pictures else "text", dtype=_depth(items[key], key in pictures))
            )
        elif key.rsplit("/", 1)[-1] not in BOOKKEEPING:
            count = len(feature.ints() if feature.kind == "int" else feature.floats())
            if count and count % steps == 0 and count // steps <= MOST:
                found.append(Field(key, "numbers", count // steps))
    return tuple(found)


def _depth(items: list[memoryview], picture: bool) -> str:
    """uint16 for a PNG of 16-bit gray: bit depth 16 and colour type 0 in its header."""
    header = bytes(items[0][:26]) if picture else b""
    return "uint16" if header.startswith(b"\x89PNG") and header[24:26] == b"\x10\x00" else "uint8"


def _success(features: dict[str, ExampleFeature]) -> bool | None:
    for key, feature in features.items():
        if key.startswith("episode_metadata/") and key.endswith("success") and feature.kind == "int":
            return bool(feature.ints().any())
    return None
