"""Your own images: from a folder to samples by two commands, on two CPU cores or one GPU.

    python -m rin_jax.main --config=configs/own_data.py --mode=prepare --source=DIR \
        --config.data.name=NAME
    python -m rin_jax.main --config=configs/own_data.py --config.data.name=NAME \
        --workdir=runs/NAME

Channels and classes are those of the data set; without a name it is the digits, enlarged. The
variants are dials, which can be joined, --config=configs/own_data.py:64-gpu (both commands need the
same size):

    64   pixels of the images; 32 without
    few  fewer than about a thousand images: fewer steps, and dropout
    gpu  a larger network in bfloat16, and larger batches, for one GPU

docs/own-data.md says what to choose, and what the samples look like at each stage. Nothing about
this experiment is published; all numbers are our choice, and those that are not here are the
digits' or of modern.py.

    parameters  2,377,036 with ten classes, in colour; 20,537,228 with gpu
    GFLOPs      0.1 forward, one image (0.111); 4.9 with gpu
"""

import ml_collections
from ml_collections import config_dict

from configs import digits, modern

DIALS = {"64", "few", "gpu", "tiny"}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for tests, on the digits."""
    dials = set(filter(None, arg.split("-")))
    if dials - DIALS:
        known = ", ".join(sorted(DIALS))
        raise ValueError(f"own_data.py has no variant {arg!r}; join some of {known} with '-'.")
    few, gpu = "few" in dials, "gpu" in dials
    size = 64 if "64" in dials else 32
    config = digits.get_config()
    modern.change(config)

    # Many narrow interface tokens and few latents cost less than 64 tokens of width 128 and 32
    # latents, and drew better; docs/own-data.md
    config.model.patch_size = size // 16
    config.model.interface_dim = 256 if gpu else 48
    config.model.num_latents = 96 if gpu else 16  # time and class token included
    config.model.latent_dim = 384 if gpu else 160
    config.model.num_blocks = 4 if gpu else 3
    config.model.depth = 2
    config.model.num_heads = 8 if gpu else 4
    config.model.routing_heads = 8 if gpu else 4
    config.model.latent_mlp_ratio = 3
    config.model.interface_mlp_ratio = 2
    config.model.dropout = 0.1 if few else 0.0
    config.model.remat = "none" if gpu else "full"
    config.model.dtype = "bfloat16" if gpu else "float32"

    config.diffusion.logit_normal_times = (0.0, 1.0)  # mean and standard deviation

    config.sampler.guidance_latents = "own"

    config.data.name = "digits"
    config.data.image_size = size
    config.data.flip = True

    config.train.batch_size = 128 if gpu else 64
    config.train.num_steps = (10_000 if few else 20_000) if gpu else (2400 if few else 4800)
    config.train.log_every_steps = 100
    config.train.sample_every_steps = 1000

    config.ema.decays = ()  # the power averages alone
    config.ema.snapshot_every_steps = config_dict.placeholder(int)

    config.checkpoint.every_steps = 1000

    config.evaluation.every_steps = config_dict.placeholder(int)
    config.evaluation.keep_best = False

    if "tiny" in dials:
        digits.shrink(config)
        config.model.patch_size = 2
        config.data.image_size = 8
        config.train.batch_size = 8
        config.ema.snapshot_every_steps = config_dict.placeholder(int)
    return config
