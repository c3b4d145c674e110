"""The names of a network's parameters outside JAX: the path in the parameter tree, dotted.

`blocks_0.read.mlp.norm.scale` is params["blocks_0"]["read"]["mlp"]["norm"]["scale"], of the same
shape: layers that the network scans over stay stacked along the leading axes.
"""

from collections.abc import Mapping
from typing import Any

import jax


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter tree as {name: leaf}; the leaves themselves, not copies."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


def nest(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in tensors.items():
        *parents, last = name.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
