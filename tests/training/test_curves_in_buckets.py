"""Curves in a bucket, where nothing can be appended: complete, in few requests, whatever fails."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rin_jax.training import curves
from tests.storage import Fault

RUN = "gs://bucket/run"


def steps(storage) -> list[int]:
    text = storage.get("bucket", "run/metrics.jsonl").data.decode()
    assert text.endswith("\n")
    return [json.loads(line)["step"] for line in text.splitlines()]


def events(storage, folder) -> dict[int, float]:
    """The curve "loss" as TensorBoard reads it from all event files."""
    for name in storage.names("bucket", "run/events/"):
        (folder / name.rpartition("/")[2]).write_bytes(storage.get("bucket", name).data)
    read = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in read.Scalars("loss")}


def test_curves_are_as_complete_as_in_a_folder(storage, tmp_path):
    writer = curves.Writer(RUN, 0, active=True)
    for step in range(1, 9):
        writer.scalars(step, {"loss": float(step)})
        if step in (3, 6):  # saves
            writer.copy()
    assert steps(storage) == [*range(1, 7)]
    # the run is killed, and resumes from the save before
    writer = curves.Writer(RUN, 3, active=True)
    assert steps(storage) == [1, 2, 3]
    writer.scalars(4, {"loss": 40.0})
    writer.image(4, "progress", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    assert steps(storage) == [1, 2, 3, 4]
    assert events(storage, tmp_path) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}
    assert not writer.lacks(4, "progress")
    assert curves.last_step(writer._workdir, "loss") == 4


def test_requests_do_not_grow_with_the_lines(storage, monkeypatch):
    counts = []
    for lines in (1, 100):
        storage.objects.clear()
        writer = curves.Writer(RUN, 0, active=True)
        storage.requests.clear()
        for step in range(lines):
            writer.scalars(step, {"loss": 1.0})
        writer.copy()
        counts.append(len(storage.requests))
    assert counts[0] == counts[1] <= 6
    monkeypatch.setattr(curves, "INTERVAL", 0.0)
    writer.scalars(100, {"loss": 1.0})
    assert steps(storage) == [*range(101)]


@pytest.mark.parametrize("part", ["metrics.jsonl", "events/"])
def test_what_could_not_be_copied_is_copied_the_next_time(storage, tmp_path, capsys, part):
    writer = curves.Writer(RUN, 0, active=True)
    storage.faults.append(Fault("denied", f"POST .*{part}"))
    writer.scalars(1, {"loss": 1.0})
    writer.copy()
    assert "the curves are not copied yet: " in capsys.readouterr().out
    writer.scalars(2, {"loss": 2.0})
    storage.faults.clear()
    writer.close()
    assert steps(storage) == [1, 2]
    assert events(storage, tmp_path) == {1: 1.0, 2: 2.0}
