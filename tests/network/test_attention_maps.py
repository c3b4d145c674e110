"""Attention that is kept on request: right, and free for those who do not ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.network.attention import plain, split
from rin_jax.network.attention_maps import apply_with_reads
from rin_jax.network.layers import attention_weights
from rin_jax.network.tokenizer import patchify, unpatchify
from tests.network.small import VIDEO, inputs, param_shapes, random_params, small

CLIP = {"example_shape": (3, 4, 4, 2), "video": VIDEO}
CASES = {
    "plain": {},
    "groups of blocks": {"num_blocks": 3, "depth": (1, 1, 0)},
    "remat": {"remat": "full"},
    "cond tokens": {"time_on_latents": False, "label_on_latents": False},
    "video": CLIP,
    "frames before": CLIP | {"cond_frames": 1},
}


@functools.cache
def watched(rin):
    """The compiled program: (params, *inputs) -> (prediction, latents, reads)."""
    return jax.jit(lambda *x: apply_with_reads(rin, *x))


def test_weights_are_those_that_attention_applies():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.float32(rng.normal(size=(2, n, 3 * 4))) for n in (5, 7, 7))
    weights = attention_weights(query, key, 3)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        jnp.einsum("bhqs,bshk->bqhk", weights, split(value, 3)).reshape(query.shape),
        plain(query, key, value, 3),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("case", CASES)
def test_watching_changes_neither_parameters_nor_outputs(case):
    rin = small(**CASES[case])
    args = inputs(rin)
    variables = jax.eval_shape(rin.init, jax.random.key(0), *args)
    assert set(variables) == {"params"}
    params = random_params(rin)
    expected = jax.jit(rin.apply)({"params": params}, *args)
    *outputs, reads = watched(rin)(params, *args)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        tuple(outputs),
        expected,
    )
    blocks = len(rin.depths)
    assert reads.shape == (3, blocks, *((2, 2, 2) if "video" in CASES[case] else (2, 3)))
    sums = np.asarray(reads.sum(range(2, reads.ndim)))
    if case in ("cond tokens", "frames before"):
        assert (sums < 1 - 1e-3).all()
    else:
        np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert np.abs(reads[:, 0] - reads[:, -1]).max() > 1e-3  # each block has its own


def test_nothing_is_computed_for_those_who_do_not_ask():
    rin = small()
    args = (param_shapes(rin), *inputs(rin))

    def size(function):
        return len(jax.jit(function).lower(*args).as_text().splitlines())

    asked = size(lambda params, *x: apply_with_reads(rin, params, *x))
    plain = size(lambda params, *x: rin.apply({"params": params}, *x))
    assert asked > plain
    closed = jax.make_jaxpr(lambda params, *x: rin.apply({"params": params}, *x))(*args)
    assert "weights" not in str(closed)


@pytest.mark.parametrize(
    "changes",
    [{}, CLIP | {"example_shape": (4, 4, 4, 2), "cond_frames": 1}],
    ids=["image", "video"],
)
def test_reads_lie_on_their_patches(changes):
    """Without positions the reads of a rearranged example are its reads, rearranged.

    Its rows of patches are turned around, or the times of a video.
    """
    rin = small(**(changes | {"interface_self_cond": False}))
    params = random_params(rin)
    table = params["stem"]["positions"]["table"]
    flat = {**params, "stem": {**params["stem"], "positions": {"table": np.zeros_like(table)}}}
    xt, gamma, cond, latents = inputs(rin)
    order = np.arange(rin.num_tokens).reshape(rin.grid)[::-1].ravel()
    moved = np.asarray(unpatchify(patchify(xt, rin.patch)[:, order], xt.shape[1:-1]))


    def reads(params, images):
        return np.asarray(watched(rin)(params, images, gamma, cond, latents)[2])

    np.testing.assert_allclose(
        reads(flat, moved), reads(flat, xt)[:, :, ::-1], rtol=1e-4, atol=1e-6
    )
    assert np.abs(reads(params, moved) - reads(params, xt)[:, :, ::-1]).max() > 1e-3
    assert np.abs(reads(flat, moved) - reads(flat, xt)).max() > 1e-3


def test_reads_come_in_the_order_of_the_blocks():
    """Also with more than ten groups, whose names do not sort as their numbers do."""
    rin = small(num_blocks=12, depth=(1, 0) * 6)
    args, params = inputs(rin), random_params(rin)

    def reads(params):
        return watched(rin)(params, *args)[2]

    before = np.asarray(reads(params))
    for group in range(12):
        query = params[f"blocks_{group}"]["read"]["attention"]["query"]
        moved = jax.tree.map(lambda x: x, params)
        moved[f"blocks_{group}"]["read"]["attention"]["query"] = {
            "kernel": query["kernel"] * 3, "bias": query["bias"],
        }  # fmt: skip
        changed = np.abs(np.asarray(reads(moved)) - before).max(axis=(0, 2, 3)) > 1e-6
        assert list(np.flatnonzero(changed)[:1]) == [group]  # and those after it, not before
