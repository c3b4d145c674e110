"""What the network calls its parameters: a module that is renamed fails here."""

import jax
import numpy as np
import pytest

from rin_jax.network import partitioning
from rin_jax.network.partitioning import param_shapes
from tests.network.small import SEQUENCE, fill, inputs, small

VARIANTS = (
    {},
    {"norm_context": True, "qk_norm": True, "num_blocks": 3, "depth": (1, 1, 0)},
    {"time_on_latents": False, "label_on_latents": False, "cond_route": "decoupled"},
    {"num_classes": 0, "latent_self_cond": False, "interface_self_cond": False},
    {"sequence": SEQUENCE, "conv_size": 3, "example_shape": (9, 2), "patch_size": 1},
)


def paths(rin) -> dict:
    """{path: shape} of all parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(rin))
    return {partitioning.names(path): leaf.shape for path, leaf in leaves}


def test_every_module_is_known_and_every_row_is_used():
    known = {path for changes in VARIANTS for path in paths(small(**changes))}
    seen = {partitioning.module_of(path) for path in known}
    outside = {module for module in seen if "." not in module}
    inside = {module.partition(".")[2] for module in seen if "." in module}
    assert outside == set(partitioning.MODULES)
    assert inside == set(partitioning.BLOCK_MODULES)
    for path in (("stern", "kernel"), ("blocks_0", "reed", "norm", "scale"), ("blocks", "read")):
        with pytest.raises(KeyError, match=path[0]):
            partitioning.module_of(path)


def test_every_row_of_the_axes_names_a_parameter_and_splits_it_evenly():
    """Heads and hidden units have the sizes that the network's attributes say."""
    rin = small()
    known = paths(rin)
    for row in partitioning.AXES:
        assert any(path[-len(row) :] == row for path in known), row
    for path, shape in known.items():
        axes = partitioning.logical_axes(path, len(shape))
        assert len(axes) == len(shape)
        if "heads" in axes:
            heads = rin.num_heads if "compute" in path else rin.routing_heads
            assert shape[axes.index("heads")] == heads, path
        if {"hidden", "width"} <= set(axes):  # both ratios are 2
            assert shape[axes.index("hidden")] == 2 * shape[axes.index("width")], path
        attention = "attention" in path and path[-1] == "kernel"
        assert ("heads" in axes) or not attention, path
        matrix = partitioning.matrix_axes(path, len(shape))
        inside = "attention" in path or "ffn" in path
        assert (matrix is not None) == (inside and path[-1] == "kernel"), path
        assert ("hidden" in axes) or not ("ffn" in path and path[-1] == "kernel"), path


def test_stacked_axes_are_those_that_grow_with_blocks_and_layers():
    base, blocks, layers = (
        paths(small(num_blocks=b, depth=d)) for b, d in ((2, 3), (5, 3), (2, 7))
    )
    for path, shape in base.items():
        grown = [
            axis
            for other in (blocks, layers)
            for axis, (a, b) in enumerate(zip(shape, other[path], strict=True))
            if a != b
        ]
        assert grown == list(range(partitioning.stacked_axes(path))), path


def test_names_are_those_below_a_state():
    tree = {"emas": {"decay_0.9": {"stem": {"kernel": np.zeros(1)}}}}
    ((path, _),) = jax.tree_util.tree_leaves_with_path(tree)
    assert partitioning.names(path) == ("stem", "kernel")


def test_what_is_decayed():
    kinds = {path[-1]: partitioning.is_decayed(path) for path in paths(small())}
    assert kinds == {"kernel": True, "table": True, "bias": False, "scale": False}


def test_the_table_of_the_interface_is_told_from_that_of_the_latents():
    found = [path for path in paths(small()) if partitioning.is_interface_positions(path)]
    assert found == [("stem", "positions", "table")]


def test_a_network_takes_cast_kernels_as_it_takes_its_own():
    """What it gives is the same to the bit, and float32 kernels are those of before."""
    rin = small(dtype="bfloat16")
    params, arguments = fill(param_shapes(rin)), inputs(rin)
    cast = partitioning.cast_kernels(rin, params)
    changed = {path: leaf.dtype.name for path, leaf in leaves_of(cast).items()}
    for path, name in changed.items():
        matrix = partitioning.matrix_axes(path, leaves_of(params)[path].ndim)
        assert name == ("float32" if matrix is None else "bfloat16"), path
    outs = [rin.apply({"params": tree}, *arguments) for tree in (params, cast)]
    jax.tree.map(np.testing.assert_array_equal, *outs)
    jax.tree.map(np.testing.assert_array_equal, partitioning.cast_kernels(small(), params), params)


def leaves_of(params) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {partitioning.names(path): leaf for path, leaf in leaves}
