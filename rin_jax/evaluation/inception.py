"""FID's own Inception-v3, of 2015-12-05, as a pure function of its parameters.

It is not the Inception-v3 of the model libraries: average pools leave padding out, the pool branch
of the last block takes the maximum, and there are 1008 logits. Its batch normalisation (epsilon
1e-3) is folded into the convolutions when a file is loaded.

An image goes in by one of two protocols; their distances must not be compared with each other:

    adm         round to 0, 1, ..., 255, TF1 bilinear resize, (x - 128) / 128
    rin_tfgan   half-pixel bilinear resize of x / 255, unrounded, clip to 0..1, 2 x - 1

Sources: the graph inception-2015-12-05 (arXiv 1512.00567, arXiv 1706.08500), read by ADM's
evaluator (arXiv 2105.05233) and ported by torch-fidelity; `rin_tfgan` is what the authors of RIN
(arXiv 2212.11972) do around TF-GAN's Inception.
"""

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from rin_jax import one_of
from rin_jax.evaluation import resize, weight_files
from rin_jax.evaluation.folding import fold
from rin_jax.evaluation.protocol import PROTOCOLS

SIZE = 299  # pixels of a side that the network sees
FEATURES, LOGITS = 2048, 1008
EPSILON = 1e-3  # of batch normalisation
SPATIAL = 7  # channels of the 1 x 1 branch of Mixed_6d, the graph's mixed_6/conv, for sFID
FULL = lax.Precision.HIGHEST  # else a TPU multiplies in bfloat16 and a GPU in TF32
# Batch normalisation in files: scale, shift, mean, variance.
TORCH_NORM = ("weight", "bias", "running_mean", "running_var")
GRAPH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")

Params = dict[str, dict[str, jax.Array]]


class Conv(NamedTuple):
    """A convolution with ReLU; names are those of PyTorch's ports."""

    name: str
    width: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"


class Block(NamedTuple):
    """Branches that see the same input, and whose outputs are concatenated."""

    name: str
    branches: tuple["Steps", ...]


Steps = tuple[Conv | Block | str, ...]  # a word is a pool


def _conv(name: str, width: int, kernel: int | tuple[int, int], *options) -> Conv:
    return Conv(name, width, kernel if isinstance(kernel, tuple) else (kernel, kernel), *options)


def _chain(name: str, *convs: tuple) -> Steps:
    """Convolutions NAME_1, NAME_2, ..., each (width, kernel, options)."""
    return tuple(_conv(f"{name}_{i}", *conv) for i, conv in enumerate(convs, 1))


HALVE = 2, "VALID"


def _a(name: str, pool: int) -> Block:
    return Block(name, (
        (_conv("branch1x1", 64, 1),),
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        ("average", _conv("branch_pool", pool, 1)),
    ))  # fmt: skip


def _c(name: str, width: int) -> Block:
    row, column = (width, (1, 7)), (width, (7, 1))
    return Block(name, (
        (_conv("branch1x1", 192, 1),),
        _chain("branch7x7", (width, 1), row, (192, (7, 1))),
        _chain("branch7x7dbl", (width, 1), column, row, column, (192, (1, 7))),
        ("average", _conv("branch_pool", 192, 1)),
    ))  # fmt: skip


def _e(name: str, pool: str) -> Block:
    def fork(branch: str) -> Block:
        return Block("", ((_conv(f"{branch}a", 384, (1, 3)),), (_conv(f"{branch}b", 384, (3, 1)),)))

    return Block(name, (
        (_conv("branch1x1", 320, 1),),
        (*_chain("branch3x3", (384, 1)), fork("branch3x3_2")),
        (*_chain("branch3x3dbl", (448, 1), (384, 3)), fork("branch3x3dbl_3")),
        (pool, _conv("branch_pool", 192, 1)),
    ))  # fmt: skip


TO_SPATIAL: Steps = (
    _conv("Conv2d_1a_3x3", 32, 3, *HALVE),
    _conv("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
    _conv("Conv2d_2b_3x3", 64, 3),
    "halve",
    _conv("Conv2d_3b_1x1", 80, 1),
    _conv("Conv2d_4a_3x3", 192, 3, 1, "VALID"),
    "halve",
    _a("Mixed_5b", 32),
    _a("Mixed_5c", 64),
    _a("Mixed_5d", 64),
    Block("Mixed_6a", (
        (_conv("branch3x3", 384, 3, *HALVE),),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3, *HALVE)),
        ("halve",),
    )),
    _c("Mixed_6b", 128),
    _c("Mixed_6c", 160),
    _c("Mixed_6d", 160),
)  # fmt: skip
TO_POOL: Steps = (
    _c("Mixed_6e", 192),
    Block("Mixed_7a", (
        _chain("branch3x3", (192, 1), (320, 3, *HALVE)),
        _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, *HALVE)),
        ("halve",),
    )),
    _e("Mixed_7b", "average"),
    _e("Mixed_7c", "maximum"),
)  # fmt: skip


def extract(params: Params, images: jax.Array, protocol: str) -> dict[str, jax.Array]:
    """Features of images [B, H, W, 3], float32 of 0..255; what lies outside is clipped.

    Returns:
      "pool" [B, 2048] for FID, "spatial" [B, 2023] for sFID and "logits" [B, 1008], without their
      bias, for the Inception score.

    Raises:
      ConfigError: the protocol is unknown.
    """
    return features(params, normalized(images, protocol))


