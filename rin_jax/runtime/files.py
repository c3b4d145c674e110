"""Files in folders and in buckets: what buckets do otherwise, and pictures as whole files.

A bucket has objects and no folders: nothing is made before a file is written in it, a folder is
there as long as it has a file, and a folder is moved file by file. A file is written as a whole, at
once for all who read it; nothing can be appended.
"""

import importlib.util
import io
import os
from collections.abc import Sequence
from fractions import Fraction

import fsspec
import numpy as np
from etils import epath
from PIL import Image

from rin_jax import ConfigError

# gcsfs lists a folder once and for all; other processes and TensorStore write there too
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False

PACE, REST = 80, 1500  # milliseconds that a picture is seen, and the last one of a GIF


def is_bucket(path: epath.PathLike) -> bool:
    """Whether a path is the address of a bucket or of something in it."""
    return "://" in os.fspath(path)


def check_address(name: str, path: str) -> None:
    """ConfigError: `path`, the value of a flag or field, is in a bucket that cannot be used."""
    scheme = path.partition("://")[0]
    if not is_bucket(path):
        return
    if scheme != "gs":
        raise ConfigError(
            f"{name} is {path}, but Orbax saves checkpoints in folders and in buckets of Google "
            f"Cloud Storage (gs://...), not in {scheme}://; mount the bucket as a folder."
        )
    missing = [x for x in ("gcsfs", "google.cloud.storage") if not _installed(x)]
    if missing:
        raise ConfigError(
            f"{name} is {path}, but {' and '.join(missing)} cannot be imported; install the extra "
            "gcs: pip install -e '.[gcs]'."
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package that it is in
        return False


def move(source: epath.Path, target: epath.Path) -> None:
    """Moves a folder with all that is in it; the folders above `target` are made.

    In a bucket a move that was interrupted leaves some files here and some there.
    """
    if is_bucket(source):
        system, path = fsspec.core.url_to_fs(os.fspath(source))
        system.mv(path, os.fspath(target), recursive=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def write_whole(path: epath.PathLike, content: bytes) -> None:
    """Writes a file that is there as a whole or not at all; its folder exists."""
    path = epath.Path(path)
    if is_bucket(path):  # where every file is written so
        path.write_bytes(content)
    else:
        draft = path.with_name(f"{path.name}.draft")
        draft.write_bytes(content)
        draft.replace(path)


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
