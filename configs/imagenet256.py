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

from configs import released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"imagenet256.py has no variant {arg!r}; choose 'tiny' or none.")
    config = released.recipe()

    config.model.patch_size = 8  # [V]
    config.model.num_blocks = 6  # [M]
    config.model.depth = 4  # [M]
    config.model.num_latents = 256  # [M] time and class token included
    config.model.latent_dim = 1024  # [M]
    config.model.interface_dim = 512  # [M]
    config.model.num_heads = 16  # [M]
    config.model.routing_heads = 16  # [M]
    config.model.remat = "full"  # memory of a v5e at 64 images a chip: docs/plan.md
    config.model.dtype = "bfloat16"  # compute only; parameters stay float32

    config.diffusion.schedule = {"name": "linear"}  # [M] for this run
    config.diffusion.input_scale = 0.5  # [M]
    config.diffusion.normalize_input = True  # [V] wherever the scale is not 1

    config.sampler.num_steps = 1000  # [V2]
    config.sampler.images_per_device = 16  # at once; an image is the same under the same value

    config.data.name = "imagenet2012"
    config.data.image_size = 256
    config.data.num_classes = 1000

    config.optimizer.learning_rate = 1e-3  # [M]

    config.train.batch_size = 1024  # [V2]
    config.train.num_steps = 600_000  # [V2]


    if arg == "tiny":
        released.shrink(config)
    return config
