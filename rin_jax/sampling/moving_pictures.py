"""Pictures of clips, still and moving: what was made beside what really followed.

Each frame has a coloured edge: green if it is real, as those that were given, red if it was made.
"""

from collections.abc import Sequence

import numpy as np

from rin_jax.network.rin import RIN
from rin_jax.sampling import grids
from rin_jax.sampling.conditions import Conditions

CLIPS, FRAMES = 8, 16  # rows and columns of a still picture
MOVING, COLUMNS = 25, 5  # clips of a moving picture
SMALLEST, EDGE = 48, 2  # pixels of a frame's side, of its edge
REAL, MADE = (0, 150, 80), (230, 60, 40)
Strips = list[np.ndarray]  # what was made and, where frames were given, the truth: [B, T, H, W, 3]


def grid_labels(rin: RIN) -> np.ndarray:
    """Labels int32 of the samples in a picture: of a grid of images, or of a few clips."""
    labels = grids.grid_labels(rin.num_classes)
    few = np.linspace(0, len(labels) - 1, CLIPS).round().astype(int)
    return labels if rin.video is None else labels[few]


def strips(clips: np.ndarray, conditions: Conditions, indices: np.ndarray) -> Strips:
    """Samples `indices`, uint8 [B, T, H, W, C], with the frames given and the truth, if any.

    Where the truth ends before the samples do it goes on in white.
    """
    if not conditions.cond_frames:
        return [_edged(clips, np.zeros(clips.shape[1], bool))]
    truth = conditions.truth(indices)
    whole = np.concatenate([truth[:, : conditions.cond_frames], clips], axis=1)
    made = _edged(whole, np.arange(whole.shape[1]) < conditions.cond_frames)
    real = np.full_like(made, 255)
    real[:, : truth.shape[1]] = _edged(truth, np.ones(truth.shape[1], bool))
    return [made, real]


def still(made_and_real: Strips) -> np.ndarray:
    """A row of frames for each of the first clips, and above it a row of the truth, if any."""
    shown = np.stack(made_and_real[::-1], axis=1)[:CLIPS]
    frames = shown[:, :, grids.chosen(shown.shape[2], FRAMES)]
    return grids.grid(frames.reshape(-1, *frames.shape[3:]), frames.shape[2])


def beside(made_and_real: Strips) -> np.ndarray:
    """Each clip with the truth, if any, on its right: [B, T, H, W, 3]."""
    return np.concatenate(made_and_real, axis=3)


def moving(made_and_real: Strips, captions: Sequence[str] = ()) -> list[np.ndarray]:
    """The first clips in a grid, as `beside`, picture by picture; `captions` are those of all."""
    clips = beside(made_and_real)[:MOVING]
    if captions:
        return [grids.captioned_grid(x, captions[:MOVING], COLUMNS) for x in clips.swapaxes(0, 1)]
    return [grids.grid(x, COLUMNS) for x in clips.swapaxes(0, 1)]


def _edged(clips: np.ndarray, real: np.ndarray) -> np.ndarray:
    """uint8 [B, T, H, W, C] in colour, enlarged if small, with an edge by `real` bool [T]."""
    clips = grids.enlarge(clips.reshape(-1, *clips.shape[2:]), SMALLEST)
    clips = clips.reshape(-1, len(real), *clips.shape[1:])
    batch, length, height, width, _ = clips.shape
    edged = np.empty((batch, length, height + 2 * EDGE, width + 2 * EDGE, 3), np.uint8)
    edged[:] = np.where(real[:, None], np.uint8(REAL), np.uint8(MADE))[:, None, None]
    edged[:, :, EDGE:-EDGE, EDGE:-EDGE] = clips
    return edged
