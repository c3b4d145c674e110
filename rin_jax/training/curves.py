"""The curves of a run: metrics.jsonl, TensorBoard events and the pictures beside them.

Only process 0 writes. Event files are read by TensorBoard; metrics.jsonl has one JSON object a
line with the step first.

Nothing can be appended in a bucket. There the lines wait in memory and the events in a local folder
until they are written, before each save of a checkpoint and every few minutes: metrics.jsonl anew
as a whole, the events as one more event file. A run that resumes takes back what came after its
checkpoint anyway, so that a kill loses no curve.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from etils import epath

from rin_jax.runtime import console, files
from rin_jax.runtime.files import encode_gif, write_png

INTERVAL = 300.0  # seconds after which what waits is written to a bucket


class Writer:
    """Writes scalars and images of a run; entries after `resumed_step` are taken back first."""

    def __init__(self, workdir: str, resumed_step: int, active: bool):
        self._active = active
        if not active:
            return
        self._workdir = epath.Path(workdir)
        self._metrics = self._workdir / "metrics.jsonl"
        found = self._metrics.read_text().splitlines() if self._metrics.exists() else []
        self._lines = [line for line in found if _step(line) <= resumed_step]
        if found:
            self._write_lines()
        self._waits = files.is_bucket(workdir)
        self._folder = tempfile.TemporaryDirectory() if self._waits else None
        self._written, self._parts, self._resumed = time.monotonic(), 0, resumed_step
        self._open_events = None if self._waits else self._new_events()

    def _write_lines(self) -> None:
        text = "".join(f"{line}\n" for line in self._lines)
        if files.is_bucket(self._metrics):
            self._metrics.write_text(text)
            return
        draft = self._workdir / "metrics.draft"  # a run that is killed here loses no curve
        draft.write_text(text)
        draft.replace(self._metrics)

    def _new_events(self):
        import tensorboardX  # imports PyTorch where that is installed: 200 MB in every other job

        self._parts += 1
        return tensorboardX.SummaryWriter(
            self._folder.name if self._folder else str(self._workdir / "events"),
            purge_step=self._resumed + 1 if self._parts == 1 else None,
            flush_secs=10,
            # event files are named by the second and read in order
            filename_suffix=f".{self._resumed:08d}.{self._parts:06d}" if self._folder else "",
        )

    @property
    def _events(self):
        if self._open_events is None:
            self._open_events = self._new_events()
        return self._open_events

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point of each curve."""
        if not self._active:
            return
        line = json.dumps({"step": step, **values})
        if self._waits:
            self._lines.append(line)
        else:
            with self._metrics.open("a") as file:
                file.write(f"{line}\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if time.monotonic() - self._written > INTERVAL:
            self.write()

    def write(self) -> None:
        """Writes what waits to be written to a bucket; what fails is tried again the next time."""
        if not (self._active and self._waits):
            return
        self._written = time.monotonic()
        try:
            self._write_to_bucket()
        except Exception as error:  # gcsfs has several classes that are not OSError
            console.say(f"the curves are not written yet: {type(error).__name__}: {error}")

    def _write_to_bucket(self) -> None:
        self._write_lines()
        if self._open_events is not None:
            self._open_events.close()
            self._open_events = None
        for part in sorted(Path(self._folder.name).iterdir()):
            (self._workdir / "events" / part.name).write_bytes(part.read_bytes())
            part.unlink()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A uint8 image [H, W, C] as WORKDIR/NAME/STEP.png and in the event file."""
        if not self._active:
            return
        write_png(image_path(self._workdir, name, step), image)
        self._events.add_image(name, image, step, dataformats="HWC")

    def moving(self, step: int, name: str, pictures: Sequence[np.ndarray]) -> None:
        """uint8 pictures [H, W, C] as WORKDIR/NAME/STEP.gif and, moving, in the event file."""
        if not self._active:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        path = image_path(self._workdir, name, step).with_suffix(".gif")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded := encode_gif(pictures))
        height, width, channels = pictures[0].shape
        image = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=encoded
        )  # add_video needs moviepy
        value = Summary.Value(tag=f"{name}/moving", image=image)
        self._events.file_writer.add_summary(Summary(value=[value]), step)

    def lacks(self, step: int, name: str) -> bool:
        """Whether the image of a step is not there; False where nothing is written."""
        return self._active and not image_path(self._workdir, name, step).exists()

    def close(self) -> None:
        """Writes all that is not written yet."""
        if not self._active:
            return
        if self._waits:
            self._write_to_bucket()
            self._folder.cleanup()
        else:
            self._events.close()


def last_step(workdir: epath.Path, prefix: str) -> int | None:
    """The last step for which metrics.jsonl has a figure of that prefix."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [_step(line) for line in lines if f'"{prefix}' in line]
    return max((step for step in steps if step < float("inf")), default=None)


def image_path(workdir: epath.Path, name: str, step: int) -> epath.Path:
    """Where `Writer.image` puts an image."""
    return workdir / name / f"{step:08d}.png"


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite if the line was cut off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
