"""Long clips: the window of a network that is given frames slides on over what it has made.

The last frames of a window are given for the next one, which is a full sampling with noise of its
own: where a sampling of N steps takes N + 1 draws of noise, window k takes the k-th N + 1 of its
sample. In between frames are rounded to uint8, as those of a data set are. The first steps of a
window start from zeros or from the last latents of the window before.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rin_jax import ConfigError
from rin_jax.experiment import Experiment
from rin_jax.network.rin import RIN
from rin_jax.sampling.conditions import scaled_frames
from rin_jax.sampling.denoiser import denoiser, guided
from rin_jax.sampling.generate import seeded_noise, to_uint8


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How far a clip goes on, and how; the flags --rollout and --rollout_latents."""

    windows: int  # of the network, one after the other
    latents: str  # "carry" from window to window, or "reset" to zeros at the start of each

    def __post_init__(self):
        if self.windows < 1:
            raise ConfigError(f"--rollout is {self.windows}; it must be at least 1.")

    def check(self, experiment: Experiment) -> None:
        """Raises ConfigError if the network cannot continue a clip so."""
        if not experiment.rin.cond_frames:
            raise ConfigError(
                f"--rollout is {self.windows}, but the network is given no frames, from which a "
                "clip could go on; leave the flag out, or train with data.clip.cond_frames above 0."
            )
        if self.latents == "carry" and experiment.sampler.latents == "reset":
            raise ConfigError(
                "--rollout_latents is carry, but sampler.latents is 'reset', and no step starts "
                "from latents of before; set one of them to the other."
            )

    def program(self, experiment: Experiment, guide: RIN | None = None):
        """As `generate.jit_sampler`, of one clip after the other: uint8 [B, windows T, H, W, C]."""
        rin, sampler, stream = experiment.rin, experiment.sampler, experiment.sampler.num_steps + 1
        scale = experiment.objective.process.input_scale

        @jax.jit
        def clips_of(params, key, indices, cond):
            params, guide_params = params if guide else (params, None)
            _, noise_fn = seeded_noise(key, indices, rin.example_shape)
            guide_fn = denoiser(guide, guide_params) if guide else None

            def window(carry, start):
                frames, latents = carry
                now = {**cond, "frames": frames}
                denoise_fn = guided(experiment.guidance, denoiser(rin, params), guide_fn, now)
                noise = noise_fn(start - 1)  # draw 0 of a sampling comes before that of step 0
                clip, last = sampler.continued(
                    denoise_fn, noise, now, lambda i: noise_fn(start + i), latents
                )
                clip = to_uint8(clip)
                known = jnp.concatenate([frames, scaled_frames(clip, scale)], axis=1)
                kept = last if self.latents == "carry" else latents
                return (known[:, -rin.cond_frames :], kept), clip

            first = guided(experiment.guidance, denoiser(rin, params), guide_fn, cond)
            carry = cond["frames"], sampler.no_latents(first, noise_fn(-1), cond)
            clips = jax.lax.scan(window, carry, jnp.arange(self.windows) * stream)[1]
            return jnp.concatenate(list(clips), axis=1)

        return clips_of
