"""Frames of one clip: decoding of a video file or an animation, the temporal stride, the window.

Video is decoded by PyAV, an animated image (GIF, WebP, PNG) by Pillow. Every file is decoded from
its first frame on, because seeking misses frames in some containers. The frames are upright, RGB or
grey. Frames follow each other as they are stored, whatever their times; pixels are taken as square.
"""

import contextlib
import functools
import itertools
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence

from rin_jax import ConfigError
from rin_jax.data import preprocessing
from rin_jax.data.dataset import Clip

if TYPE_CHECKING:
    import av

ANIMATIONS = {".gif", ".webp", ".apng"}
EXTENSIONS = ANIMATIONS | {
    ".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts",
    ".m2ts", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".mjpeg", ".y4m",
}  # fmt: skip
Pixels = Callable[[], np.ndarray]  # gives uint8 [H, W, C] of one frame, while it is the latest


class ClipError(ValueError):
    """What is wrong with one file."""


def require_pyav() -> None:
    """Raises ConfigError, with the remedy, where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'data.clip is set, and reading clips needs PyAV: pip install "rin-jax[video]"'
        ) from error


def decode(path: pathlib.Path, name: str, clip: Clip, channels: int) -> np.ndarray:
    """Every `clip.stride`-th frame of a window of a file: uint8 [clip.frames, H, W, channels].

    The window is the first, or one of all that fit, drawn by `name` and by nothing else. Decoding
    stops behind it: what comes later in the file may be damaged.

    Raises:
      ClipError: it is not a video, is damaged, has no pictures, changes its size, is too short or
        needs a codec that PyAV lacks.
    """
    try:
        frames = _window(path, name, clip, channels)
    except ClipError:
        raise
    except Exception as error:  # whatever a decoder may raise
        raise ClipError(f"it is not a video, or it is damaged: {error}") from error
    if len({frame.shape for frame in frames}) > 1:
        raise ClipError("the size of its frames changes")
    return np.stack(frames)


def _window(path: pathlib.Path, name: str, clip: Clip, channels: int) -> list[np.ndarray]:
    read = functools.partial(_animation if _is_animation(path) else _video, path, channels)
    span = (clip.frames - 1) * clip.stride + 1
    rng = np.random.default_rng(zlib.crc32(name.encode()))

    def take(start: int) -> list[np.ndarray]:
        with contextlib.closing(read()) as frames:
            chosen = itertools.islice(frames, start, start + span, clip.stride)
            return [pixels() for pixels in chosen]

    # What is counted without decoding is an upper bound. A start that turns out to be too late is
    # drawn again from those that fit, so that all of them stay equally probable.
    fitting = 1 if clip.window == "first" else max(_count(path) - span, 0) + 1
    frames = take(int(rng.integers(fitting)))
    if len(frames) < clip.frames:
        with contextlib.closing(read()) as every:
            count = sum(1 for _ in every)
        if count < span:
            needed = f"needs {span} = ({clip.frames} - 1) x {clip.stride} + 1"
            raise ClipError(f"it has {count} frames and {needed}")
        frames = take(int(rng.integers(count - span + 1)))
    return frames


def _is_animation(path: pathlib.Path) -> bool:
    return path.suffix.lower() in ANIMATIONS


def _count(path: pathlib.Path) -> int:
    """The frames of an animation, or the packets of a video, of which none has two frames."""
    if _is_animation(path):
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    with _open(path) as container:
        return sum(packet.size > 0 for packet in container.demux(_stream(container)))


def _animation(path: pathlib.Path, channels: int) -> Iterator[Pixels]:
    """The frames of an animated image, transparent parts on white as those of images."""
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            yield functools.partial(preprocessing.flatten, frame, channels)


def _video(path: pathlib.Path, channels: int) -> Iterator[Pixels]:
    """The frames of a video up to the first that the decoder finds damaged, which is an error."""
    with _open(path) as container:
        stream = _stream(container)
        stream.codec_context.thread_count = 1  # several files are decoded at a time
        # without this some decoders leave out frames or make them up
        stream.codec_context.options = {"err_detect": "explode"}
        for packet in container.demux(stream):
            frames = packet.decode()
            if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
                raise ClipError("it is damaged")
            for frame in frames:
                yield functools.partial(_pixels, frame, channels)


def _pixels(frame: "av.VideoFrame", channels: int) -> np.ndarray:
    """uint8 [H, W, channels], turned as the camera was."""
    image = frame.to_ndarray(format="gray" if channels == 1 else "rgb24", threads=1)
    image = np.rot90(image, round(frame.rotation / 90))
    return image.reshape(*image.shape[:2], channels)


def _open(path: pathlib.Path) -> "av.container.InputContainer":
    import av  # here, because it is an extra

    # an absolute path is never taken for a URL
    return av.open(str(path.absolute()), metadata_errors="ignore")


def _stream(container: "av.container.InputContainer") -> "av.VideoStream":
    """The first video that is not the picture on a cover; ClipError if it cannot be decoded."""
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise ClipError("it has sound only" if container.streams.audio else "it has no pictures")
    if streams[0].codec_context is None:
        av.logging.set_level(av.logging.INFO)  # else the next line gives nothing
        codec = re.search(r"Video: ([^,\n]*)", container.dumps_format())
        av.logging.set_level(None)
        raise ClipError(f"PyAV lacks its codec, {codec[1] if codec else 'which has no name'}")
    return streams[0]
