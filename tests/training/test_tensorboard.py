"""The event file against protobuf's own decoder, and against the journal that it mirrors."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pipeline.training import tensorboard
from pipeline.training.checkpoint import Journal

ENTRY = {"loss": 2.5, "learning_rate": 1e-3, "gradient_norm": None, "tokens": 100, "seconds": 2.0, "memory": 1 << 30}


@pytest.fixture(scope="module")
def event_class():
    """TensorFlow's Event, its published fields declared to protobuf itself."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="check", syntax="proto3")

    def declare(name, *fields):
        message = file.message_type.add(name=name)
        for label, number, kind, type_name in fields:
            field = message.field.add(name=label, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
            if type_name:
                field.type_name = f".check.{type_name}"
                field.label = kinds.LABEL_REPEATED if label == "value" else kinds.LABEL_OPTIONAL

    declare("Value", ("tag", 1, kinds.TYPE_STRING, ""), ("simple_value", 2, kinds.TYPE_FLOAT, ""))
    declare("Summary", ("value", 1, kinds.TYPE_MESSAGE, "Value"))
    declare(
        "Event",
        ("wall_time", 1, kinds.TYPE_DOUBLE, ""),
        ("step", 2, kinds.TYPE_INT64, ""),
        ("file_version", 3, kinds.TYPE_STRING, ""),
        ("summary", 5, kinds.TYPE_MESSAGE, "Summary"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("check.Event"))


def events(path: Path, event_class) -> list:
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert tensorboard.record(content[12 : 12 + length]) == content[: 16 + length]
        found.append(event_class.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_the_checksum_is_castagnolis():
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_a_step_reads_back_as_its_scalars(tmp_path, event_class):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.rewind(0)
    journal.append(ENTRY | {"step": 300, "held_out_loss": 2.25})
    first, second = events(tmp_path / tensorboard.NAME, event_class)
    assert first.file_version == "brain.Event:2" and second.step == 300
    values = {value.tag: value.simple_value for value in second.summary.value}
    assert values == {
        "loss/training": 2.5,
        "loss/held-out": 2.25,
        "learning rate": pytest.approx(1e-3),
        "speed/tokens per second": 50.0,
        "memory/bytes": float(1 << 30),
    }


def test_a_resumed_run_has_no_step_twice(tmp_path, event_class):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.rewind(0)
    for step in (1, 2, 3):
        journal.append(ENTRY | {"step": step})
    resumed = Journal(journal.path)
    resumed.rewind(2)
    resumed.append(ENTRY | {"step": 3})
    found = events(tmp_path / tensorboard.NAME, event_class)
    assert [event.step for event in found] == [0, 1, 2, 3]
    assert [event.wall_time for event in found] == sorted(event.wall_time for event in found)
