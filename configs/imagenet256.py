"""ImageNet 256 x 256, class-conditional, with input scaling: arXiv 2212.11972 and 2301.10972.

    python -m rin_jax.main --config=configs/imagenet256.py --workdir=gs://BUCKET/imagenet256

Tags: [V] read in the source named; [V2] read in another paper's table that quotes RIN; [D] derived
or counted; [M] from memory, not verified. No tag: our choice.

                published                           ours
    hardware    32 TPUv3 chips for most models [M]  not measured
    time        not found                           not measured
    parameters  410M [V2]                           395,928,256 [D], 14.1M (3.4 %) fewer
    GFLOPs      334 [V]                             243.1 [D]
    FID, IS     3.42, 182.0 [V2], 1000 steps [V2]   not measured

GFLOPs are of one forward pass on one image, ours as 2 x MAC [D]. The published figure is 1.37
times ours; all rows published are 1.2 to 1.5 times such a count [D], by a rule that is not known.

Sources: arXiv 2212.11972 figure 1 (GFLOPs); arXiv 2511.13720 (parameters, GFLOPs, FID, IS); arXiv
2312.06662 and 2401.11605 (batch, steps, FID).

Settings: [V] without a source is read in the notes on the papers at
zhangtemplar.github.io/iterative-generation and kimjy99.github.io; "released" is the authors'
ImageNet 64 x 64 file in github.com/google-research/pix2seq; whether this run had the same is not
known. Without input scaling the figures are 4.51 [V], 161.0 [V2]; the shorter run of arXiv
2301.10972 has 3.52, 186.2 [M]. The scale and the schedule of the 3.42 are not known. They are set
as arXiv 2301.10972 advises: 1 - t at every size, smaller scales for larger images [V], 0.5 here
[M]. At scale 1 its table has 1 - t and the sigmoid of the smaller sizes level at 256 x 256, FID
7.21 and 7.19 [M].
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"imagenet256.py has no variant {arg!r}; choose 'tiny' or none.")
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.patch_size = 8  # [V]
    config.model.num_blocks = 6  # [M]
    config.model.depth = 4  # [M]
    config.model.num_latents = 256  # [M] time and class token included
    config.model.latent_dim = 1024  # [M]
    config.model.interface_dim = 512  # [M]
    config.model.num_heads = 16  # [M]
    config.model.routing_heads = 16  # [M]
    config.model.latent_mlp_ratio = 4  # [V] released
    config.model.interface_mlp_ratio = 4  # [V] released
    config.model.dropout = 0.0  # [V] released
    config.model.drop_path = 0.0  # [V] released
    config.model.remat = "full"  # memory of a v5e at 64 images a chip: docs/plan.md
    config.model.dtype = "bfloat16"  # compute only; parameters stay float32

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.schedule = {"name": "linear"}  # [M] for this run
    config.diffusion.prediction_type = "eps"  # [V] released
    config.diffusion.loss_type = "eps"  # [V] released
    config.diffusion.input_scale = 0.5  # [M]
    config.diffusion.normalize_input = True  # [V] wherever the scale is not 1
    config.diffusion.self_cond_rate = 0.9  # [V]
    config.diffusion.cond_dropout = 0.0  # [V] no guidance

    config.sampler = ml_collections.ConfigDict()
    config.sampler.name = "ddpm_large"  # [V] released code
    config.sampler.schedule = {"name": "offset_cosine"}  # [V] "cosine" in the released file
    config.sampler.num_steps = 1000  # [V2]
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
    config.sampler.images_per_device = 16  # at once; an image is the same under the same value

    config.data = ml_collections.ConfigDict()
    config.data.name = "imagenet2012"
    config.data.split = "train"  # [V] released
    config.data.data_dir = config_dict.placeholder(str)
    config.data.image_size = 256
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = True  # [V] released
    config.data.num_threads = 16
    config.data.prefetch = 2  # batches

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "lamb"  # [V]
    config.optimizer.learning_rate = 1e-3  # [M]
    config.optimizer.warmup_steps = 10_000  # [V] released
    config.optimizer.decay = {"name": "cosine", "end_factor": 0.0, "rate": 0.7}  # [V] released
    config.optimizer.b1 = 0.9  # [V]
    config.optimizer.b2 = 0.999  # [V]
    config.optimizer.eps = 1e-8  # [V] released
    config.optimizer.weight_decay = 1e-2  # [V]
    config.optimizer.clip_norm = config_dict.placeholder(float)  # [V] the released LAMB has none

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 1024  # [V2]
    config.train.num_steps = 600_000  # [V2]
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
    config.checkpoint.keep_every_steps = 50_000
    config.checkpoint.keep_best = 0  # of lowest mean loss

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.num_samples = 50_000  # [V] released
    config.evaluation.batch_size = 512

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
        config.model.routing_heads = 4
        config.sampler.num_steps = 4
        config.data.name = "digits"
        config.data.image_size = 16
        config.data.num_classes = 10
        config.optimizer.warmup_steps = 5
        config.train.batch_size = 8
        config.train.num_steps = 20
        config.train.log_every_steps = 5
        config.train.sample_every_steps = 10
        config.checkpoint.every_steps = 10
        config.evaluation.num_samples = 20
        config.evaluation.batch_size = 10
    return config
