"""Reading again: what may pass is tried again and named, what stays broken is no user's mistake."""

import errno
import json
import os
import shutil
import time

import jax
import pytest
from orbax.checkpoint import v1 as ocp

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints, restore
from rin_jax.checkpointing.checkpoints import Checkpoints, folder
from rin_jax.jobs import train
from rin_jax.runtime import retries
from rin_jax.runtime.retries import ReadError
from tests import tiny

WANTED = {"params": {"w": jax.ShapeDtypeStruct((3,), "float32")}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(retries, "PAUSES", (0.01, 0.03))


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def wrapped(error: Exception) -> Exception:
    """As Orbax does."""
    outer = ValueError("incompatible handler")
    outer.__cause__ = error
    return outer


class AnswerError(Exception):
    """As clients of buckets have it."""

    __module__ = "gcsfs.retry"


PASSING = [
    *map(os_error, (errno.EIO, errno.ESTALE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EMFILE)),
    TimeoutError(), ConnectionError(), AnswerError("503"), ValueError("UNAVAILABLE: no route"),
    wrapped(ValueError("DEADLINE_EXCEEDED: 30 s")), wrapped(wrapped(os_error(errno.EIO))),
]  # fmt: skip
LASTING = [
    *map(os_error, (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC,
                    errno.EROFS, errno.EEXIST)),
    FileNotFoundError("gs://b/a"), ValueError("DATA_LOSS: crc"), ValueError("NOT_FOUND: a"),
    KeyError("a"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "start"), wrapped(KeyError("a")),
]  # fmt: skip


def failing(error: Exception, times: int):
    """A function that fails so often and then gives 7; the moments of its calls."""
    calls = []

    def attempt():
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error
        return 7

    return attempt, calls


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again_after_growing_pauses(error, caplog):
    attempt, calls = failing(error, 2)
    assert retries.read(lambda: "shard 3", attempt) == 7
    assert calls[1] - calls[0] > 0.01
    assert calls[2] - calls[1] > 0.03
    assert [record.getMessage()[:14] for record in caplog.records] == [
        "shard 3, try 1", "shard 3, try 2",
    ]  # fmt: skip


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_will_not_pass_comes_at_once_as_it_is(error):
    attempt, calls = failing(error, 9)
    with pytest.raises(type(error)) as raised:
        retries.read(lambda: "shard 3", attempt)
    assert raised.value is error
    assert len(calls) == 1


def test_what_stays_broken_is_named_and_is_not_a_mistake_of_the_user():
    attempt, calls = failing(os_error(errno.EIO), 9)
    with pytest.raises(ReadError, match=r"shard 3 cannot be read, after 3 tries: .*error; then"):
        retries.read(lambda: "shard 3", attempt, remedy="; then")
    assert len(calls) == 3
    assert not issubclass(ReadError, ConfigError)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder(str(workdir))) as saver:
        for step in (1, 2):
            saver.save(step, {"params": {"w": jax.numpy.full(3, 1.0 * step)}}, {"emas": []})
    return workdir


def flaky(monkeypatch, error: Exception, times: int) -> None:
    """The next reads of a checkpoint's arrays fail."""
    left, load = [None] * times, ocp.load_checkpointables

    def fails(*args):
        if left:
            left.pop()
            raise wrapped(error)
        return load(*args)

    monkeypatch.setattr(ocp, "load_checkpointables", fails)


def test_a_checkpoint_that_was_out_of_reach_for_a_moment_is_read(saved, monkeypatch):
    flaky(monkeypatch, ValueError("UNAVAILABLE: 503"), 2)
    found, _ = restore.find(str(saved))
    newest, items, damaged = restore.load_newest(found, WANTED, saved)
    assert (newest.step, damaged) == (2, {})
    assert items["params"]["w"].tolist() == [2, 2, 2]


def test_a_checkpoint_out_of_reach_is_not_taken_for_a_damaged_one(saved, monkeypatch):
    """Else the run would go on from an older one, or end for good."""
    flaky(monkeypatch, ValueError("UNAVAILABLE: 503"), 9)
    found, _ = restore.find(str(saved))
    with pytest.raises(ReadError, match=r"checkpoints/2 cannot be read"):
        restore.load_newest(found, WANTED, saved)


def test_metadata_out_of_reach_is_not_taken_for_damage(saved, monkeypatch):
    attempt, _ = failing(os_error(errno.EIO), 99)
    monkeypatch.setattr(type(folder(str(saved))), "read_bytes", lambda path: attempt())
    with pytest.raises(ReadError, match="2/_CHECKPOINT_METADATA cannot be read"):
        checkpoints.find(folder(str(saved)))


def test_the_reason_of_damage_is_the_innermost_one(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "run")
    for path in (workdir / "checkpoints" / "2" / "params").rglob("d/*"):
        path.write_bytes(b"")
    found, _ = restore.find(str(workdir))
    newest, _, damaged = restore.load_newest(found, WANTED, workdir)
    assert newest.step == 1
    assert "handler" not in damaged[2]


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.EROFS, ConfigError)])
def test_a_workdir_that_cannot_be_written_may_be_so_for_a_moment(
    tmp_path, monkeypatch, number, kind
):
    def fails(*args):
        raise os_error(number)

    monkeypatch.setattr(json, "dumps", fails)
    with pytest.raises(kind) as error, train.open_workdir(tiny.experiment(), str(tmp_path)):
        pass
    assert isinstance(error.value, ConfigError) == (kind is ConfigError)
