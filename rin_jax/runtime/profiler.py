"""A trace of a few steps of training, for the profiler of TensorBoard.

Each process records its own devices and threads and leaves, when the last of the steps is done,

    WORKDIR/events/plugins/profile/STEP/PROCESS.xplane.pb

The profiler writes a local folder, of which this is a copy, so that a workdir may be in a bucket.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from rin_jax.runtime import console
from rin_jax.runtime.machine import Runtime


class Profiler:
    """Records the steps that the section `runtime` names, if the run takes them."""

    def __init__(self, options: Runtime, workdir: str):
        self._first, self._workdir = options.profile_first_step, workdir
        self._last = (self._first or 0) + options.profile_num_steps - 1
        self._local: tempfile.TemporaryDirectory | None = None

    def step(self, number: int, take: Callable, *arguments: Any) -> Any:
        """What take(*arguments), the step of that number, returns."""
        if number == self._first:
            self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name)
        if self._local is None:
            return take(*arguments)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            result = take(*arguments)
        if number == self._last:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Writes what is recorded and not written yet, as in a run that ends before the last."""
        if self._local is None:
            return
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        with local:
            folder = epath.Path(self._workdir) / "events" / "plugins" / "profile"
            folder = folder / f"{self._first:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{jax.process_index()}.xplane.pb"
            found = next(Path(local.name).rglob("*.xplane.pb"))
            (folder / name).write_bytes(found.read_bytes())
        console.say(f"the trace of steps {self._first} to {self._last} is in {os.fspath(folder)}")
