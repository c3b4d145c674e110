"""The guide of autoguidance: a weaker network from a run of its own."""

from typing import NamedTuple

from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.checkpointing.restore import find_checkpoints
from rin_jax.configuration.stored import saved_config
from rin_jax.experiment import Experiment, make_experiment
from rin_jax.sampling.weights import load_ema

# What a guide must have in common with the network that it guides.
SAME_AS_GUIDE = (
    "data.image_size", "data.clip", "data.channels", "data.num_classes",
    "diffusion.prediction_type", "diffusion.input_scale", "diffusion.normalize_input",
)  # fmt: skip


class Guide(NamedTuple):
    """The weaker network of autoguidance and its averaged parameters."""

    experiment: Experiment
    params: dict


def guide_experiment(experiment: Experiment) -> Experiment | None:
    """The experiment of `sampler.guide` as its checkpoint tells it; None if there is no guide.

    Raises ConfigError if it has no such checkpoint, or samples other images or other latents.
    """
    wanted = experiment.generation
    if wanted.guide is None:
        return None
    try:
        saved = find_checkpoints(wanted.guide, wanted.guide_checkpoint)[0]
    except ConfigError as error:
        raise ConfigError(f"sampler.guide is {wanted.guide!r}: {error}") from error
    config = saved_config(saved.config)
    config.sampler = experiment.config.sampler.to_dict()
    guide = make_experiment(config)
    same = dict.fromkeys(SAME_AS_GUIDE, "name a guide of the same images and predictions.")
    if experiment.guidance.latents == "shared":
        remedy = "set sampler.guidance_latents to 'own'."
        same |= dict.fromkeys(("model.num_latents", "model.latent_dim"), remedy)
    for name, remedy in same.items():
        section, field = name.split(".")
        ours, theirs = experiment.config[section][field], guide.config[section][field]
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours} here and {theirs} in checkpoint {saved.step} of the guide in "
                f"{wanted.guide}; {remedy}"
            )
    return guide


def load_guide(experiment: Experiment, mesh: Mesh) -> Guide | None:
    """The guide of `sampler.guide`; None if there is none. Errors as `guide_experiment`."""
    guide = guide_experiment(experiment)
    if guide is None:
        return None
    wanted = experiment.generation
    ema = load_ema(guide, mesh, wanted.guide, checkpoint=wanted.guide_checkpoint)
    return Guide(guide, ema.params)
