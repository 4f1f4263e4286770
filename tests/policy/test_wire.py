"""Arrays in msgpack: there and back, openpi's form to the byte, and nothing a stranger sends gets further than here."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from xwam_ft.errors import UserError
from xwam_ft.policy import wire

DTYPES = st.sampled_from(["|b1", "|u1", "<i2", "<i8", "<f2", "<f4", "<f8", ">f4", "<U3", "|S2", "<M8[s]"])


@given(arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)))
@settings(max_examples=100)
def test_arrays_come_back(array: np.ndarray) -> None:
    back = wire.unpack(wire.pack({"x": array}))["x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_the_form_is_openpi_s() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    bare = msgpack.unpackb(wire.pack({"x": array[:, ::2], "n": np.float32(1.5)}))
    assert bare["x"] == {
        b"__ndarray__": True, b"data": array[:, ::2].tobytes(), b"dtype": "<f4", b"shape": [2, 2],
    }  # fmt: skip
    assert bare["n"] == {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}
    assert wire.unpack(wire.pack(np.int16(-3))).dtype == np.int16


def test_what_was_read_cannot_be_written() -> None:
    back = wire.unpack(wire.pack(np.zeros(3)))
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


@pytest.mark.parametrize("value", [np.zeros(2, complex), np.array([None]), np.zeros(1, "V4"), object()])
def test_what_is_not_sent(value: object) -> None:
    with pytest.raises((ValueError, TypeError), match="not sent"):
        wire.pack(value)


def array_map(**changes: Any) -> dict[bytes, Any]:
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f8", "shape": [1]} | changes
    return {name.encode(): value for name, value in fields.items()}


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (array_map(dtype="|O"), "refused"),
        (array_map(dtype="|V8"), "refused"),
        (array_map(dtype="<c8"), "refused"),
        (array_map(dtype="f4,i4"), "dtype 'f4,i4'"),
        (array_map(dtype="__import__('os')"), "dtype"),
        (array_map(dtype=7), "dtype 7"),
        (array_map(shape=[2]), "shape [2] and float64 with 8 bytes"),
        (array_map(shape=[-1]), "shape [-1]"),
        (array_map(shape=[2**40, 2**40]), "with 8 bytes"),
        (array_map(shape=[1] * 40), "shape"),
        (array_map(shape=[True]), "shape"),
        (array_map(data="text"), "with no bytes"),
        ({b"__npgeneric__": True, b"dtype": "|u1", b"data": 300}, "300"),
        ({b"__npgeneric__": True, b"dtype": "<f8", b"data": [1]}, "a scalar that is none"),
        (msgpack.ExtType(5, b""), "extension"),
        (msgpack.Timestamp(1), "ext"),
        ("x" * 20_000, "max_str_len"),
        ([0] * 5000, "max_array_len"),
        ([[{}] * 4000] * 2, "4096 lists and maps"),
    ],
)
def test_what_is_not_read(message: object, part: str) -> None:
    with pytest.raises(UserError, match="cannot be read") as error:
        wire.unpack(msgpack.packb(message))
    assert part in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\x00\x00"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        wire.unpack(data)
