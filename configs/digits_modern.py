"""The digits by a recipe that is newer than RIN's, in a quarter of the steps: the demo.

    python -m rin_jax.main --config=configs/digits_modern.py --workdir=runs/digits_modern

The recipe is modern.py's; docs/ablations.md has what was measured of its parts. Nothing about this
experiment is published; all numbers are our choice, and those that are not here are the digits'.

    parameters  395,796
    GFLOPs      0.0 forward, one image (0.010)
"""

import ml_collections

from configs import digits, modern


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"digits_modern.py has no variant {arg!r}; choose 'tiny' or none.")
    config = digits.get_config()
    modern.change(config)

    config.diffusion.logit_normal_times = (0.0, 1.0)  # mean and standard deviation

    config.sampler.guidance_scale = 2.0  # shared latents weaken it: docs/sampling.md

    config.train.num_steps = 750
    config.train.sample_every_steps = 375

    # a power average alone: another one remembers too much of so short a training's start
    config.ema.decays = ()
    config.ema.power_lengths = (0.1,)

    config.evaluation.every_steps = 750

    if arg == "tiny":
        digits.shrink(config)
    return config
