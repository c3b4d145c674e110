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


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"cifar10.py has no variant {arg!r}; choose 'tiny' or none.")
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.patch_size = 2  # [V]
    config.model.num_blocks = 3  # [V]
    config.model.depth = 2  # [V]
    config.model.num_latents = 128  # [V] time and class token included
    config.model.latent_dim = 512  # [V]
    config.model.interface_dim = 256  # [V]
    config.model.num_heads = 16  # [V]
    config.model.routing_heads = 8  # [V]
    config.model.latent_mlp_ratio = 4  # [V]
    config.model.interface_mlp_ratio = 2  # [V]
    config.model.dropout = 0.1  # [V]
    config.model.drop_path = 0.1  # [V]
    config.model.remat = "none"
    config.model.dtype = "float32"

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.schedule = {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}  # [V]
    config.diffusion.prediction_type = "eps"  # [V]
    config.diffusion.loss_type = "eps"  # [V]
    config.diffusion.input_scale = 1.0  # [V]
    config.diffusion.normalize_input = False
    config.diffusion.self_cond_rate = 0.9  # [V]
    config.diffusion.cond_dropout = 0.0  # [V] no guidance

    config.sampler = ml_collections.ConfigDict()
    config.sampler.name = "ddpm_large"  # [V] released code
    config.sampler.schedule = {"name": "offset_cosine"}  # [V] "cosine" of the file
    config.sampler.num_steps = 1000  # [V]
    config.sampler.eta = 0.0  # of ddim and dpmpp_2m
    config.sampler.time_difference = 0.0  # [V] released code
    config.sampler.latents = "carry"
    config.sampler.refresh = 0
    config.sampler.latent_decay = 0.0  # [V] released code
    config.sampler.guidance_scale = 0.0  # [V] no guidance
    config.sampler.guidance_interval = (0.0, 1.0)  # of gamma
    config.sampler.guidance_latents = "shared"
    config.sampler.guide = config_dict.placeholder(str)  # workdir of a weaker network
    config.sampler.guide_checkpoint = config_dict.placeholder(int)  # the newest if not set
    config.sampler.images_per_device = 64  # at once; an image is the same under the same value

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"
    config.data.split = "train"  # [V]
    config.data.data_dir = config_dict.placeholder(str)
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.flip = True  # [V]
    config.data.num_threads = 16
    config.data.prefetch = 2  # batches

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "lamb"  # [V]
    config.optimizer.learning_rate = 3e-3  # [V]
    config.optimizer.warmup_steps = 10_000  # [V]
    config.optimizer.decay = {"name": "cosine", "end_factor": 0.0, "rate": 0.8}  # [V]
    config.optimizer.b1 = 0.9  # [V]
    config.optimizer.b2 = 0.999  # [V]
    config.optimizer.eps = 1e-8  # [V]
    config.optimizer.weight_decay = 1e-2  # [V]
    config.optimizer.clip_norm = config_dict.placeholder(float)  # [V] the released LAMB has none

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 256  # [V]
    config.train.num_steps = 150_000  # [V]
    config.train.accumulation_steps = 1
    config.train.max_skipped_steps = 10  # in a row, then training stops
    config.train.init_from = config_dict.placeholder(str)  # another run, to fine-tune
    config.train.log_every_steps = 100
    config.train.sample_every_steps = 10_000

    config.ema = ml_collections.ConfigDict()
    config.ema.decays = (0.9999,)  # [V]
    config.ema.power_lengths = ()
    config.ema.snapshot_every_steps = config_dict.placeholder(int)

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 5000
    config.checkpoint.keep = 3  # the newest
    config.checkpoint.keep_every_steps = config_dict.placeholder(int)
    config.checkpoint.keep_best = 0  # of lowest mean loss

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.num_samples = 50_000  # [V]
    config.evaluation.batch_size = 1000

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    if arg == "tiny":
        config.model.num_blocks = 2
        config.model.depth = 2
        config.model.num_latents = 16
        config.model.latent_dim = 64
        config.model.interface_dim = 32
        config.model.num_heads = 4
        config.model.routing_heads = 2
        config.sampler.num_steps = 4
        config.data.name = "digits"
        config.data.image_size = 8
        config.optimizer.warmup_steps = 5
        config.train.batch_size = 8
        config.train.num_steps = 20
        config.train.log_every_steps = 5
        config.train.sample_every_steps = 10
        config.checkpoint.every_steps = 10
        config.evaluation.num_samples = 20
        config.evaluation.batch_size = 10
    return config
