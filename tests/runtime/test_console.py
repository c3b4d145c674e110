"""Progress lines, and what is kept off the terminal."""

import logging
import sys
import types

import pytest

from rin_jax.runtime import console


def test_duration():
    assert [console.duration(s) for s in (0, 59.6, 61, 3600, 36061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_progress_says_where_the_time_went(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    progress = console.Progress(0, 100, batch_size=10)
    with progress.spending("input_wait"):
        now[0] = 2.0
    now[0] = 5.0
    with progress.spending("samples"):
        now[0] = 20.0
    figures = progress.update(20)
    assert figures == {
        "images_per_second": 20 * 10 / 5.0,  # samples are not training
        "time_input_wait": 0.1, "time_samples": 0.75, "time_step": pytest.approx(0.15),
    }  # fmt: skip
    assert progress.line({"loss": 0.5}) == "step 20/100 (20.0 %)  loss 0.5  0:20 left"
    now[0] = 30.0
    assert progress.update(30) == {"images_per_second": 10.0, "time_step": 1.0}


def test_of_what_nobody_can_catch_only_the_rest_of_failed_loads_is_kept_off(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: seen.append(str(failed.exc_value)))
    monkeypatch.setattr(logging.getLogger("asyncio"), "level", logging.NOTSET)
    console.silence_failed_loads()
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text), object=None))
    assert seen == ["another"]


def test_a_read_that_is_given_up_leaves_no_traceback(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: seen.append(str(failed.exc_value)))

    @types.coroutine
    def wait():
        yield

    async def read():
        try:
            await wait()
        except BaseException as error:
            raise RuntimeError("while reading") from error

    def give_up():
        reading = read()
        reading.send(None)
        del reading

    give_up()
    assert seen == ["while reading"]
    console.silence_failed_loads()
    give_up()
    assert seen == ["while reading"]
