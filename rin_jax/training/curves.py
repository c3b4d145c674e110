"""The curves of a run: metrics.jsonl, TensorBoard events and the pictures beside them.

Only process 0 writes. Event files are read by TensorBoard; metrics.jsonl has one JSON object a
line with the step first, and the same names:

    train/     the loss, also by noise level and on held-out examples, and the learning rate
    norms/     of gradient, update and parameters, also by module
    time/      images per second, and per cent of the time
    samples/   pictures, and with evaluation.every_steps figures of them

Nothing can be appended in a bucket. There both are written in a local folder and copied before each
save of a checkpoint and every few minutes: metrics.jsonl as a whole, the events since the copy
before as one more event file. A run that resumes takes back what came after its checkpoint anyway,
so that a kill loses no curve.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util
from PIL import Image

from rin_jax.runtime import console, files
from rin_jax.runtime.files import encode_gif, write_png
from rin_jax.training import noise_levels

LOSS, HELD_OUT = "train/loss", "train/loss_held_out"
INTERVAL = 300.0  # seconds after which curves are copied to a bucket


class Writer:
    """Writes scalars and images of a run; entries after `resumed_step` are taken back first.

    Lines of metrics.jsonl that are not curves are dropped, which is said.
    """

    def __init__(self, workdir: str, resumed_step: int, active: bool):
        self._active = active
        if not active:
            return
        self._workdir, self._folder, self._local = epath.Path(workdir), epath.Path(workdir), None
        if files.is_bucket(workdir):
            self._local = tempfile.TemporaryDirectory()
            self._folder = epath.Path(self._local.name)
        self._metrics = self._folder / "metrics.jsonl"
        self._take_back(resumed_step)
        self._resumed, self._parts, self._copied = resumed_step, 0, time.monotonic()
        self._events = self._open_events(purge_step=resumed_step + 1)

    def _take_back(self, resumed_step: int) -> None:
        """Keeps the lines of metrics.jsonl up to a step."""
        kept = self._workdir / "metrics.jsonl"
        if not kept.exists():
            if resumed_step:
                console.say(f"{kept} is not there; it begins at step {resumed_step}")
            return
        lines = [(_step(line), line) for line in kept.read_bytes().splitlines()]
        good = [(step, line) for step, line in lines if step is not None]
        ours = b"".join(x + b"\n" for step, x in good if step <= resumed_step)
        files.write_whole(self._metrics, ours)  # a run that is killed here loses no curve
        if odd := len(lines) - len(good):
            console.say(f"{kept}: damaged lines are dropped ({odd})")
        self._copy_metrics()

    def _open_events(self, purge_step: int | None = None):
        # in a bucket there are several, which are read in the order of their names: by the second
        self._parts += 1
        suffix = f".{self._resumed:08d}.{self._parts:06d}" if self._local else ""
        return _tensorboardx().SummaryWriter(
            str(self._folder / "events"), purge_step=purge_step, flush_secs=10,
            filename_suffix=suffix,
        )  # fmt: skip

    def describe(self, step: int, config: Mapping[str, Any]) -> None:
        """The configuration as a text and as hyperparameters, and the charts with the loss first.

        `config` is the resolved one, section by section; the run starts, or resumes, at `step`.
        """
        if not self._active:
            return
        from tensorboardX.summary import hparams

        text = json.dumps(config, indent=2)
        self._events.add_text("config", f"```json\n{text}\n```", step)
        fields = traverse_util.flatten_dict(dict(config), sep=".")
        plain = (bool, int, float, str)
        fields = {name: x if isinstance(x, plain) else str(x) for name, x in fields.items()}
        for summary in hparams(fields, dict.fromkeys((LOSS, HELD_OUT))):
            self._events.file_writer.add_summary(summary, step)
        by_level = [f"{noise_levels.PREFIX}{name}" for name in noise_levels.NAMES]
        charts = {"loss": [LOSS, HELD_OUT], "loss by log-SNR": by_level}
        charts = {title: ["Multiline", names] for title, names in charts.items()}
        self._events.add_custom_scalars({"loss": charts})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point of each curve."""
        if not self._active:
            return
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if time.monotonic() - self._copied > INTERVAL:
            self.copy()

    def copy(self) -> None:
        """Copies the curves to a bucket; what fails is said, and tried again the next time."""
        if not (self._active and self._local):
            return
        self._copied = time.monotonic()
        self._events.close()
        try:
            self._copy_all()
        except Exception as error:  # gcsfs has several classes that are not OSError
            console.say(f"the curves are not copied yet: {type(error).__name__}: {error}")
        self._events = self._open_events()

    def _copy_metrics(self) -> None:
        if self._local and self._metrics.exists():
            (self._workdir / "metrics.jsonl").write_bytes(self._metrics.read_bytes())

    def _copy_all(self) -> None:
        self._copy_metrics()
        for part in sorted((self._folder / "events").iterdir()):
            (self._workdir / "events" / part.name).write_bytes(part.read_bytes())
            part.unlink()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A uint8 image [H, W, C] as WORKDIR/NAME/STEP.png and in the event file."""
        if not self._active:
            return
        write_png(image_path(self._workdir, name, step), image)
        self._events.add_image(f"samples/{name}", image, step, dataformats="HWC")

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
        value = Summary.Value(tag=f"samples/{name}_moving", image=image)
        self._events.file_writer.add_summary(Summary(value=[value]), step)

    def lacks(self, step: int, name: str) -> bool:
        """Whether the image of a step is not there, whole; False where nothing is written."""
        return self._active and not is_drawn(self._workdir, name, step)

    def close(self) -> None:
        """Writes all that is not written yet."""
        if not self._active:
            return
        self._events.close()
        if self._local:
            self._copy_all()
            self._local.cleanup()


def _tensorboardx():
    """tensorboardX without PyTorch, which it would import where that is installed, and not use."""
    hidden = () if "torch" in sys.modules else ("torch",)
    sys.modules.update(dict.fromkeys(hidden))
    try:
        import tensorboardX
    finally:
        for name in hidden:
            del sys.modules[name]
    return tensorboardX


def last_step(workdir: epath.Path, prefix: str) -> int | None:
    """The last step for which metrics.jsonl has a figure of that prefix."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    steps = [_step(line) for line in lines if f'"{prefix}'.encode() in line]
    return max((step for step in steps if step is not None), default=None)


def image_path(workdir: epath.Path, name: str, step: int) -> epath.Path:
    """Where `Writer.image` puts an image."""
    return workdir / name / f"{step:08d}.png"


def is_drawn(workdir: epath.Path, name: str, step: int) -> bool:
    """Whether the image of a step is there, whole: a run that was killed may leave half of one."""
    try:
        Image.open(io.BytesIO(image_path(workdir, name, step).read_bytes())).verify()
    except (OSError, SyntaxError, ValueError):  # what Pillow says of bytes that are not a PNG
        return False
    return True


def _step(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None if the line was cut off or is not one of curves."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None
