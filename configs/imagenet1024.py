"""ImageNet 1024 x 1024, class-conditional, with input scaling: arXiv 2301.10972.

    python -m rin_jax.main --config=configs/imagenet1024.py --workdir=gs://BUCKET/imagenet1024

Tags: [V] read in the source named; [V2] read in another paper's table that quotes RIN; [D] derived
or counted; [M] from memory, not verified. No tag: our choice.

                published            ours
    hardware    256 TPUv4 chips [M]  not measured
    time        not found            not measured
    parameters  412M [M]             411,952,320 [D], 0.05M (0.01 %) fewer
    GFLOPs      1120 [M]             933.4 [D]
    FID, IS     8.72, 163.9 [M]      not measured

GFLOPs are of one forward pass on one image, ours as 2 x MAC [D]. The published figure is 1.20
times ours; all rows published are 1.2 to 1.5 times such a count [D], by a rule that is not known.

Sources: none of the published figures could be read; an author confirms 16,384 tokens and 256
latents [V] (github.com/lucidrains/recurrent-interface-network-pytorch).

Settings: [V] without a source is read in the notes on the papers at
zhangtemplar.github.io/iterative-generation and kimjy99.github.io; "released" is the authors'
ImageNet 64 x 64 file in github.com/google-research/pix2seq; whether this run had the same is not
known. The schedule is the one that arXiv 2301.10972 keeps at every size [V].
"""

import ml_collections

from configs import released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"imagenet1024.py has no variant {arg!r}; choose 'tiny' or none.")
    config = released.recipe()

    config.model.patch_size = 8  # [V]
    config.model.num_blocks = 6  # [M]; the count fits [D]
    config.model.depth = 8  # [M]; the count fits [D]
    config.model.num_latents = 256  # [V]; time and class token included
    config.model.latent_dim = 768  # [M]; the count fits [D]
    config.model.interface_dim = 512  # [M]; the count fits [D]
    config.model.num_heads = 16  # [M]
    config.model.routing_heads = 16  # [M]
    config.model.remat = "full"  # memory of a v5e: docs/plan.md
    config.model.dtype = "bfloat16"  # compute only; parameters stay float32

    config.diffusion.schedule = {"name": "linear"}  # [V]
    config.diffusion.input_scale = 0.1  # [M]
    config.diffusion.normalize_input = True  # [V] wherever the scale is not 1

    config.sampler.num_steps = 1000  # not known; as at 512 x 512
    config.sampler.images_per_device = 4  # at once; an image is the same under the same value

    config.data.name = "imagenet2012"
    config.data.image_size = 1024
    config.data.num_classes = 1000

    config.optimizer.learning_rate = 1e-3  # [M]

    config.train.batch_size = 512  # [M]
    config.train.num_steps = 910_000  # [M]


    if arg == "tiny":
        released.shrink(config)
    return config
