"""CIFAR-10, class-conditional: the configuration that the authors of arXiv 2212.11972 released.

    python -m rin_jax.main --config=configs/cifar10.py --workdir=gs://BUCKET/cifar10

Tags: [V] read in the source named; [V2] read in another paper's table that quotes RIN; [D] derived
or counted; [M] from memory, not verified. No tag: our choice.

                published                       ours
    hardware    not found                       not measured
    time        not found                       not measured
    parameters  not found                       30,951,180 [D]
    GFLOPs      not found                       8.6 [D]
    FID, IS     1.81, 10.3 [V], 1000 steps [V]  not measured

GFLOPs are of one forward pass on one image, ours as 2 x MAC [D].

Source: github.com/google-research/pix2seq (configuration; FID and IS as an author gives them
there, with the sigmoid schedule in training and 1000 DDPM steps on the cosine schedule in
sampling). The file lists 1 - t beside the sigmoid; the figures are the sigmoid's [V]. Sampling is
on the file's "cosine", here offset_cosine; the cosine with tau 1 that a question to the author
names differs from it by less than 2e-4 in gamma [D].
"""

import ml_collections
from ml_collections import config_dict

from configs import released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"cifar10.py has no variant {arg!r}; choose 'tiny' or none.")
    config = released.recipe()

    config.model.patch_size = 2  # [V]
    config.model.num_blocks = 3  # [V]
    config.model.depth = 2  # [V]
    config.model.num_latents = 128  # [V] time and class token included
    config.model.latent_dim = 512  # [V]
    config.model.interface_dim = 256  # [V]
    config.model.num_heads = 16  # [V]
    config.model.routing_heads = 8  # [V]
    config.model.interface_mlp_ratio = 2  # [V]
    config.model.dropout = 0.1  # [V]
    config.model.drop_path = 0.1  # [V]
    config.model.remat = "none"
    config.model.dtype = "float32"

    config.diffusion.schedule = {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}  # [V]
    config.diffusion.input_scale = 1.0  # [V]
    config.diffusion.normalize_input = False

    config.sampler.num_steps = 1000  # [V]
    config.sampler.images_per_device = 64  # at once; an image is the same under the same value

    config.data.name = "cifar10"

    config.optimizer.learning_rate = 3e-3  # [V]
    config.optimizer.decay = {"name": "cosine", "end_factor": 0.0, "rate": 0.8}  # [V]

    config.train.batch_size = 256  # [V]
    config.train.num_steps = 150_000  # [V]

    config.checkpoint.keep_every_steps = config_dict.placeholder(int)
    config.evaluation.held_out_every_steps = 5000


    if arg == "tiny":
        released.shrink(config)
        config.model.routing_heads = 2
        config.data.image_size = 8
    return config
