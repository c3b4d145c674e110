"""What the network calls its parameters, said once: shapes, modules, layers, logical axes.

Sharding, optimizer, metrics and fine-tuning ask here and spell no name themselves. A path is the
tuple of names that leads to a parameter: ("blocks_0", "read", "attention", "query", "kernel").
"""

import functools
import re

import jax
import jax.numpy as jnp

from rin_jax.network.rin import RIN

Path = tuple[str, ...]
Shapes = dict  # the parameter tree with jax.ShapeDtypeStruct as leaves

# Modules outside the blocks, and those of a block.
MODULES = (
    "stem", "latents", "time", "label", "sequence", "prev_latent_mlp", "prev_latent_norm",
    "prev_interface_mlp", "prev_interface_norm", "readout",
)  # fmt: skip
BLOCK_MODULES = ("read_cond", "read", "compute", "write", "conv")
BLOCKS = re.compile(r"blocks_\d+")  # a group of blocks of equal depth, applied by scan

# Logical axes of a parameter's last axes, by the end of its path; the others have no name. An axis
# that no row names is not split by heads or hidden units.
AXES = {
    **{(name, "kernel"): ("width", "heads", "head") for name in ("query", "key", "value")},
    **{(name, "bias"): ("heads", "head") for name in ("query", "key", "value")},
    ("attention", "out", "kernel"): ("heads", "head", "width"),
    ("ffn", "hidden", "kernel"): ("width", "hidden"),
    ("ffn", "hidden", "bias"): ("hidden",),
    ("ffn", "out", "kernel"): ("hidden", "width"),
}


@functools.partial(jax.jit, static_argnums=0)  # traced once for shapes and for arrays
def new_params(rin: RIN, key: jax.Array) -> dict:
    """Fresh parameters of a network."""
    xt, gamma = jnp.zeros((1, *rin.example_shape)), jnp.zeros((1,))
    cond = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rin.abstract_cond(1))
    return rin.init(key, xt, gamma, cond)["params"]


@functools.cache
def param_shapes(rin: RIN) -> Shapes:
    """A network's parameter tree as shapes and dtypes, without any array. Not to be changed."""
    return jax.eval_shape(functools.partial(new_params, rin), jax.random.key(0))


def names(path: tuple) -> Path:
    """The names in a key path of JAX, without those of what is around a parameter tree."""
    found = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    heads = (i for i, name in enumerate(found) if name in MODULES or BLOCKS.fullmatch(name))
    return found[next(heads, 0) :]


def module_of(path: Path) -> str:
    """The module of a parameter, "stem" or "blocks_0.read"; KeyError if there is no such one."""
    head, *rest = path
    if BLOCKS.fullmatch(head) and rest[0] in BLOCK_MODULES:
        return f"{head}.{rest[0]}"
    if head not in MODULES:
        raise KeyError(f"{'/'.join(path)} is in no module of network/partitioning.py")
    return head


def stacked_axes(path: Path) -> int:
    """Leading layer axes of a parameter: one inside blocks, two inside their compute layers."""
    inside = bool(path) and BLOCKS.fullmatch(path[0]) is not None
    return inside + (inside and path[1] == "compute")


def logical_axes(path: Path, ndim: int) -> tuple[str | None, ...]:
    """A name, or None, for each of the axes of a parameter."""
    axes = next((AXES[path[-n:]] for n in (2, 3) if path[-n:] in AXES), ())
    return (None,) * (ndim - len(axes)) + axes


def matrix_axes(path: Path, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes of what comes in and of what goes out, of a kernel of attention or an MLP; or None.

    The other axes are those of layers.
    """
    axes = logical_axes(path, ndim)
    named = tuple(axis for axis, name in enumerate(axes) if name)
    if path[-1] != "kernel" or not named:
        return None
    split = 1 if axes[named[0]] == "width" else -1
    return named[:split], named[split:]


@jax.named_scope("cast_kernels")
def cast_kernels(rin: RIN, params: dict) -> dict:
    """The parameters with the kernels of attention and MLPs in the network's dtype.

    The network takes them in that dtype anyway. Cast before its scans, their gradients are stacked
    over layers in that dtype too, and not in float32 with the same values.
    """

    def cast(path, x):
        return x if matrix_axes(names(path), x.ndim) is None else x.astype(rin.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def is_decayed(path: Path) -> bool:
    """Whether a parameter is decayed and adapted: a kernel or a table."""
    return path[-1] not in ("bias", "scale")


def is_interface_positions(path: Path) -> bool:
    """Whether this is a table [tokens, D] of the positions of the interface."""
    return path[-2:] == ("positions", "table")
