"""Files of a run on any file system, buckets too: pictures written as a whole."""

import io

import numpy as np
from etils import epath
from PIL import Image


def write_png(path: epath.Path, image: np.ndarray) -> None:
    """A uint8 image [H, W, 1 or 3] as PNG, on any file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
