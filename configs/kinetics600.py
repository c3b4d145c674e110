"""Kinetics-600, prediction of video, 16 frames of 64 x 64: the RIN of arXiv 2212.11972.

    python -m rin_jax.main --config=configs/kinetics600.py --mode=prepare --source=FOLDER
    python -m rin_jax.main --config=configs/kinetics600.py --workdir=gs://BUCKET/kinetics600

FOLDER has the mp4 files and the data set's CSV. The first 5 frames are given, the other 11 are
predicted; `--config.data.clip.cond_frames=0` generates all 16.

Tags: [V] read in the source named; [V2] read in another paper's table that quotes RIN; [D] derived
or counted; [M] from memory, not verified. No tag: our choice.

                published                                 ours
    hardware    32 TPUv3 chips for most models [M]        not measured
    time        not found                                 not measured
    parameters  411M [V2]                                 395,461,216 [D], 3.8 % fewer
    GFLOPs      387 [V]                                   299.4 [D]
    FVD         10.8 with 1,000 steps, 11.5 with 400 [V]  not measured
    IS          17.7 [V]                                  not measured

GFLOPs are of one forward pass on one clip, ours as 2 x MAC [D]. The 5 given frames are filled up to
6 and the 11 others to 12, so that there are 2,304 interface tokens; with 2,048, for 16 frames
without a division, it is 288.2 [D].

Sources: arXiv 2312.06662 (parameters), paperswithcode.com (FVD, IS, steps), figure 1 of the paper
(GFLOPs). The released code has no file for this data set and its training of videos does not run;
its network does, and ours equals it.
"""

import ml_collections

from configs import moving_digits, released


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for two CPU cores, on the moving digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"kinetics600.py has no variant {arg!r}; choose 'tiny' or none.")
    config = released.recipe()

    config.model.patch_size = 4  # [V]
    config.model.video = ml_collections.ConfigDict()
    config.model.video.patch_frames = 2  # [V]
    config.model.video.positions = "after"  # [V] released
    config.model.video.written = True  # [V] released
    config.model.num_blocks = 6  # [M]
    config.model.depth = 4  # [M]
    config.model.num_latents = 256  # [M] time token included
    config.model.latent_dim = 1024  # [M]
    config.model.interface_dim = 512  # [M]
    config.model.num_heads = 16  # [V] released
    config.model.routing_heads = 16  # [V] released
    config.model.remat = "full"  # memory of a v5e at 16 clips a chip: docs/plan.md
    config.model.dtype = "bfloat16"  # compute only; parameters stay float32

    config.diffusion.schedule = {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}  # [M]
    config.diffusion.input_scale = 1.0
    config.diffusion.normalize_input = False

    config.sampler.num_steps = 1000  # [V]
    config.sampler.images_per_device = 8  # clips at once; a clip is the same under the same value

    config.data.name = "kinetics600"
    config.data.image_size = 64
    config.data.num_classes = 0  # [V] the frames alone
    config.data.clip = ml_collections.ConfigDict()
    config.data.clip.frames = 16  # [V]
    config.data.clip.cond_frames = 5  # [V2]
    config.data.clip.stride = 1
    config.data.clip.window = "first"  # [V] released

    config.optimizer.learning_rate = 1e-3  # [M]

    config.evaluation.networks = ("i3d",)
    config.evaluation.measures = ("frechet", "psnr", "ssim")

    config.train.batch_size = 1024  # [M]
    config.train.num_steps = 500_000  # [M]

    if arg == "tiny":
        released.shrink(config)
        moving_digits.shrink_clips(config)
    return config
