"""ImageNet 64 x 64, class-conditional: the RIN of arXiv 2212.11972.

    python -m rin_jax.main --config=configs/imagenet64.py --workdir=gs://BUCKET/imagenet64

Tags: [V] read in the source named; [V2] read in another paper's table that quotes RIN; [D] derived
or counted; [M] from memory, not verified. No tag: our choice.

                published                           ours
    hardware    32 TPUv3 chips for most models [M]  not measured
    time        not found                           not measured
    parameters  281M [V2]                           267,186,736 [D], 13.8M (4.9 %) fewer
    GFLOPs      106 [V2]                            72.5 [D]
    FID, IS     1.23, 66.5 [V], 1000 steps [V2]     not measured

GFLOPs are of one forward pass on one image, ours as 2 x MAC [D]. The published figure is 1.46
times ours; all rows published are 1.2 to 1.5 times such a count [D], by a rule that is not known.

Sources: arXiv 2212.11972 as quoted by arXiv 2312.02696 tables 2 and 3 (parameters, GFLOPs, steps)
and paperswithcode.com (FID, IS).

Settings: [V] without a source is read in the notes on the papers at
zhangtemplar.github.io/iterative-generation and kimjy99.github.io; "released" is the authors'
ImageNet 64 x 64 file in github.com/google-research/pix2seq. That file is not the model of the
figures above: it has 128 x 768 latents, patch 8, schedule linear, learning rate 2e-3 and 150,000
steps [V], which is 157.8M parameters [D]; with the patch 4 and layers 6,6,6,6 of its comments
[V], 214.4M [D]. Here the network is the paper's as remembered (an interface of 256 is remembered
too; the count fits 512).
"""

import ml_collections

from configs import released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"imagenet64.py has no variant {arg!r}; choose 'tiny' or none.")
    config = released.recipe()

    config.model.patch_size = 4  # [V]
    config.model.num_blocks = 4  # [M]
    config.model.depth = 4  # [M]
    config.model.num_latents = 128  # [M] time and class token included
    config.model.latent_dim = 1024  # [M]
    config.model.interface_dim = 512  # [M]; the count fits [D]
    config.model.num_heads = 16  # [V] released
    config.model.routing_heads = 16  # [V] released
    config.model.remat = "full"  # faster on a v5e than "dots", whose copies cost more: docs/plan.md
    config.model.dtype = "bfloat16"  # compute only; parameters stay float32

    config.diffusion.schedule = {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}  # [M]
    config.diffusion.input_scale = 1.0  # [V] released
    config.diffusion.normalize_input = False

    config.sampler.num_steps = 1000  # [V2]
    config.sampler.images_per_device = 32  # at once; an image is the same under the same value

    config.data.name = "imagenet2012"
    config.data.image_size = 64
    config.data.num_classes = 1000

    config.optimizer.learning_rate = 1e-3  # [M]; released: 2e-3 [V]

    config.train.batch_size = 1024  # [M], [V] released
    config.train.num_steps = 300_000  # [M]; released: 150,000 [V]


    if arg == "tiny":
        released.shrink(config)
    return config
