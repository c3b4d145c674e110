"""What carrying the latents from window to window of a roll-out does, on moving digits.

    python -m rin_jax.main --config=configs/moving_digits.py --workdir=runs/moving_digits
    python -m benchmarks.rollout --workdir=runs/moving_digits

The first test clips are drawn for as long as the roll-out is, so that each of its frames has a true
one. Prints, for each window, the PSNR in dB of its frames, mean over frames and clips, with the
latents carried and reset, and the share of clips for which carrying is nearer to the truth; beside
them copying the last given frame. Each seed is other noise for the same clips. docs/sampling.md has
the table.
"""

import argparse
import sys
from pathlib import Path

# so that `python benchmarks/rollout.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from rin_jax.configuration import from_run
from rin_jax.data import moving_digits
from rin_jax.evaluation.frames import copied, psnr
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.runtime import sharding
from rin_jax.sampling.conditions import scaled_frames
from rin_jax.sampling.generate import run_batches
from rin_jax.sampling.rollout import Rollout
from rin_jax.sampling.weights import load_ema

LATENTS = ("carry", "reset")


def draw(num: int, frames: int, image_size: int) -> np.ndarray:
    """The first `num` clips of the test split, continued to `frames`: uint8 [num, frames, ..]."""
    shapes, clips = moving_digits.load_shapes("test"), []
    for index in range(num):
        scene = moving_digits.draw_scene("test", index, image_size, [len(kind) for kind in shapes])
        pair = shapes[scene.label][list(scene.shapes)]
        clips.append(moving_digits.render(pair, scene.path(frames), image_size))
    return np.stack(clips)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True, help="the trained moving digits")
    parser.add_argument("--num", type=int, default=256, help="clips, a multiple of a batch")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    experiment = make_experiment(from_run.get_config(f"{args.workdir}/config.json"))
    mesh, given = device_mesh(experiment), experiment.rin.cond_frames
    window = experiment.rin.example_shape[0]
    truth = draw(args.num, given + args.windows * window, experiment.data.image_size)
    step, ema, params = load_ema(experiment, mesh, args.workdir)
    params = jax.device_put(params, sharding.replicated(mesh))
    batches = np.arange(args.num, dtype=np.int32).reshape(
        -1, experiment.generation.images_per_device
    )
    frames = scaled_frames(truth[:, :given], experiment.objective.process.input_scale)
    cond = {"frames": frames.reshape(*batches.shape, *frames.shape[1:])}
    truth = truth[:, given:]
    print(f"step {step}, {ema}, {args.num} clips, {args.seeds} seeds: PSNR, dB")

    def by_window(clips: np.ndarray) -> np.ndarray:
        """PSNR of each clip in each window: [num, windows]."""
        return psnr(clips.reshape(truth.shape), truth).reshape(args.num, -1, window).mean(2)

    made = {}
    for latents in LATENTS:
        program = Rollout(args.windows, latents).program(experiment)
        keys = [jax.random.key(seed) for seed in range(args.seeds)]
        clips = [run_batches(program, params, key, batches, cond, mesh) for key in keys]
        made[latents] = np.stack([by_window(some) for some in clips])  # [seeds, num, windows]
    still = by_window(copied(draw(args.num, given, experiment.data.image_size), truth.shape[1]))
    print("| window | latents carried | reset | carried is nearer | copied |")
    print("|---|---|---|---|---|")
    for k in range(args.windows):
        carry, reset = (made[latents][:, :, k] for latents in LATENTS)
        means = [f"{some.mean():.2f} ({_range(some.mean(1))})" for some in (carry, reset)]
        nearer = f"{100 * (carry > reset).mean():.0f} %"
        print(f"| {k + 1} | {means[0]} | {means[1]} | {nearer} | {still[:, k].mean():.2f} |")


def _range(values: np.ndarray) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"


if __name__ == "__main__":
    main()
