"""Pictures of many images: grids, captions, bars; uint8 [H, W, C] arrays."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from rin_jax.network.conditioning import NO_LABEL

ROWS, COLUMNS = 10, 10  # of a grid of samples


def grid_labels(num_classes: int) -> np.ndarray:
    """Labels int32 [100] of a grid with a row for each class; at most ten classes, evenly spaced.

    Without classes all are NO_LABEL; with fewer than ten there are fewer rows.
    """
    if not num_classes:
        return np.full(ROWS * COLUMNS, NO_LABEL, np.int32)
    classes = np.unique(np.linspace(0, num_classes - 1, min(ROWS, num_classes)).round())
    return classes.astype(np.int32).repeat(COLUMNS)


def chosen(count: int, most: int) -> np.ndarray:
    """At most `most` of 0..count-1, evenly spaced, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def grid(images: np.ndarray, columns: int, smallest: int = 48) -> np.ndarray:
    """uint8 images [B, H, W, C] row by row as one picture with white gaps.

    Small images are enlarged by whole factors until their side is at least `smallest`.
    """
    images = enlarge(images, smallest)
    batch, height, width, channels = images.shape
    gap, rows = 2, -(-batch // columns)
    cells = np.full((rows * columns, height + gap, width + gap, channels), 255, np.uint8)
    cells[:batch, gap:, gap:] = images
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    canvas = cells.reshape(rows * (height + gap), columns * (width + gap), channels)
    return np.pad(canvas, ((0, gap), (0, gap), (0, 0)), constant_values=255)


def enlarge(images: np.ndarray, smallest: int) -> np.ndarray:
    """Images [B, H, W, C] by the whole factor that makes them at least `smallest` high."""
    factor = max(1, -(-smallest // images.shape[1]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def captioned_grid(images: np.ndarray, captions: Sequence[str], columns: int) -> np.ndarray:
    """uint8 images [B, H, W, C] as `grid`, in colour, with a line of text below each."""
    images = enlarge(images, 96)
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    width, line = images.shape[2], 14
    strips = [text(caption[: width // 6], width, line) for caption in captions]
    return grid(np.concatenate([images, np.stack(strips)], axis=1), columns)


def histogram(counts: np.ndarray, title: str) -> np.ndarray:
    """Counts [K] as bars below a title, uint8 [H, W, 3]."""
    bar = max(1, 600 // len(counts))
    height, width = 120, bar * len(counts)
    filled = np.rint(height * counts / max(counts.max(), 1)).astype(int).repeat(bar)
    bars = np.where(np.arange(height, 0, -1)[:, None] <= filled, np.uint8(90), np.uint8(235))
    if bar > 2:
        bars[:, ::bar] = 255  # a gap between classes
    line = text(f"{title}; most {counts.max()}, fewest {counts.min()}", max(width, 480), 16)
    return stack(line, np.repeat(bars[..., None], 3, axis=-1))


def stack(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """One picture above another, uint8 [H, W, 3], the narrower one filled up with white."""
    width = max(upper.shape[1], lower.shape[1])

    def filled(image):
        return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)

    return np.concatenate([filled(upper), filled(lower)])


def text(line: str, width: int, height: int) -> np.ndarray:
    """Black text on white, uint8 [height, width, 3]."""
    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((2, 1), line, fill="black")
    return np.asarray(strip)
