"""Moving digits, prediction of video, 12 frames of 20 x 20, grey, for two CPU cores.

    python -m rin_jax.main --config=configs/moving_digits.py --workdir=runs/moving_digits

Two handwritten digits of one class move and bounce at the edges, as in Moving MNIST; the clips are
rendered from scikit-learn's digits, so that nothing is downloaded. The first 8 frames are given,
the other 4 are predicted, and sampling with --rollout goes on from them. Other conditions are one
flag each:

    --config.data.clip.cond_frames=0                                generation
    --config.data.clip.cond_frames=0 --config.data.num_classes=10   the same, by class

Nothing about this experiment is published; all numbers are our choice, and those that are not here
are the digits'. docs/results.md has what was measured; it trains in 16 minutes on two cores.

What a network of this size needs to follow the given frames soon: patches of four frames, in which
a movement is seen; an interface with room for noise and prediction side by side; a scale and noise
levels at which a predicted x0, which is clipped in the loss, has gradients, and most examples have
nothing to go by but the given frames; and Muon.

    parameters  1,709,888
    GFLOPs      0.1 forward, one clip (0.111)
"""

import ml_collections
from ml_collections import config_dict

from configs import digits


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"moving_digits.py has no variant {arg!r}; choose 'tiny' or none.")
    config = digits.get_config()

    config.model.patch_size = 4
    config.model.video = ml_collections.ConfigDict()
    config.model.video.patch_frames = 4
    config.model.video.positions = "before"
    config.model.video.written = False
    config.model.cond_route = "decoupled"
    config.model.num_blocks = 3
    config.model.depth = 1
    config.model.num_latents = 32  # time token included
    config.model.latent_dim = 128
    config.model.interface_dim = 128
    config.model.latent_mlp_ratio = 2
    config.model.interface_mlp_ratio = 2
    config.model.interface_positions = "sin_cos_plus_learned"
    config.model.norm_context = True

    config.diffusion.prediction_type = "x0"
    config.diffusion.loss_type = "x0"
    config.diffusion.input_scale = 3.0
    config.diffusion.schedule = {"name": "logsnr", "start": 2.0, "end": -9.0}
    config.diffusion.normalize_input = True

    config.sampler.schedule = {"name": "logsnr", "start": 2.0, "end": -9.0}
    config.sampler.num_steps = 50
    config.sampler.guidance_scale = 0.0
    config.sampler.images_per_device = 32  # clips at once; a clip is the same under the same value

    config.data.name = "moving_digits"
    config.data.image_size = 20
    config.data.num_classes = 0
    config.data.clip = ml_collections.ConfigDict()
    config.data.clip.frames = 12
    config.data.clip.cond_frames = 8
    config.data.clip.stride = 1
    config.data.clip.window = "first"

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1.2e-2
    config.optimizer.warmup_steps = 100
    config.optimizer.b1 = 0.95
    config.optimizer.b2 = 0.95

    config.train.batch_size = 32
    config.train.num_steps = 6000

    config.train.sample_every_steps = 1000

    config.ema.power_lengths = ()
    config.ema.snapshot_every_steps = config_dict.placeholder(int)

    config.evaluation.num_samples = 2048
    config.evaluation.networks = ()  # while it trains; docs/evaluation.md has FVD
    config.evaluation.measures = ("psnr", "ssim")
    config.evaluation.real_samples = 2048
    config.evaluation.every_steps = 3000
    config.evaluation.keep_best = False
    config.evaluation.held_out_every_steps = 1000

    if arg == "tiny":
        digits.shrink(config)
        shrink_clips(config)
        config.model.video.patch_frames = 2
        config.ema.snapshot_every_steps = config_dict.placeholder(int)
    return config


def shrink_clips(config: ml_collections.ConfigDict) -> None:
    """Makes the clips of an experiment moving digits at a size for tests."""
    config.model.num_blocks = 2
    config.data.name = "moving_digits"
    config.data.image_size = 16
    config.data.channels = 1
    config.data.clip.frames = 4
    config.data.clip.cond_frames = 2
    config.evaluation.real_samples = 40
    config.sampler.images_per_device = 4
    config.train.batch_size = 8
