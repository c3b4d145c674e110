"""Pictures of clips: what was given, what was made, and what really followed."""

import numpy as np

from rin_jax.network.rin import RIN
from rin_jax.sampling import grids
from rin_jax.sampling.conditions import Conditions

CLIPS = 8  # in a picture


def grid_labels(rin: RIN) -> np.ndarray:
    """Labels int32 of the samples in a picture: of a grid of images, or of a few clips."""
    labels = grids.grid_labels(rin.num_classes)
    few = np.linspace(0, len(labels) - 1, CLIPS).round().astype(int)
    return labels if rin.video is None else labels[few]


def picture(images: np.ndarray, conditions: Conditions, indices: np.ndarray) -> np.ndarray:
    """Samples `indices` [B] as one picture, uint8 [H, W, C].

    Images [B, H, W, C] are a grid. Of videos [B, T, H, W, C] each is a row of frames, and where
    frames were given, they come first, and a row of what really followed lies above.
    """
    if images.ndim == 4:
        return grids.grid(images, grids.COLUMNS)
    if conditions.clips is None:
        rows = images
    else:
        truth = conditions.truth(indices)
        made = np.concatenate([truth[:, : -images.shape[1]], images], axis=1)
        rows = np.stack([truth, made], axis=1)
    frames = rows.shape[-4]
    return grids.grid(rows.reshape(-1, *rows.shape[-3:]), frames)
