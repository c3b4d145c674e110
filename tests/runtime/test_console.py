"""Progress lines, and what is kept off the terminal."""

import logging
import os
import subprocess
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
        "time/images_per_second": 20 * 10 / 5.0,  # samples are not training
        "time/input_wait_percent": 10, "time/samples_percent": 75,
        "time/step_percent": pytest.approx(15),
    }  # fmt: skip
    line = progress.line("step", "images", "loss 0.5", "wait 10 %")
    assert line == "loss 0.5  left     0:20  step  20/100     40.0 images/s  wait 10 %"
    now[0] = 30.0
    assert progress.update(30) == {"time/images_per_second": 10.0, "time/step_percent": 100}


def test_what_takes_long_is_said_before_and_after(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.doing("compiling"):
        assert capsys.readouterr().out == "compiling ...\n"
        now[0] = 62.0
    assert capsys.readouterr().out == "compiling: done in 1:02\n"
    with pytest.raises(ValueError, match="no"), console.doing("compiling"):
        raise ValueError("no")
    assert "done" not in capsys.readouterr().out


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


def test_only_errors_of_libraries_are_logged(caplog, monkeypatch):
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "propagate", True)
    console.silence_libraries()
    assert not logging.getLogger("fsspec").isEnabledFor(logging.INFO)
    assert logging.getLogger("gcsfs.core").isEnabledFor(logging.WARNING)
    for level in (logging.WARNING, logging.ERROR):
        for path in ("/site-packages/orbax/a.py", console.__file__):
            logger.handle(logging.LogRecord("absl", level, path, 1, path[-4:], (), None))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "e.py"), ("ERROR", "a.py"), ("ERROR", "e.py"),
    ]  # fmt: skip


def test_jax_warns_and_does_not_chat(caplog, monkeypatch):
    for name in ("absl", "jax"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    caplog.set_level(logging.INFO)
    console.silence_libraries()
    logging.getLogger("jax._src.xla_bridge").info("Unable to initialize backend 'tpu'")
    logging.getLogger("jax._src.xla_bridge").warning("An NVIDIA GPU may be present")
    assert [record.getMessage()[:9] for record in caplog.records] == ["An NVIDIA"]


def test_jax_starts_without_a_word(root):
    """Where there is no accelerator, though the TPU's library is installed."""
    pytest.importorskip("libtpu")
    environment = {name: x for name, x in os.environ.items() if name != "JAX_PLATFORMS"}
    result = subprocess.run(
        [sys.executable, "-c", "import rin_jax, jax; print(jax.devices()[0].platform)"],
        cwd=root, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if result.stdout == "cpu\n":
        assert not result.stderr
