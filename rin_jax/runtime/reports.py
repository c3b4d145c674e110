"""What a run leaves for a person: log lines, metrics.jsonl, TensorBoard events, image grids.

Only process 0 writes. Event files are read by TensorBoard; metrics.jsonl has one JSON object a
line with the step first.
"""

import collections
import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from PIL import Image, ImageDraw


class Writer:
    """Writes scalars and images of a run; entries after `resumed_step` are taken back first."""

    def __init__(self, workdir: str, resumed_step: int, active: bool):
        self._active = active
        if not active:
            return
        import tensorboardX  # imports PyTorch where that is installed: 200 MB in every other job

        self._workdir = epath.Path(workdir)
        self._metrics = self._workdir / "metrics.jsonl"
        if self._metrics.exists():
            lines = self._metrics.read_text().splitlines()
            draft = self._workdir / "metrics.draft"  # a run that is killed here loses no curve
            draft.write_text("".join(f"{x}\n" for x in lines if _step(x) <= resumed_step))
            draft.replace(self._metrics)
        self._events = tensorboardX.SummaryWriter(
            str(self._workdir / "events"), purge_step=resumed_step + 1, flush_secs=10
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point of each curve."""
        if not self._active:
            return
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A uint8 image [H, W, C] as WORKDIR/NAME/STEP.png and in the event file."""
        if not self._active:
            return
        write_png(image_path(self._workdir, name, step), image)
        self._events.add_image(name, image, step, dataformats="HWC")

    def lacks(self, step: int, name: str) -> bool:
        """Whether the image of a step is not there; False where nothing is written."""
        return self._active and not image_path(self._workdir, name, step).exists()

    def close(self) -> None:
        """Flushes the event file."""
        if self._active:
            self._events.close()


def image_path(workdir: epath.Path, name: str, step: int) -> epath.Path:
    """Where `Writer.image` puts an image."""
    return workdir / name / f"{step:08d}.png"


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite if the line was cut off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def write_png(path: epath.Path, image: np.ndarray) -> None:
    """A uint8 image [H, W, 1 or 3] as PNG, on any file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def grid(images: np.ndarray, columns: int, smallest: int = 48) -> np.ndarray:
    """uint8 images [B, H, W, C] row by row as one picture with white gaps.

    Small images are enlarged by whole factors until their side is at least `smallest`.
    """
    images = _enlarge(images, smallest)
    batch, height, width, channels = images.shape
    gap, rows = 2, -(-batch // columns)
    canvas = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top = (i // columns) * (height + gap) + gap
        left = (i % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = image
    return canvas


def _enlarge(images: np.ndarray, smallest: int) -> np.ndarray:
    """Images [B, H, W, C] by the whole factor that makes them at least `smallest` high."""
    factor = max(1, -(-smallest // images.shape[1]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def captioned_grid(images: np.ndarray, captions: Sequence[str], columns: int) -> np.ndarray:
    """uint8 images [B, H, W, C] as `grid`, in colour, with a line of text below each."""
    images = _enlarge(images, 96)
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    width, line = images.shape[2], 14
    strips = [_text(caption[: width // 6], width, line) for caption in captions]
    return grid(np.concatenate([images, np.stack(strips)], axis=1), columns)


def histogram(counts: np.ndarray, title: str) -> np.ndarray:
    """Counts [K] as bars below a title, uint8 [H, W, 3]."""
    bar = max(1, 600 // len(counts))
    height, width = 120, bar * len(counts)
    filled = np.rint(height * counts / max(counts.max(), 1)).astype(int).repeat(bar)
    bars = np.where(np.arange(height, 0, -1)[:, None] <= filled, np.uint8(90), np.uint8(235))
    if bar > 2:
        bars[:, ::bar] = 255  # a gap between classes
    text = _text(f"{title}; most {counts.max()}, fewest {counts.min()}", max(width, 480), 16)
    return stack(text, np.repeat(bars[..., None], 3, axis=-1))


def stack(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """One picture above another, uint8 [H, W, 3], the narrower one filled up with white."""
    width = max(upper.shape[1], lower.shape[1])
    fill = [((0, 0), (0, width - image.shape[1]), (0, 0)) for image in (upper, lower)]
    padded = [
        np.pad(image, pad, constant_values=255)
        for image, pad in zip((upper, lower), fill, strict=True)
    ]
    return np.concatenate(padded)


def _text(text: str, width: int, height: int) -> np.ndarray:
    """Black text on white, uint8 [height, width, 3]."""
    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((2, 1), text, fill="black")
    return np.asarray(strip)


class Progress:
    """Rates, per cent done, time left and where the time went, of a run of `num_steps`.

    Time is split into "step", the default, and whatever `spending` names. Rates count "step" and
    the parts in TRAINING.
    """

    TRAINING = ("step", "input_wait")

    def __init__(self, first_step: int, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._step, self._rate = first_step, 0.0
        self._since = time.monotonic()
        self._spent: collections.Counter = collections.Counter()

    @contextlib.contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Counts what happens inside as time for `part`."""
        since = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - since

    def update(self, step: int) -> dict[str, float]:
        """Figures of the time since the last update, which ended at an earlier step.

        Returns:
          images_per_second, and the share of the time of each part that took any, in [0, 1], as
          time_PART.
        """
        now = time.monotonic()
        spent, self._spent = self._spent, collections.Counter()
        total = max(now - self._since, 1e-9)
        spent["step"] = total - spent.total()
        training = max(sum(spent[part] for part in self.TRAINING), 1e-9)
        self._rate = (step - self._step) / training
        self._step, self._since = step, now
        shares = {f"time_{part}": seconds / total for part, seconds in sorted(spent.items())}
        return {"images_per_second": self._rate * self._batch_size, **shares}

    def line(self, values: Mapping[str, float]) -> str:
        """The progress line after an update."""
        left = (self._num_steps - self._step) / max(self._rate, 1e-9)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        done = 100 * self._step / self._num_steps
        return (
            f"step {self._step}/{self._num_steps} ({done:.1f} %)  {text}  "
            f"{duration(left)} left"
        )


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def say(text: str) -> None:
    """Text for the person at the terminal, from process 0 alone."""
    if jax.process_index() == 0:
        print(text, flush=True)
