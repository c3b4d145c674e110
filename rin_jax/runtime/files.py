"""Pictures of a run, still and moving, as whole files on any file system, buckets too."""

import importlib.util
import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from etils import epath
from PIL import Image

PACE, REST = 80, 1500  # milliseconds that a picture is seen, and the last one of a GIF


def write_png(path: epath.Path, image: np.ndarray) -> None:
    """A uint8 image [H, W, 1 or 3] as PNG, on any file system."""
    buffer = io.BytesIO()
    _as_pillow(image).save(buffer, "PNG")
    _write(path, buffer)


def encode_gif(pictures: Sequence[np.ndarray]) -> bytes:
    """uint8 pictures [H, W, 1 or 3] as a GIF that rests on the last one and starts again."""
    first, *others = map(_as_pillow, pictures)
    durations, buffer = [PACE] * len(others) + [REST], io.BytesIO()
    first.save(buffer, "GIF", save_all=True, loop=0, append_images=others, duration=durations)
    return buffer.getvalue()


def write_gif(path: epath.Path, pictures: Sequence[np.ndarray]) -> None:
    """A file as `encode_gif`."""
    _write(path, io.BytesIO(encode_gif(pictures)))


def can_write_mp4() -> bool:
    """Whether PyAV is installed, the extra `video`."""
    return importlib.util.find_spec("av") is not None


def write_mp4(path: epath.Path, pictures: np.ndarray) -> None:
    """uint8 pictures [T, H, W, 3] as H.264, a row or column repeated where their number is odd."""
    import av

    height, width = (side + side % 2 for side in pictures.shape[1:3])
    padding = height - pictures.shape[1], width - pictures.shape[2]
    pictures = np.pad(pictures, ((0, 0), *((0, more) for more in padding), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000, PACE))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    _write(path, buffer)


def _as_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _write(path: epath.Path, buffer: io.BytesIO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
