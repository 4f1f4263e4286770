"""CRC-32C against RFC 3720; records and Examples against protobuf's own encoder."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xwam_ft.prepare.episode import EpisodeError
from xwam_ft.prepare.sources.tfrecord import RecordPlace, check_record, example, masked_crc32c, records

_spec = importlib.util.spec_from_file_location("tf_examples", Path(__file__).with_name("tf_examples.py"))
assert _spec is not None
assert _spec.loader is not None
tf_examples: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tf_examples)
encoded, framed = tf_examples.encoded, tf_examples.framed


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4, and the usual check value
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_checksums(data: bytes, crc: int) -> None:
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert masked_crc32c(data) == masked_crc32c(memoryview(data)) == masked


@settings(max_examples=25)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9),
    st.lists(st.binary(max_size=200), min_size=1, max_size=5),
)
def test_an_example_comes_back(
    tmp_path_factory: pytest.TempPathFactory, floats: list[float], ints: list[int], items: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("r") / "a.tfrecord"
    data = encoded({"f": floats, "steps/i": ints, "b": items})
    path.write_bytes(framed(b"x") + framed(data))
    places, problem = records(path)
    assert (len(places), problem) == (2, None)
    check_record(path, places[1])
    found = example(path, places[1])
    assert {name: feature.kind for name, feature in found.items()} == {"f": "float", "steps/i": "int", "b": "bytes"}
    np.testing.assert_array_equal(found["f"].floats(), np.array(floats))
    assert found["steps/i"].ints().tolist() == ints
    assert [bytes(item) for item in found["b"].items()] == items


def test_floats_that_are_not_packed_are_read(tmp_path: Path) -> None:
    """Older writers give each number its own tag."""
    values = b"".join(b"\x0d" + struct.pack("<f", value) for value in (1.5, -2.0))
    listed = b"\x12" + bytes([len(values)]) + values
    entry = b"\x0a\x01f\x12" + bytes([len(listed)]) + listed
    features = b"\x0a" + bytes([len(entry)]) + entry
    path = tmp_path / "a.tfrecord"
    path.write_bytes(framed(b"\x0a" + bytes([len(features)]) + features))
    assert example(path, records(path)[0][0])["f"].floats().tolist() == [1.5, -2.0]


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    whole = framed(encoded({"a": [1.0]})) * 2
    path.write_bytes(whole[:-3])
    assert records(path) == ([RecordPlace(12, len(whole) // 2 - 16)], f"{path} ends in the middle of record 1")
    path.write_bytes(whole[: len(whole) // 2 + 5])
    assert "ends in the middle of record 1" in str(records(path)[1])
    path.write_bytes(b"\x01" + whole[1:])
    assert "the length of record 0 does not fit its checksum" in str(records(path)[1])
    path.write_bytes(whole[:15] + bytes([whole[15] ^ 1]) + whole[16:])
    with pytest.raises(EpisodeError, match="the record at byte 12 does not fit its checksum"):
        check_record(path, records(path)[0][0])
    path.write_bytes(framed(b"\x0b\xff\xff"))
    with pytest.raises(EpisodeError, match=r"the record at byte 12 is not a tf.train.Example"):
        example(path, records(path)[0][0])
    path.write_bytes(b"")
    assert records(path) == ([], None)
