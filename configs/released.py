"""What the authors' released ImageNet 64 x 64 file says, as far as the experiments share it.

Tags: [V] read in the released file or code, github.com/google-research/pix2seq, unless the line
says where else; no tag: our choice. Each experiment sets what is its own, and its docstring says
whether its run is known to have had the rest.
"""

import ml_collections
from ml_collections import config_dict


def recipe() -> ml_collections.ConfigDict:
    """A configuration that lacks the network's sizes, the data set and the length of the run."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.latent_mlp_ratio = 4  # [V]
    config.model.interface_mlp_ratio = 4  # [V]
    config.model.dropout = 0.0  # [V]
    config.model.attention_dropout = 0.0  # [V]
    config.model.drop_path = 0.0  # [V]
    config.model.conv_size = 0  # [V] no convolutions
    config.model.conv_dropout = 0.0
    config.model.video = config_dict.placeholder(ml_collections.ConfigDict)  # images
    config.model.latent_positions = "learned"  # [V]
    config.model.interface_positions = "learned"  # [V]
    config.model.latent_self_cond = True  # [V]
    config.model.interface_self_cond = False  # [V]
    config.model.norm_context = False  # [V] routing normalises its queries alone
    config.model.qk_norm = False
    config.model.time_on_latents = True  # [V]
    config.model.label_on_latents = True  # [V]
    config.model.label_in_time = False  # [V]
    config.model.sequence = config_dict.placeholder(ml_collections.ConfigDict)  # no text
    config.model.cond_route = "read"  # of tokens that are not among the latents: there are none
    config.model.cond_dim = config_dict.placeholder(int)
    config.model.time_scale = 1000.0  # [V]

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.prediction_type = "eps"  # [V]
    config.diffusion.loss_type = "eps"  # [V]
    config.diffusion.self_cond_rate = 0.9  # [V]
    config.diffusion.cond_dropout = 0.0  # [V] no guidance
    config.diffusion.sigmoid_bias = config_dict.placeholder(float)  # no weight
    config.diffusion.logit_normal_times = config_dict.placeholder(tuple)  # uniform ones

    config.sampler = ml_collections.ConfigDict()
    config.sampler.name = "ddpm_large"  # [V]
    config.sampler.schedule = {"name": "offset_cosine"}  # [V] "cosine" there
    config.sampler.eta = 0.0  # of ddim and dpmpp_2m
    config.sampler.time_difference = 0.0  # [V]
    config.sampler.latents = "carry"
    config.sampler.refresh = 0
    config.sampler.latent_decay = 0.0  # [V]
    config.sampler.guidance_scale = 0.0  # [V] no guidance
    config.sampler.guidance_interval = (0.0, 1.0)  # of gamma
    config.sampler.guidance_latents = "shared"
    config.sampler.guide = config_dict.placeholder(str)  # workdir of a weaker network
    config.sampler.guide_checkpoint = config_dict.placeholder(int)  # the newest if not set

    config.data = ml_collections.ConfigDict()
    config.data.split = "train"  # [V]
    config.data.data_dir = config_dict.placeholder(str)
    config.data.cache_dir = config_dict.placeholder(str)
    config.data.clip = config_dict.placeholder(ml_collections.ConfigDict)  # images
    config.data.image_size = config_dict.placeholder(int)  # of the data set
    config.data.channels = 3
    config.data.num_classes = config_dict.placeholder(int)  # all that the data set has
    config.data.flip = True  # [V]
    config.data.num_threads = 16
    config.data.prefetch = 2  # batches

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "lamb"  # [V]
    config.optimizer.warmup_steps = 10_000  # [V]
    config.optimizer.decay = {"name": "cosine", "end_factor": 0.0, "rate": 0.7}  # [V]
    config.optimizer.b1 = 0.9  # [V]
    config.optimizer.b2 = 0.999  # [V]
    config.optimizer.eps = 1e-8  # [V]
    config.optimizer.weight_decay = 1e-2  # [V]
    config.optimizer.clip_norm = config_dict.placeholder(float)  # [V] the released LAMB has none

    config.train = ml_collections.ConfigDict()
    config.train.accumulation_steps = 1
    config.train.max_skipped_steps = 10  # in a row, then training stops
    config.train.init_from = config_dict.placeholder(str)  # another run, to fine-tune
    config.train.log_every_steps = 100
    config.train.sample_every_steps = 10_000
    config.train.wandb = config_dict.placeholder(str)  # a project of Weights & Biases

    config.ema = ml_collections.ConfigDict()
    config.ema.decays = (0.9999,)  # [V]
    config.ema.power_lengths = ()
    config.ema.snapshot_every_steps = config_dict.placeholder(int)

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 5000
    config.checkpoint.keep = 3  # the newest
    config.checkpoint.keep_every_steps = 50_000
    config.checkpoint.keep_best = 0  # of lowest mean loss

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.num_samples = 50_000  # [V]
    config.evaluation.labels = "random"  # [V]
    config.evaluation.networks = config_dict.placeholder(tuple)  # inception if its file is named
    config.evaluation.measures = ("frechet", "inception_score", "kid", "precision_recall")
    config.evaluation.count_cond_frames = True  # of clips
    config.evaluation.inception_protocol = "rin_tfgan"  # [V]
    config.evaluation.inception_weights = config_dict.placeholder(str)  # a file
    config.evaluation.dinov2_weights = config_dict.placeholder(str)  # a file
    config.evaluation.i3d_weights = config_dict.placeholder(str)  # a file
    config.evaluation.reference = config_dict.placeholder(str)  # statistics made elsewhere
    config.evaluation.real_samples = config_dict.placeholder(int)  # all
    config.evaluation.every_steps = 50_000
    config.evaluation.trend_samples = 2000
    # ImageNet's test split has no labels
    config.evaluation.held_out_every_steps = config_dict.placeholder(int)
    config.evaluation.keep_best = False

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.runtime = ml_collections.ConfigDict()
    config.runtime.compile_cache = config_dict.placeholder(str)  # a folder of the user's
    config.runtime.profile_first_step = config_dict.placeholder(int)  # no trace
    config.runtime.profile_num_steps = 5
    return config


def shrink(config: ml_collections.ConfigDict) -> None:
    """Makes an experiment the same at a size for two CPU cores, on the digits."""
    config.model.num_blocks = 2
    config.model.depth = 2
    config.model.num_latents = 16
    config.model.latent_dim = 64
    config.model.interface_dim = 32
    config.model.num_heads = 4
    config.model.routing_heads = 4
    config.sampler.num_steps = 4
    config.data.name = "digits"
    config.data.image_size = 16
    config.data.num_classes = None  # of the digits
    config.optimizer.warmup_steps = 5
    config.train.batch_size = 8
    config.train.num_steps = 20
    config.train.log_every_steps = 5
    config.train.sample_every_steps = 10
    config.checkpoint.every_steps = 10
    config.evaluation.num_samples = 20
    config.evaluation.networks = ("classifier",)
    config.evaluation.measures = ("frechet", "agreement")
    config.evaluation.every_steps = config_dict.placeholder(int)
    config.evaluation.held_out_every_steps = config_dict.placeholder(int)
    config.evaluation.trend_samples = 20
