"""Handwritten digits, 8 x 8, class-conditional, on two CPU cores and without a download.

    python -m rin_jax.main --config=configs/digits.py --workdir=runs/digits_lamb

LAMB, a prediction of the noise and a sigmoid schedule, as in the published experiments;
digits_modern.py needs fewer steps. Nothing about this experiment is published; all numbers are our
choice. docs/experiments.md has measured times, and shares of samples read as the class asked for.

    parameters  389,492
    GFLOPs      0.0 forward, one image (0.010)
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"digits.py has no variant {arg!r}; choose 'tiny' or none.")
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.patch_size = 2
    config.model.num_blocks = 2
    config.model.depth = 2
    config.model.num_latents = 12  # time and class token included
    config.model.latent_dim = 64
    config.model.interface_dim = 48
    config.model.num_heads = 4
    config.model.routing_heads = 4
    config.model.latent_mlp_ratio = 4
    config.model.interface_mlp_ratio = 4
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.drop_path = 0.0
    config.model.conv_size = 0  # no convolutions
    config.model.conv_dropout = 0.0
    config.model.video = config_dict.placeholder(ml_collections.ConfigDict)  # images
    config.model.latent_positions = "learned"
    config.model.interface_positions = "learned"
    config.model.latent_self_cond = True
    config.model.interface_self_cond = False
    config.model.norm_context = False
    config.model.qk_norm = False
    config.model.time_on_latents = True
    config.model.label_on_latents = True
    config.model.label_in_time = False
    config.model.sequence = config_dict.placeholder(ml_collections.ConfigDict)  # no text
    config.model.cond_route = "read"  # of tokens that are not among the latents
    config.model.cond_dim = config_dict.placeholder(int)
    config.model.time_scale = 1000.0
    config.model.remat = "full"  # faster on CPU: benchmarks/README.md
    config.model.dtype = "float32"

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.schedule = {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}
    config.diffusion.prediction_type = "eps"
    config.diffusion.loss_type = "eps"
    config.diffusion.input_scale = 1.0
    config.diffusion.normalize_input = False
    config.diffusion.self_cond_rate = 0.9
    config.diffusion.cond_dropout = 0.1
    config.diffusion.sigmoid_bias = config_dict.placeholder(float)  # no weight
    config.diffusion.logit_normal_times = config_dict.placeholder(tuple)  # uniform ones

    config.sampler = ml_collections.ConfigDict()
    config.sampler.name = "ddim"
    # begins at a gamma of 1e-4; at cosine's 1e-9 float32 does not tell x0: docs/export.md
    config.sampler.schedule = {"name": "logsnr", "start": 6.0, "end": -9.0}
    config.sampler.num_steps = 100
    config.sampler.eta = 0.0  # of ddim and dpmpp_2m
    config.sampler.time_difference = 0.0
    config.sampler.latents = "carry"
    config.sampler.refresh = 0
    config.sampler.latent_decay = 0.0
    config.sampler.guidance_scale = 1.0
    config.sampler.guidance_interval = (0.0, 1.0)  # of gamma
    config.sampler.guidance_latents = "shared"
    config.sampler.guide = config_dict.placeholder(str)  # workdir of a weaker network
    config.sampler.guide_checkpoint = config_dict.placeholder(int)  # the newest if not set
    config.sampler.images_per_device = 100  # at once; an image is the same under the same value

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"
    config.data.split = "train"
    config.data.data_dir = config_dict.placeholder(str)
    config.data.cache_dir = config_dict.placeholder(str)
    config.data.image_size = config_dict.placeholder(int)
    config.data.clip = config_dict.placeholder(ml_collections.ConfigDict)  # images
    config.data.channels = config_dict.placeholder(int)
    config.data.num_classes = config_dict.placeholder(int)
    config.data.flip = False
    config.data.num_threads = 16
    config.data.prefetch = 2  # batches

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "lamb"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = {"name": "cosine", "end_factor": 0.0, "rate": 0.9}
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = config_dict.placeholder(float)

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 64
    config.train.num_steps = 3000
    config.train.accumulation_steps = 1
    config.train.max_skipped_steps = 10  # in a row, then training stops
    config.train.init_from = config_dict.placeholder(str)  # another run, to fine-tune
    config.train.log_every_steps = 50
    config.train.sample_every_steps = 1000
    config.train.wandb = config_dict.placeholder(str)  # a project of Weights & Biases

    config.ema = ml_collections.ConfigDict()
    config.ema.decays = (0.998,)
    config.ema.power_lengths = (0.05, 0.1)
    config.ema.snapshot_every_steps = 250  # for averages of other lengths

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 500
    config.checkpoint.keep = 2  # the newest
    config.checkpoint.keep_every_steps = config_dict.placeholder(int)
    config.checkpoint.keep_best = 1  # of lowest mean loss

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.num_samples = 1000
    config.evaluation.labels = "balanced"
    config.evaluation.networks = ("classifier",)  # trained on these digits; Inception saw none
    config.evaluation.measures = ("frechet", "agreement")
    config.evaluation.count_cond_frames = True  # of clips
    config.evaluation.inception_protocol = "adm"
    config.evaluation.inception_weights = config_dict.placeholder(str)  # a file
    config.evaluation.dinov2_weights = config_dict.placeholder(str)  # a file
    config.evaluation.i3d_weights = config_dict.placeholder(str)  # a file
    config.evaluation.reference = config_dict.placeholder(str)  # statistics made elsewhere
    config.evaluation.real_samples = config_dict.placeholder(int)  # all
    config.evaluation.every_steps = 1500
    config.evaluation.trend_samples = 200
    config.evaluation.held_out_every_steps = config_dict.placeholder(int)  # all are learnt from
    config.evaluation.keep_best = True

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.runtime = ml_collections.ConfigDict()
    config.runtime.compile_cache = config_dict.placeholder(str)  # a folder of the user's
    config.runtime.profile_first_step = config_dict.placeholder(int)  # no trace
    config.runtime.profile_num_steps = 5

    if arg == "tiny":
        shrink(config)
    return config


def shrink(config: ml_collections.ConfigDict) -> None:
    """Makes an experiment on small grey images the same at a size for tests."""
    config.model.depth = 1
    config.model.latent_dim = 32
    config.model.interface_dim = 16
    config.sampler.num_steps = 4
    config.optimizer.warmup_steps = 5
    config.train.batch_size = 16
    config.train.num_steps = 20
    config.train.log_every_steps = 5
    config.train.sample_every_steps = 10
    config.ema.snapshot_every_steps = 10
    config.checkpoint.every_steps = 10
    config.evaluation.num_samples = 20
    config.evaluation.every_steps = config_dict.placeholder(int)
    config.evaluation.held_out_every_steps = config_dict.placeholder(int)
    config.evaluation.trend_samples = 20
