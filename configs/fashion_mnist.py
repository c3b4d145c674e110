"""Fashion-MNIST, 28 x 28 grey photographs of clothes, class-conditional, for two CPU cores.

    python -m rin_jax.main --config=configs/fashion_mnist.py --mode=prepare
    python -m rin_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Without the internet, and where Debian's package dataset-fashion-mnist is installed, the first
command needs --downloaded=/usr/share/datasets/fashion-mnist. Nothing about this experiment is
published; all numbers are our choice, and those that are not here are the digits' or of
modern.py. What was measured is in docs/results.md.

    parameters  1,578,260
    GFLOPs      0.1 forward, one image (0.068)
"""

import ml_collections

from configs import digits, modern


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The experiment; "tiny" is the same at a size for tests, on the digits."""
    if arg not in ("", "tiny"):
        raise ValueError(f"fashion_mnist.py has no variant {arg!r}; choose 'tiny' or none.")
    config = digits.get_config()
    modern.change(config)

    # 196 narrow interface tokens and few latents cost what 49 wide ones and many latents do
    config.model.patch_size = 2
    config.model.num_blocks = 3
    config.model.num_latents = 12  # time and class token included
    config.model.latent_dim = 128
    config.model.interface_dim = 48
    config.model.latent_mlp_ratio = 3
    config.model.interface_mlp_ratio = 3

    config.diffusion.logit_normal_times = (0.0, 1.0)  # mean and standard deviation

    config.sampler.name = "dpmpp_2m"
    config.sampler.num_steps = 25
    config.sampler.guidance_scale = 0.3
    config.sampler.guidance_latents = "own"

    config.data.name = "fashion_mnist"
    config.data.flip = False  # all shoes point to the left

    config.train.batch_size = 128
    config.train.num_steps = 4000
    config.train.log_every_steps = 100

    config.ema.decays = ()  # the power averages alone
    config.ema.snapshot_every_steps = 1000

    config.evaluation.num_samples = 10_000
    config.evaluation.every_steps = 4000
    config.evaluation.held_out_every_steps = 1000

    if arg == "tiny":
        digits.shrink(config)
        config.data.name = "digits"
        config.data.image_size = 8
    return config
