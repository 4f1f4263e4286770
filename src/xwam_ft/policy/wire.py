"""Arrays in msgpack, as openpi's clients and servers write them; what comes from outside is read within bounds.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": dtype.str, b"shape": list}, a numpy scalar
{b"__npgeneric__": True, b"data": item, b"dtype": dtype.str}. Kinds V, O and c are refused both ways, so nothing a
message says is ever run. Arrays that were read are read-only.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import UserError, require

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED_KINDS = "VOc"
MAX_DIMS = 8
MAX_LIST, MAX_MAP = 4096, 1024
MAX_CONTAINERS = 4096
"""Lists and maps of a message: a frame of empty maps would otherwise take sixty times its size in memory."""
MAX_TEXT = 10_000
WHERE = "message"
_DTYPE = re.compile(r"[<>|=]?[A-Za-z?]\d{0,9}(\[\w{1,4}\])?")


def pack(message: object) -> bytes:
    """A message as msgpack.

    Raises:
        ValueError, TypeError: it holds an array of kind V, O or c, or an object msgpack does not know.
    """
    return _msgpack().packb(message, default=_plain)


def unpack(data: bytes, *, bounded: bool = True) -> Any:
    """A message of msgpack; `bounded` where a stranger may have sent it.

    Raises:
        UserError: not msgpack; an array that is not what it says it is; more lists or maps than any message needs.
    """
    library = _msgpack()
    if not bounded:
        return library.unpackb(data, object_hook=_array)
    count = _counter()
    bounds = {"max_array_len": MAX_LIST, "max_map_len": MAX_MAP, "max_str_len": MAX_TEXT, "max_ext_len": 0}
    try:
        with np.errstate(all="ignore"):  # a scalar that overflows its own dtype
            return library.unpackb(
                data, object_hook=lambda found: _array(count(found)), list_hook=count, ext_hook=_no_extension, **bounds
            )
    # ValueError is most of what msgpack raises; the others come of dtypes and shapes that are none.
    except (ValueError, TypeError, OverflowError, RecursionError, library.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"cannot be read ({reason[:200]})", WHERE, "send one msgpack map, arrays in openpi's form"
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in REFUSED_KINDS:
        raise ValueError(f"arrays of {value.dtype} are not sent")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} is not sent")


def _array(found: dict[Any, Any]) -> Any:
    """The array or scalar a map stands for; any other map as it is."""
    if b"__ndarray__" not in found and b"__npgeneric__" not in found:
        return found
    name, data = found.get(b"dtype"), found.get(b"data")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"an array of dtype {name!r:.40}")
    dtype = np.dtype(name)
    if dtype.kind in REFUSED_KINDS or dtype.hasobject:
        raise ValueError(f"arrays of {dtype} are refused")
    if b"__npgeneric__" in found:
        if not isinstance(data, bool | int | float | str | bytes):
            raise ValueError("a scalar that is none")
        scalar = dtype.type(data)
        if dtype.kind in "iu" and scalar != data:  # numpy below 2 lets a number that is too large turn over
            raise ValueError(f"a {dtype} scalar of {data!r:.40}")
        return scalar
    shape = found.get(b"shape")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r:.40}")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else "no"
        raise ValueError(f"an array of shape {shape} and {dtype} with {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape) if data else np.zeros(shape, dtype)


def _counter() -> Callable[[Any], Any]:
    seen = 0

    def count(container: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > MAX_CONTAINERS:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and maps")
        return container

    return count


def _no_extension(code: int, data: bytes) -> object:
    raise ValueError(f"an extension type, {code}")


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError:
        raise require("msgpack", "serve", "serving") from None
    return msgpack
