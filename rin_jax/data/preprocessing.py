"""Pixels of one image or clip: decoding, the square, antialiased resizes, encoding.

Owns the rule by which an image of any kind and size becomes a training image: the largest central
square, then a bicubic resize (Keys' kernel, a = -1/2, widened when shrinking) in floating point,
rounded once. Frames of a clip are resized by area instead. Source of both rules: the authors'
released code (`crop="center"`). What is not square can also be padded.
"""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps

from rin_jax import ConfigError

_JPEG = b"\xff\xd8"
_READ = {  # (grey, divisor of the size) -> how OpenCV decodes
    (False, 1): cv2.IMREAD_COLOR, (True, 1): cv2.IMREAD_GRAYSCALE,
    (False, 2): cv2.IMREAD_REDUCED_COLOR_2, (True, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (False, 4): cv2.IMREAD_REDUCED_COLOR_4, (True, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (False, 8): cv2.IMREAD_REDUCED_COLOR_8, (True, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
}  # fmt: skip
ENCODINGS = {  # how a prepared image is stored, and Pillow's options
    # filtered but not compressed, since ArrayRecord does that: faster, and of the same size
    "png": {"compress_level": 0},
    "jpeg": {"quality": 95, "subsampling": 0},  # all pixels of the colours, too
}
WHITE = 255  # behind transparent parts, and beside an image that is padded
cv2.setNumThreads(1)  # the pipeline has its own threads


def preprocess(
    image: np.ndarray, image_size: int, channels: int, fit: str = "crop"
) -> np.ndarray:
    """A square by one of FITS, antialiased resize, grey repeated if colour is wanted.

    uint8 [H, W, 1 or 3] becomes [S, S, channels], and a clip [T, H, W, 1 or 3] [T, S, S, channels],
    which may share its memory: what is of that size already is not resized. Raises ConfigError as
    `check_channels`.
    """
    check_channels(image.shape[-1], channels)
    image = FITS[fit](image)
    if image.shape[-2] != image_size:
        resize = resize_bicubic if image.ndim == 3 else resize_area
        image = np.rint(resize(image, image_size).clip(0, 255)).astype(np.uint8)
    return np.repeat(image, channels, axis=-1) if image.shape[-1] < channels else image


def check_channels(stored: int, channels: int) -> None:
    """Raises ConfigError if images stored with so many channels cannot be read as `channels`."""
    if (stored, channels) not in ((1, 1), (1, 3), (3, 3)):
        raise ConfigError(
            f"data.channels={channels} does not suit images stored with {stored}: grey (1) is read "
            "as 1 or 3, colour (3) as 3 only; set data.channels to one of these or choose another "
            "data.name"
        )


def centre_square(images: np.ndarray) -> np.ndarray:
    """The largest central square of [..., H, W, C], as a view; an odd rest is cut at the end."""
    height, width = images.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side, :]


def padded_square(images: np.ndarray) -> np.ndarray:
    """[..., H, W, C] in the middle of the smallest white square that has them whole, uint8."""
    height, width = images.shape[-3:-1]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((*images.shape[:-3], side, side, images.shape[-1]), WHITE, np.uint8)
    square[..., top : top + height, left : left + width, :] = images
    return square


FITS = {"crop": centre_square, "pad": padded_square}  # how an image becomes a square


def resize_bicubic(image: np.ndarray, image_size: int) -> np.ndarray:
    """Antialiased bicubic resize of [H, W, C] to float32 [S, S, C], which may leave its range."""
    size, kernel = (image_size, image_size), Image.Resampling.BICUBIC
    planes = [Image.fromarray(plane) for plane in np.moveaxis(image.astype(np.float32), -1, 0)]
    return np.stack([np.asarray(plane.resize(size, kernel)) for plane in planes], axis=-1)


def resize_area(images: np.ndarray, image_size: int) -> np.ndarray:
    """Means over equal areas: [..., H, W, C] to float32 [..., S, S, C], the rule for video."""
    *leading, height, width, channels = images.shape
    resize = _enlarge_area if min(height, width) < image_size else _shrink_area
    frames = images.reshape(-1, height, width, channels)
    resized = [resize(frame.astype(np.float32), image_size) for frame in frames]
    return np.reshape(resized, (*leading, image_size, image_size, channels))


def _shrink_area(frame: np.ndarray, image_size: int) -> np.ndarray:
    return cv2.resize(frame, (image_size, image_size), interpolation=cv2.INTER_AREA)


def _enlarge_area(frame: np.ndarray, image_size: int) -> np.ndarray:
    """The same rule where OpenCV would interpolate; it is slower."""

    def weights(size: int) -> np.ndarray:
        """[S, size]: the share of pixel i in cell j of the result."""
        edges = np.arange(image_size + 1) * size / image_size
        pixel = np.arange(size)
        overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
        return (overlap.clip(0) * image_size / size).astype(np.float32)

    height, width = frame.shape[:2]
    return np.einsum("sh,tw,hwc->stc", weights(height), weights(width), frame, optimize=True)


def decode(encoded: bytes, channels: int | None, image_size: int | None = None) -> np.ndarray:
    """Decodes an image of TFDS into uint8 [H, W, C], with the declared number of channels.

    With `image_size`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as that leaves
    at least twice image_size: a third of the work, and close to the same training image. ValueError
    if it is not an image or is damaged.
    """
    grey, reduction = channels == 1, 1
    if image_size is not None and encoded.startswith(_JPEG):
        with Image.open(io.BytesIO(encoded)) as header:
            side = min(header.size)
        reduction = next(r for r in (8, 4, 2, 1) if r == 1 or side // r >= 2 * image_size)
    flags = _READ[grey, reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    if channels is None:
        flags = cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:
        raise ValueError("it is not an image, or it is damaged")
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[-1] == 4:  # not declared, and refused by `preprocess`
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def read_any(file, channels: int) -> np.ndarray:
    """Reads an image file (a path, or open) of a user into uint8 [H, W, 1 or 3], upright.

    Turned as EXIF says; 16 bits scaled to 8; transparent parts on white; palette, CMYK and other
    colours as RGB; colour to grey by luma (ITU-R 601), grey repeated; an animation's first frame.

    Raises:
      OSError: it is not an image or is damaged.
      ValueError: its pixels have no known scale (floating point, 32-bit integers).
    """
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
        pixels = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.rint(pixels * (255 / 65535)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known scale; save it as 8 bits")
    return flatten(image, channels)


def flatten(image: Image.Image, channels: int) -> np.ndarray:
    """An 8-bit image of any mode as uint8 [H, W, 1 or 3], transparent parts on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (WHITE,) * 4)
        image = Image.alpha_composite(white, image)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def encode(image: np.ndarray, encoding: str = "png") -> bytes:
    """A uint8 image [H, W, 1 or 3] in one of ENCODINGS."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, encoding, **ENCODINGS[encoding])
    return buffer.getvalue()
