"""TFRecord files written on the spot: Examples by protobuf's own encoder, framed with their checksums."""

from __future__ import annotations

import struct
from typing import Any

from xwam_ft.prepare.sources.tfrecord import masked_crc32c


def encoded(features: dict[str, Any]) -> bytes:
    """A tf.train.Example by protobuf, its messages described here."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        feature.field.add(name=name.lower(), number=number, type=field.TYPE_MESSAGE, type_name=f".t.{name}", label=1)
    whole = file.message_type.add(name="Features")
    entry = whole.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=1)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".t.Feature", label=1)
    whole.field.add(name="feature", number=1, type=field.TYPE_MESSAGE, type_name=".t.Features.FeatureEntry", label=3)
    outer = file.message_type.add(name="Example")
    outer.field.add(name="features", number=1, type=field.TYPE_MESSAGE, type_name=".t.Features", label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    for name, values in features.items():
        kind = (
            "byteslist"
            if isinstance(values[0], bytes)
            else "floatlist"
            if isinstance(values[0], float)
            else "int64list"
        )
        getattr(message.features.feature[name], kind).value.extend(values)
    return message.SerializeToString()


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
