"""Pictures of how a sample comes about: the estimates of x0 and the reads, step by step.

Only for a few images of a seed: they equal those of the same indices in generate.py up to rounding.
"""

import io
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from PIL import Image

from rin_jax.experiment import Experiment
from rin_jax.network.conditioning import Cond
from rin_jax.runtime import files
from rin_jax.sampling import grids
from rin_jax.sampling.denoiser import denoiser, guided, reading_denoiser, without_reads
from rin_jax.sampling.generate import load_guide, seeded_noise, to_uint8
from rin_jax.sampling.weights import local_copy

COLUMNS = 10  # steps in a still picture
FRAMES = 60  # and in a moving one
READ_ROWS = 3  # images whose reads are shown
HEAT = np.array([255.0, 40.0, 0.0])


class Trajectory(NamedTuple):
    """What happened in N steps of B samples, on the host."""

    x0: np.ndarray  # estimates, uint8 [N, B, H, W, C]
    reads: np.ndarray  # shares of the read attention, [N, B, blocks, rows, columns] of patches


def trace(
    experiment: Experiment, mesh: Mesh, params: dict, seed: int, indices: np.ndarray, cond: Cond
) -> Trajectory:
    """Samples images `indices` [B] of a seed under `cond` of [B], on one device, and watches."""
    rin, sampler = experiment.rin, experiment.sampler
    guide = load_guide(experiment, mesh)

    @jax.jit
    def run(params, guide_params, key, indices, cond):
        noise, noise_fn = seeded_noise(key, indices, rin.example_shape)
        guide_fn = without_reads(denoiser(guide.experiment.rin, guide_params)) if guide else None
        denoise_fn = guided(experiment.guidance, reading_denoiser(rin, params), guide_fn, cond)

        def watch(x0, latents):
            first = latents[0] if experiment.guidance.carries_pair else latents
            return to_uint8(sampler.process.unscale(x0)), first["reads"]

        return sampler.watched(denoise_fn, noise, cond, noise_fn, watch)[1]

    weights = local_copy((params, guide.params if guide else {}), mesh)
    return Trajectory(*jax.device_get(run(*weights, jax.random.key(seed), indices, cond)))


def write(folder: epath.Path, trajectory: Trajectory) -> None:
    """trajectory.png and .gif: x0 of each image over the steps; reads.png: see `reads_picture`."""
    x0 = trajectory.x0
    still = x0[chosen(len(x0), COLUMNS)]
    rows = still.swapaxes(0, 1).reshape(-1, *x0.shape[2:])
    files.write_png(folder / "trajectory.png", grids.grid(rows, len(still)))
    frames = [grids.grid(x0[i], x0.shape[1]) for i in chosen(len(x0), FRAMES)]
    write_gif(folder / "trajectory.gif", frames)
    files.write_png(folder / "reads.png", reads_picture(trajectory))


def reads_picture(trajectory: Trajectory) -> np.ndarray:
    """A row of x0 over the steps for each image, and below it a row for each block's reads.

    Heat is the share of the attention over the largest share in the same panel.
    """
    steps = chosen(len(trajectory.x0), COLUMNS)
    panels = []
    for b in range(min(READ_ROWS, trajectory.x0.shape[1])):
        images = trajectory.x0[steps, b]
        panels.append(np.broadcast_to(images, (*images.shape[:-1], 3)))
        panels.extend(
            np.stack([heat(trajectory.x0[i, b], trajectory.reads[i, b, block]) for i in steps])
            for block in range(trajectory.reads.shape[2])
        )
    return grids.grid(np.concatenate(panels), len(steps))


def heat(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Shares [rows, columns] of patches as red on a grey copy of a uint8 image [H, W, C]."""
    patch = image.shape[0] // share.shape[0]
    strength = (share / share.max()).repeat(patch, axis=0).repeat(patch, axis=1)[..., None]
    grey = image.mean(-1, keepdims=True)
    return np.rint(grey + 0.8 * strength * (HEAT - grey)).astype(np.uint8)


def chosen(count: int, most: int) -> np.ndarray:
    """At most `most` of 0..count-1, evenly spaced, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def write_gif(path: epath.Path, frames: list[np.ndarray]) -> None:
    """uint8 pictures [H, W, 1 or 3] as a GIF of 12 pictures a second that rests on the last."""
    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames]
    durations = [80] * (len(pictures) - 1) + [1500]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, loop=0, append_images=pictures[1:], duration=durations
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
