"""Metrics and events are on the disk when a step is written, and a disk that refuses is an error of the caller."""

import errno
import pathlib
import struct
import threading
import time
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from sspo_jax.runs.metrics_file import MetricsWriter, read_metrics
from sspo_jax.runs.trackers import Events

PROTO: Any = event_pb2  # its classes are made at run time


def events(folder: pathlib.Path) -> list[Any]:
    """What TensorBoard reads: records of length, its checksum, content, its checksum."""
    found = []
    for file in sorted(folder.iterdir()):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack("<Q", content[place : place + 8])
            found.append(PROTO.Event.FromString(content[place + 12 : place + 12 + size]))
            place += 16 + size
    return found


def test_a_step_is_on_the_disk_when_it_is_written(tmp_path: pathlib.Path):
    threads = threading.active_count()
    writer = MetricsWriter(tmp_path / "metrics.jsonl", [Events(tmp_path / "tensorboard", 3)])
    writer.write(3, {"loss/policy": 0.25, "reward/mean": float("nan")})
    assert threading.active_count() == threads
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert abs(row["time/unix_seconds"] - time.time()) < 60
    assert row.pop("time/started_unix_seconds") <= row.pop("time/unix_seconds")
    assert row == {"step": 3, "loss/policy": 0.25, "reward/mean": None}
    version, session, *scalars = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (session.step, session.session_log.status) == (3, PROTO.SessionLog.START)
    assert [(event.step, event.summary.value[0].tag) for event in scalars] == [(3, "loss/policy"), (3, "reward/mean")]
    assert scalars[0].summary.value[0].simple_value == 0.25
    writer.close()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_refuses_is_an_error_of_the_caller(tmp_path: pathlib.Path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="No space left") as raised:
        writer.write(1, {"loss/policy": 0.25})
    assert raised.value.errno == errno.ENOSPC
    writer.close()
