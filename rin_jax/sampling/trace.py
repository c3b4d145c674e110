"""Pictures of how a sample comes about: the estimates of x0 and the reads, step by step.

Only for a few images of a seed: they equal those of the same indices in generate.py up to rounding.
"""

from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax.experiment import Experiment
from rin_jax.network.conditioning import Cond
from rin_jax.runtime import files
from rin_jax.sampling import grids
from rin_jax.sampling.denoiser import denoiser, guided, reading_denoiser, without_reads
from rin_jax.sampling.generate import seeded_noise, to_uint8
from rin_jax.sampling.guide import load_guide
from rin_jax.sampling.weights import local_copy

COLUMNS = 10  # steps in a still picture, or frames of a video
FRAMES = 60  # and in a moving one
READ_ROWS = 3  # samples whose reads are shown
READ_STEP = 2 / 3  # of the sampling, at which those of a video are
HEAT = np.array([255.0, 40.0, 0.0])


class Trajectory(NamedTuple):
    """What happened in N steps of B samples, on the host."""

    x0: np.ndarray  # estimates, uint8 [N, B, H, W, C], of videos [N, B, T, H, W, C]
    reads: np.ndarray  # shares of the read attention of patches, [N, B, blocks, *rin.grid]


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
    """Beside a folder, which has samples alone, FOLDER-trajectory.png, .gif and FOLDER-reads.png.

    A trajectory is x0 over the steps, of videos their middle frame.
    """
    x0 = trajectory.x0
    if x0.ndim == 6:
        x0 = x0[:, :, x0.shape[2] // 2]
    still = x0[grids.chosen(len(x0), COLUMNS)]
    rows = still.swapaxes(0, 1).reshape(-1, *x0.shape[2:])
    files.write_png(folder.with_name(f"{folder.name}-trajectory.png"), grids.grid(rows, len(still)))
    frames = [grids.grid(x0[i], x0.shape[1]) for i in grids.chosen(len(x0), FRAMES)]
    files.write_gif(folder.with_name(f"{folder.name}-trajectory.gif"), frames)
    files.write_png(folder.with_name(f"{folder.name}-reads.png"), reads_picture(trajectory))


def reads_picture(trajectory: Trajectory) -> np.ndarray:
    """For each of some samples a row of x0, and below it a row for each block's reads.

    Of images a row shows the steps, of videos the frames at one step. Heat is the share of the
    attention over the largest share in the same image or video.
    """
    panels = []
    for b in range(min(READ_ROWS, trajectory.x0.shape[1])):
        images, reads = panels_of(trajectory, b)
        panels.append(np.broadcast_to(images, (*images.shape[:-1], 3)))
        panels.extend(np.stack([heat(*one) for one in zip(images, row, strict=True)])
                      for row in reads)  # fmt: skip
    return grids.grid(np.concatenate(panels), len(panels[0]))


def panels_of(trajectory: Trajectory, b: int) -> tuple[np.ndarray, np.ndarray]:
    """x0 [L, H, W, C] of a sample at L steps or frames, and shares [blocks, L, rows, columns]."""
    steps, x0, reads = len(trajectory.x0), trajectory.x0[:, b], trajectory.reads[:, b]
    if x0.ndim == 4:
        at = grids.chosen(steps, COLUMNS)
        reads = reads[at].swapaxes(0, 1)
        return x0[at], reads / reads.max((2, 3), keepdims=True)
    x0, reads = (x[round(READ_STEP * (steps - 1))] for x in (x0, reads))
    reads = reads.repeat(len(x0) // reads.shape[1], axis=1)
    at = grids.chosen(len(x0), COLUMNS)
    return x0[at], (reads / reads.max((1, 2, 3), keepdims=True))[:, at]


def heat(image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Strengths [rows, columns] of patches, up to 1, as red on a grey copy of uint8 [H, W, C]."""
    patch = image.shape[0] // strength.shape[0]
    strength = strength.repeat(patch, axis=0).repeat(patch, axis=1)[..., None]
    grey = image.mean(-1, keepdims=True)
    return np.rint(grey + 0.8 * strength * (HEAT - grey)).astype(np.uint8)
