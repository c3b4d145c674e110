"""DINOv2's ViT-L/14, whose features FD-DINOv2 compares, as a pure function of its parameters.

A vision transformer on patches of 14 pixels; the feature is its first token after the last norm.
The published position embeddings belong to images of 518 pixels. They are resized for 224 pixels
when a file is loaded, by the authors' rule: bicubic without antialiasing, at a scale to which they
add a tenth of a patch.

Sources: arXiv 2304.07193 and its released code (the network); arXiv 2312.02696 and its released
code (FD-DINOv2: antialiased bicubic resize of 0..255, then ImageNet's mean and deviation).
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from rin_jax import ConfigError
from rin_jax.evaluation import bicubic, weight_files

SIZE, PATCH = 224, 14  # pixels of a side: the image that the network sees, one patch
WIDTH, DEPTH = 1024, 24  # of ViT-L
HEAD = 64  # channels of one attention head, in every published size
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of 0..1
EPSILON = 1e-6  # of layer normalisation
OFFSET = 0.1  # patches that the authors add to a side before they divide by the published one
FULL = lax.Precision.HIGHEST  # else a TPU multiplies in bfloat16 and a GPU in TF32


def extract(params: dict, images: jax.Array) -> dict[str, jax.Array]:
    """Features of images [B, H, W, 3], float32 of 0..255: "pool" [B, width], which is 1024."""
    x = bicubic.bicubic(images, (SIZE, SIZE)) / 255
    x = (x - jnp.asarray(MEAN).reshape(1, 1, 1, 3)) / jnp.asarray(DEVIATION).reshape(1, 1, 1, 3)
    x = lax.conv_general_dilated(
        x, params["patch"]["kernel"], (PATCH, PATCH), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=FULL,
    )  # fmt: skip
    x = x.reshape(len(x), -1, x.shape[-1]) + params["patch"]["bias"].reshape(1, 1, -1)
    first = jnp.broadcast_to(params["first"], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"]
    x, _ = lax.scan(lambda x, block: (_block(block, x), None), x, params["blocks"])
    return {"pool": _norm(params["norm"], x)[:, 0]}


def _block(params: dict, x: jax.Array) -> jax.Array:
    attended = _attention(params, _norm(params["norm1"], x))
    x = x + _scaled(params["ls1"], attended)
    hidden = jax.nn.gelu(_dense(params["fc1"], _norm(params["norm2"], x)), approximate=False)
    return x + _scaled(params["ls2"], _dense(params["fc2"], hidden))


def _attention(params: dict, x: jax.Array) -> jax.Array:
    qkv = _dense(params["qkv"], x).reshape(*x.shape[:2], 3, -1, HEAD)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, N, heads, HEAD]
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision=FULL) / HEAD**0.5
    mixed = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v, precision=FULL)
    return _dense(params["proj"], mixed.reshape(x.shape))


def _dense(params: dict, x: jax.Array) -> jax.Array:
    return jnp.matmul(x, params["kernel"], precision=FULL) + params["bias"].reshape(1, 1, -1)


def _scaled(scale: jax.Array, x: jax.Array) -> jax.Array:
    return x * scale.reshape(1, 1, -1)


def _norm(params: dict, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
    return _scaled(params["scale"], x) + params["bias"].reshape(1, 1, -1)


def params_of(arrays: Mapping[str, np.ndarray]) -> dict:
    """The parameters of a file's arrays, named as by the authors and in timm.

    Width and depth are those of the arrays, so that a smaller network can be read too. The blocks
    are stacked along a first axis.

    Raises:
      ConfigError: as `weight_files.take`, the first array that is wrong is named; or the file is
        of a network with registers, which is another one.
    """
    registers = {"register_tokens", "reg_token"} & set(arrays)
    if registers:
        raise ConfigError(f"its array {registers.pop()} is of a network with registers.")
    width = np.size(arrays.get("cls_token", np.zeros(WIDTH)))
    depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")}) or 1

    def take(name: str, *shape: int) -> np.ndarray:
        return weight_files.take(arrays, name, shape).astype(np.float32)

    params = {
        "first": take("cls_token", 1, 1, width),
        "positions": _positions(arrays, width),
        "patch": {
            "kernel": take("patch_embed.proj.weight", width, 3, PATCH, PATCH).transpose(2, 3, 1, 0),
            "bias": take("patch_embed.proj.bias", width),
        },
        "norm": {"scale": take("norm.weight", width), "bias": take("norm.bias", width)},
    }
    blocks = [_block_of(take, f"blocks.{i}", width) for i in range(depth)]
    params["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    return jax.tree.map(jnp.asarray, params)


def _block_of(take: Callable[..., np.ndarray], name: str, width: int) -> dict:
    def norm(part: str) -> dict:
        return {
            "scale": take(f"{name}.{part}.weight", width),
            "bias": take(f"{name}.{part}.bias", width),
        }

    def dense(part: str, fan_in: int, fan_out: int) -> dict:
        return {
            "kernel": take(f"{name}.{part}.weight", fan_out, fan_in).T,
            "bias": take(f"{name}.{part}.bias", fan_out),
        }

    return {
        "norm1": norm("norm1"),
        "qkv": dense("attn.qkv", width, 3 * width),
        "proj": dense("attn.proj", width, width),
        "ls1": take(f"{name}.ls1.gamma", width),
        "norm2": norm("norm2"),
        "fc1": dense("mlp.fc1", width, 4 * width),
        "fc2": dense("mlp.fc2", 4 * width, width),
        "ls2": take(f"{name}.ls2.gamma", width),
    }


def _positions(arrays: Mapping[str, np.ndarray], width: int) -> np.ndarray:
    """Position embeddings [1, 1 + 16 * 16, width], resized if the file's are for other images."""
    tokens = np.size(arrays.get("pos_embed", ())) // width
    positions = weight_files.take(arrays, "pos_embed", (1, tokens, width))[0]
    source, target = math.isqrt(max(tokens - 1, 0)), SIZE // PATCH
    if source**2 != tokens - 1:
        raise ConfigError(f"its array pos_embed has {tokens - 1} patches, which are not a square.")
    if source != target:
        axis = bicubic.plain(source, target, step=source / (target + OFFSET))
        grid = positions[1:].reshape(source, source, width)
        grid = np.einsum("oh,pw,hwc->opc", axis, axis, grid, optimize=True)
        positions = np.concatenate([positions[:1], grid.reshape(-1, width)])
    return positions[None].astype(np.float32)


def load(path: epath.PathLike) -> tuple[dict, str]:
    """(parameters, SHA-256) of a file of ViT-L/14, such as `dinov2_vitl14_pretrain.pth`.

    Raises:
      ConfigError: the file is missing, damaged or of another network.
    """

    def vit_large(arrays):
        params = params_of(arrays)
        depth, _, width = np.shape(params["blocks"]["proj"]["kernel"])
        if (depth, width) != (DEPTH, WIDTH):
            raise ConfigError(f"it has {depth} blocks of width {width}, not {DEPTH} of {WIDTH}.")
        return params

    return weight_files.load(path, "DINOv2's ViT-L/14 without registers", vit_large)
