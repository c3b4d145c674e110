"""ImageNet 128 x 128, class-conditional: the RIN of arXiv 2212.11972.

    python -m rin_jax.main --config=configs/imagenet128.py --workdir=gs://BUCKET/imagenet128

Tags: [V] read in the source named; [V2] read in another paper's table that quotes RIN; [D] derived
or counted; [M] from memory, not verified. No tag: our choice.

                published                           ours
    hardware    32 TPUv3 chips for most models [M]  not measured
    time        not found                           not measured
    parameters  410M [M]                            395,649,584 [D], 14.4M (3.5 %) fewer
    GFLOPs      194 [V]                             139.2 [D]
    FID, IS     2.75, 144.1 [V], 1000 steps [M]     not measured

GFLOPs are of one forward pass on one image, ours as 2 x MAC [D]. The published figure is 1.39
times ours; all rows published are 1.2 to 1.5 times such a count [D], by a rule that is not known.

Sources: arXiv 2212.11972 figure 1 (GFLOPs) and paperswithcode.com (FID, IS).

Settings: [V] without a source is read in the notes on the papers at
zhangtemplar.github.io/iterative-generation and kimjy99.github.io; "released" is the authors'
ImageNet 64 x 64 file in github.com/google-research/pix2seq; whether this run had the same is not
known. The figures are without input scaling. For the later runs of arXiv 2301.10972 a learning
rate of 2e-3 is reported at this size [V].
"""

import ml_collections

from configs import released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"imagenet128.py has no variant {arg!r}; choose 'tiny' or none.")
    config = released.recipe()

    config.model.patch_size = 4  # [V]
    config.model.num_blocks = 6  # [M]
    config.model.depth = 4  # [M]
    config.model.num_latents = 128  # [M] time and class token included
    config.model.latent_dim = 1024  # [M]
    config.model.interface_dim = 512  # [M]
    config.model.num_heads = 16  # [M]
    config.model.routing_heads = 16  # [M]
    config.model.remat = "full"  # memory of a v5e at 64 images a chip: docs/plan.md
    config.model.dtype = "bfloat16"  # compute only; parameters stay float32

    config.diffusion.schedule = {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}  # [M]
    config.diffusion.input_scale = 1.0  # [V] the figures are without scaling
    config.diffusion.normalize_input = False

    config.sampler.num_steps = 1000  # [M]
    config.sampler.images_per_device = 16  # at once; an image is the same under the same value

    config.data.name = "imagenet2012"
    config.data.image_size = 128
    config.data.num_classes = 1000

    config.optimizer.learning_rate = 1e-3  # [M]

    config.train.batch_size = 1024  # [M]
    config.train.num_steps = 600_000  # [M]


    if arg == "tiny":
        released.shrink(config)
    return config
