"""Metrics files."""

import json
import os
import struct

import pytest
from tensorboardX.proto import event_pb2

from nexttok.writers import JsonlWriter, MultiWriter, TensorBoardWriter


def test_one_object_per_line_and_no_duplicates_after_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        writer = MultiWriter([JsonlWriter(str(path)), TensorBoardWriter(str(tmp_path / "tb"))])
        writer.resume("tokenizer", 2 if path.exists() else 0)
        for step in (3, 4) if path.exists() else (1, 2, 3):
            writer.scalars("tokenizer", step, {"loss": 1.0 / step})
        writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[0] == {"stage": "tokenizer", "step": 1, "loss": 1.0}
    first, second = sorted((tmp_path / "tb" / "tokenizer").glob("events*"), key=os.path.getmtime)
    assert [e.step for e in events(second) if e.HasField("session_log")] == [3]  # drops 3 and on
    assert [e.step for e in events(first) if e.summary.value] == [1, 2, 3]


def events(path):
    """The records of an event file: length, checksum, message, checksum."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def test_resume_drops_a_line_cut_short_and_keeps_other_stages(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 9}\n{"stage": "b", "step": 9}\n{"stage": "b", "st')
    JsonlWriter(str(path)).resume("b", 5)
    assert path.read_text() == '{"stage": "a", "step": 9}\n'


def test_errors_of_the_thread_are_raised(tmp_path):
    class Broken(JsonlWriter):
        def scalars(self, stage, step, values):
            raise OSError("disk full")

    writer = MultiWriter([Broken(str(tmp_path / "m.jsonl"))])
    writer.scalars("a", 1, {})
    with pytest.raises(OSError, match="disk full"):
        writer.close()
