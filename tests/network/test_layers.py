"""Attention against numpy, dropout, stochastic depth, initialisers, position codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rin_jax.network import embeddings, layers
from rin_jax.network.rin import scan_layers
from tests.network.small import distance, fill


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_softmax_of_scaled_products(qk_norm):
    rng = np.random.default_rng(0)
    queries, context = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 6))
    attention = layers.Attention(num_heads=2, width=4, dtype=jnp.float32, qk_norm=qk_norm)
    args = jnp.float32(queries), jnp.float32(context)
    params = fill(jax.eval_shape(attention.init, jax.random.key(0), *args)["params"])
    q, k, v = (
        np.einsum("btw,whk->bhtk", x, params[name]["kernel"]) + params[name]["bias"][:, None]
        for name, x in (("query", queries), ("key", context), ("value", context))
    )
    assert q.shape == (2, 2, 3, 2)
    if qk_norm:  # of each head, by its root mean square
        q, k = (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params[f"{name}_norm"]["scale"]
            for name, x in (("query", q), ("key", k))
        )
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(2))
    heads = weights / weights.sum(-1, keepdims=True) @ v
    expected = np.einsum("bhqk,hkw->bqw", heads, params["out"]["kernel"]) + params["out"]["bias"]
    assert distance(attention.apply({"params": params}, *args), expected) < 1e-5


@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_the_variance_of_bfloat16_is_lost_to_its_rounding_alone(mean):
    """In one pass over x and its square, also where the mean is many times the deviation."""
    x = jnp.bfloat16(np.random.default_rng(0).normal(mean, 1.0, (64, 512)))
    out = layers.layer_norm("norm", jnp.bfloat16).init_with_output(jax.random.key(0), x)[0]
    exact = np.float64(x)
    exact = exact - exact.mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True))
    # half a unit of the result's last place, and what a mean in float32 leaves
    np.testing.assert_allclose(np.float64(out), exact, rtol=2**-8, atol=2e-5 + 1e-6 * mean)


def _layer(drop_path, examples, attention_dropout=0.0):
    """(apply(params, train), params) of a layer on copies of one example [M 3, E 8]."""
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    x = np.broadcast_to(x, (examples, 3, 8))
    layer = layers.SelfAttentionLayer(2, 2, 0.0, attention_dropout, drop_path, jnp.float32)
    params = fill(jax.eval_shape(lambda k: layer.init(k, x, False), jax.random.key(0))["params"])
    return layer, params, x


def test_stochastic_depth_removes_whole_branches_per_example():
    rate, keep, examples = 0.25, 0.75, 4096
    layer, params, copies = _layer(rate, examples)
    x = copies[:1]

    def branch(name, z):  # what one branch alone adds to z
        other = {"attention": "ffn", "ffn": "attention"}[name]
        zeros = jax.tree.map(np.zeros_like, params[other]["out"])
        alone = params | {other: params[other] | {"out": zeros}}
        return layer.apply({"params": alone}, z, False) - z

    attended = x + branch("attention", x) / keep
    outcomes = {
        rate * rate: x,
        rate * keep + 1e-9: x + branch("ffn", x) / keep,
        rate * keep: attended,
        keep * keep: attended + branch("ffn", attended) / keep,
    }
    out = layer.apply({"params": params}, copies, True, rngs={"dropout": jax.random.key(0)})
    total = 0
    for share, outcome in outcomes.items():
        hits = int((np.abs(out - np.broadcast_to(outcome, out.shape)).max((1, 2)) < 1e-4).sum())
        assert abs(hits / examples - share) < 5 * np.sqrt(share * (1 - share) / examples)
        total += hits
    assert total == examples


def test_no_branch_is_dropped_outside_training():
    layer, params, copies = _layer(0.9, 4, attention_dropout=0.9)
    plain, *_ = _layer(0.0, 4)
    expected = plain.apply({"params": params}, copies, True)
    assert distance(layer.apply({"params": params}, copies, False), expected) == 0


def test_dropout_of_attention_removes_weights_and_keeps_their_mean():
    """Of one head over 1024 keys of equal weight, whose values are ones."""
    keys, rate = 1024, 0.25
    context = np.ones((2, keys, 4), np.float32)
    queries = np.ones((2, 3, 4), np.float32)
    attention = layers.Attention(1, 4, jnp.float32, dropout=rate)
    params = fill(jax.eval_shape(attention.init, jax.random.key(0), queries, context)["params"])
    one = {"kernel": np.zeros((4, 1, 4), np.float32), "bias": np.ones((1, 4), np.float32)}
    out = {"kernel": np.eye(4, dtype=np.float32)[None], "bias": np.zeros(4, np.float32)}
    params |= {"value": one, "out": out}

    def train(key):
        key = {"dropout": jax.random.key(key)}
        return np.asarray(attention.apply({"params": params}, queries, context, True, rngs=key))

    first = train(0)
    kept = first * (1 - rate) * keys  # how many weights were kept
    np.testing.assert_allclose(kept, np.round(kept), atol=0.02)
    assert distance(first, np.broadcast_to(first[..., :1], first.shape)) < 1e-5  # one weight a key
    assert (np.abs(first - 1) < 5 * np.sqrt(rate / (1 - rate) / keys)).all()
    assert len(np.unique(np.round(kept[..., 0]))) > 2  # each query draws its own
    assert distance(first, train(1)) > 1e-3
    assert distance(first, train(0)) == 0
    plain = layers.Attention(1, 4, jnp.float32)
    undropped = plain.apply({"params": params}, queries, context, True)
    assert distance(undropped, np.ones_like(queries)) < 1e-5
    assert distance(attention.apply({"params": params}, queries, context), undropped) == 0


def test_dropout_acts_on_the_hidden_units():
    x = np.random.default_rng(0).normal(size=(64, 5, 16)).astype(np.float32)
    ffn = layers.FeedForward(ratio=1, dropout=0.25, dtype=jnp.float32)
    params = fill(jax.eval_shape(lambda k: ffn.init(k, x, False), jax.random.key(0))["params"])
    params["out"] = {"kernel": np.eye(16, dtype=np.float32), "bias": np.zeros(16, np.float32)}
    hidden = np.asarray(ffn.apply({"params": params}, x, False))
    out = np.asarray(ffn.apply({"params": params}, x, True, rngs={"dropout": jax.random.key(0)}))
    kept = out != 0
    np.testing.assert_allclose(out[kept], hidden[kept] / 0.75, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / out.size)


def test_scanned_layers_draw_their_own_dropout():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(x)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scan_layers(lambda module, z: module(z), 3)(Drop(), x, None)[0]

    out = Stack().apply({}, jnp.ones(4096), rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(out)) == {0.0, 8.0}
    assert abs(float(jnp.mean(out)) - 1) < 5 * np.sqrt(7 / 4096)  # one mask for all: mean 4


@pytest.mark.parametrize(
    ("module", "shape", "limit"),
    [
        (layers.HeadProjection((128,), (8, 16), jnp.float32), (1, 1, 128), 0.0442),
        (layers.HeadProjection((8, 16), (128,), jnp.float32), (1, 1, 128), 0.0722),
    ],
)
def test_projections_count_leading_axes_as_receptive_field(module, shape, limit):
    params = module.init(jax.random.key(0), jnp.zeros(shape))["params"]
    kernel = np.asarray(params["kernel"])
    assert kernel.size == 128 * 128
    assert 0.99 * limit < np.abs(kernel).max() < limit + 5e-5
    assert abs(kernel.std() - limit / np.sqrt(3)) < 0.02 * limit  # uniform
    assert not params["bias"].any()


def test_position_table_is_a_cut_normal():
    table = embeddings.PositionTable((64,), 128, "learned", 1.0).init(jax.random.key(0))
    table = np.asarray(table["params"]["table"])
    assert table.shape == (64, 128)
    assert 0.039 < np.abs(table).max() <= 0.04
    assert abs(table.std() - 0.0176) < 4e-4


def test_learned_part_of_the_sum_starts_at_zero():
    table = embeddings.PositionTable((2, 3), 8, "sin_cos_plus_learned", 5.0)
    variables = table.init(jax.random.key(0))
    codes = embeddings.sincos_positions((2, 3), 8, 5.0)
    assert distance(table.apply(variables), codes) == 0
    moved = jax.tree.map(lambda p: p + 0.5, variables)
    assert distance(table.apply(moved), codes + 0.5) < 1e-6
    fixed = embeddings.PositionTable((2, 3), 8, "sin_cos", 5.0)
    assert "params" not in fixed.init(jax.random.key(0))


def test_products_of_position_codes_depend_on_the_distance_alone():
    width, span, rows, cols = 16, 30.0, 4, 7
    frequencies = 10000.0 ** (-np.arange(4) / 4)  # two axes, sine and cosine: width / 4
    codes = np.asarray(embeddings.sincos_positions((rows, cols), width, span), np.float64)
    y, x = (c.ravel() for c in np.mgrid[0:rows, 0:cols])
    dy = (y[:, None] - y) * span / (rows - 1)
    dx = (x[:, None] - x) * span / (cols - 1)
    expected = np.cos(dy[..., None] * frequencies) + np.cos(dx[..., None] * frequencies)
    assert distance(codes @ codes.T, expected.sum(-1)) < 1e-4
    halves = codes.reshape(rows, cols, 2, width // 2)
    assert distance(halves[:, :1, 0], halves[:, 1:2, 0]) == 0  # the first half knows the row only
    assert distance(halves[:1, :, 1], halves[1:2, :, 1]) == 0


def test_gamma_is_embedded_by_standardised_sinusoids():
    embed = embeddings.ScalarEmbedding(32, 1000.0, jnp.float32)
    gamma = np.float32([0.0, 0.1234, 0.1237, 1.0])
    params = fill(jax.eval_shape(embed.init, jax.random.key(0), gamma)["params"])
    angles = gamma[:, None].astype(np.float64) * 1000 * 10000.0 ** (-np.arange(4) / 4)
    codes = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    codes = (codes - codes.mean(-1, keepdims=True)) / codes.std(-1, keepdims=True)
    hidden = codes @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    expected = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    out = embed.apply({"params": params}, gamma)
    assert out.shape == (4, 1, 32)
    assert distance(out[:, 0], expected) < 1e-3  # angles of 1000 in float32: 3e-5 each
    assert distance(out[1], out[2]) > 1e-1
