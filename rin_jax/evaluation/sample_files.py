"""Samples that some model left as image files in a folder."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from rin_jax import ConfigError

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MODES = {1: "L", 3: "RGB"}  # of Pillow, by channels


def find(folder: str, image_size: int, channels: int) -> list[epath.Path]:
    """The images of a folder and its folders, sorted by path; two at least.

    Raises ConfigError: there is no folder; there are fewer; one of them is not an image of
    `image_size` squared with so many channels (a look at every header).
    """
    root = epath.Path(folder)
    if not root.is_dir():
        raise ConfigError(
            f"--samples is {folder}, but there is no such folder; name the one that has the images."
        )
    paths = [x for x in _files(root) if x.suffix.lower() in KINDS and not x.name.startswith("._")]
    if len(paths) < 2:
        raise ConfigError(f"--samples={folder} has {len(paths)} images; it needs two at least.")
    for path in paths:
        _open(path, image_size, channels).close()
    return paths


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below a folder, in order."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _open(path: epath.Path, image_size: int, channels: int) -> Image.Image:
    try:
        image = Image.open(path.open("rb"))
    except OSError as error:
        raise ConfigError(f"{path} is not an image, or damaged: {error}.") from error
    if image.size != (image_size, image_size) or image.mode != MODES[channels]:
        width, height = image.size
        raise ConfigError(
            f"{path} is {height} x {width} {image.mode}, and the real images are {image_size} x "
            f"{image_size} {MODES[channels]}; samples are measured at the size they were made at: "
            "set data.image_size and data.channels, or leave this file out."
        )
    return image


def read(path: epath.Path, image_size: int, channels: int) -> np.ndarray:
    """uint8 [S, S, C]. Raises ConfigError as `find`, or if the pixels are damaged."""
    try:
        pixels = np.asarray(_open(path, image_size, channels))
    except OSError as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error
    return pixels.reshape(image_size, image_size, channels)


def fingerprint(paths: Sequence[epath.Path]) -> str:
    """Equal for equal files, as far as names and sizes tell."""
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.name} {path.stat().length}\n".encode())
    return found.hexdigest()