def normalized(images: jax.Array, protocol: str) -> jax.Array:
    """Images as the network sees them, [B, 299, 299, 3] of about -1..1; see `extract`."""
    one_of("protocol", protocol, PROTOCOLS)
    if protocol == "adm":
        whole = jnp.clip(jnp.round(images), 0, 255)
        return (resize.bilinear(whole, (SIZE, SIZE), half_pixel=False) - 128) / 128
    return 2 * jnp.clip(resize.bilinear(images / 255, (SIZE, SIZE), half_pixel=True), 0, 1) - 1


def features(params: Params, x: jax.Array) -> dict[str, jax.Array]:
    """What `extract` returns, of images that are resized and normalised."""
    x = _run(TO_SPATIAL, params, x)
    spatial = x[..., :SPATIAL].reshape(len(x), -1)
    pool = jnp.mean(_run(TO_POOL, params, x), axis=(1, 2))
    logits = jnp.matmul(pool, params["fc"]["kernel"], precision=FULL)
    return {"pool": pool, "spatial": spatial, "logits": logits}


def _run(steps: Steps, params: Params, x: jax.Array, prefix: str = "") -> jax.Array:
    """Runs steps one after the other, those of the block whose parameters have this prefix."""
    for step in steps:
        if isinstance(step, str):
            x = POOLS[step](x)
        elif isinstance(step, Block):
            inside = _inside(prefix, step)
            branches = [_run(branch, params, x, inside) for branch in step.branches]
            x = jnp.concatenate(branches, axis=-1)
        else:
            x = _convolve(step, params[prefix + step.name], x)
    return x


def _inside(prefix: str, block: Block) -> str:
    return f"{prefix}{block.name}." if block.name else prefix


def _convolve(conv: Conv, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = lax.conv_general_dilated(
        x, params["kernel"], (conv.stride, conv.stride), conv.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=FULL,
    )  # fmt: skip
    return jax.nn.relu(x + params["bias"].reshape(1, 1, 1, -1))


def _pool(x: jax.Array, combine: Callable, stride: int, outside: float | None) -> jax.Array:
    """Combines 3 x 3 neighbours, first down the columns; `outside` pads, None leaves the borders.

    Shifted slices, because XLA's window reductions use one core of a CPU.
    """
    if outside is not None:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=outside)
    for axis in (1, 2):
        shifted = (lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, stride, axis) for i in range(3))
        x = functools.reduce(combine, shifted)
    return x


def _average(x: jax.Array) -> jax.Array:
    """The mean of the 3 x 3 neighbours that are inside the image."""
    rows, columns = (np.convolve(np.ones(side), np.ones(3), "same") for side in x.shape[1:3])
    share = jnp.asarray(1 / np.outer(rows, columns)[None, :, :, None], x.dtype)
    return _pool(x, jnp.add, 1, 0.0) * jnp.broadcast_to(share, x.shape)


POOLS = {
    "halve": lambda x: _pool(x, jnp.maximum, 2, None),
    "maximum": lambda x: _pool(x, jnp.maximum, 1, -jnp.inf),
    "average": _average,
}


class Place(NamedTuple):
    """Where a file has a convolution."""

    name: str  # in PyTorch's ports
    scope: str  # in the TensorFlow graph
    shape: tuple[int, int, int, int]  # of the kernel: height, width, input and output channels


def places() -> Iterator[Place]:
    """All convolutions.

    The graph counts what a scope has of each kind: conv, conv_1, ...; a block is a "mixed", a
    branch of more than one step a "tower".
    """
    yield from _places(TO_SPATIAL + TO_POOL, 3, "", "", Counter())


def _places(
    steps: Steps, channels: int, prefix: str, scope: str, counts: Counter[str]
) -> Generator[Place, None, int]:
    """Those of steps that see so many channels; returns how many come out."""

    def unique(kind: str) -> str:
        counts[kind] += 1
        return kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"

    for step in steps:
        if isinstance(step, Conv):
            shape = (*step.kernel, channels, step.width)
            yield Place(prefix + step.name, unique(f"{scope}conv"), shape)
            channels = step.width
        elif isinstance(step, Block):
            block, out = unique(f"{scope}mixed"), 0
            for branch in step.branches:
                inside = block if len(branch) == 1 else unique(f"{block}/tower")
                args = channels, _inside(prefix, step), f"{inside}/", counts
                out += yield from _places(branch, *args)
            channels = out
    return channels


def params_of(arrays: Mapping[str, np.ndarray]) -> Params:
    """The parameters of a file's arrays, named as in PyTorch's ports or as in the graph.

    Raises:
      ConfigError: as `weight_files.take`; the first array that is wrong is named.
    """
    take = functools.partial(weight_files.take, arrays)
    graph = "softmax/weights" in arrays
    params = {}
    for name, scope, (height, width, fan_in, fan_out) in places():
        if graph:
            kernel = take(f"{scope}/conv2d_params", (height, width, fan_in, fan_out))
            norm = [f"{scope}/batchnorm/{part}" for part in GRAPH_NORM]
        else:
            kernel = take(f"{name}.conv.weight", (fan_out, fan_in, height, width))
            kernel = kernel.transpose(2, 3, 1, 0)
            norm = [f"{name}.bn.{part}" for part in TORCH_NORM]
        params[name] = fold(kernel, *(take(part, (fan_out,)) for part in norm), EPSILON)
    last = "softmax/weights" if graph else "fc.weight"
    kernel = take(last, (FEATURES, LOGITS) if graph else (LOGITS, FEATURES))
    params["fc"] = {"kernel": jnp.asarray(kernel if graph else kernel.T, jnp.float32)}
    return params


def load(path: epath.PathLike) -> tuple[Params, str]:
    """(parameters, SHA-256) of a file; ConfigError as `weight_files.load`."""
    return weight_files.load(path, "FID's Inception-v3", params_of)
