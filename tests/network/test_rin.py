"""What must hold of the whole network, whatever its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.network import conditioning
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.network.layers import CrossAttention, SelfAttentionLayer
from rin_jax.network.tokenizer import PatchStem, Readout, patchify, unpatchify
from tests.network.small import BATCH, distance, inputs, param_shapes, random_params, small


@pytest.fixture(scope="module")
def network():
    """(forward(params, *inputs), params, inputs): one compiled program for most tests."""
    rin = small()
    apply = jax.jit(rin.apply)
    return lambda params, *args: apply({"params": params}, *args), random_params(rin), inputs(rin)


@pytest.fixture(scope="module")
def initial():
    """Parameters as initialised."""
    rin = small()
    return jax.jit(rin.init)(jax.random.key(0), *inputs(rin))["params"]


def _without_blocks(params):
    """`params` with blocks that add nothing, so that the latents leave as they entered."""
    zero = {k: jax.tree.map(np.zeros_like, v) for k, v in params.items() if "blocks" in k}
    return params | zero


# Invariance, each with a change that does matter.


def _mix(first, others):
    """The first example of one batch with the others of another."""
    return jax.tree.map(lambda a, b: np.concatenate([a[:1], b[1:]]), first, others)


def _first(batch):
    return jax.tree.map(lambda a: a[:1], batch)


def _others(batch):
    return jax.tree.map(lambda a: a[1:], batch)


def _changed(args):
    images, gamma, cond, previous = args
    previous = jax.tree.map(lambda z: z[::-1] ** 2 + 1, previous)
    cond = {"label": (cond["label"] + 1) % 3}
    return [images + 1.0 + images**2, 1 - gamma, cond, previous]


def test_an_image_ignores_its_batch_mates(network):
    forward, params, args = network
    before, after = forward(params, *args), forward(params, *_mix(args, _changed(args)))
    assert distance(_first(before), _first(after)) < 1e-6
    assert distance(_others(before), _others(after)) > 1e-1


@pytest.mark.parametrize("field", range(4), ids=["image", "gamma", "label", "previous"])
def test_an_image_depends_on_each_of_its_own_inputs(network, field):
    forward, params, args = network
    own = list(args)
    own[field] = _mix(_changed(args)[field], args[field])
    before, after = forward(params, *args), forward(params, *own)
    assert distance(_others(before), _others(after)) < 1e-6
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert distance(a[:1], b[:1]) > 1e-3


def test_permuted_patches_with_their_positions_permute_the_output(network):
    forward, params, (images, gamma, cond, previous) = network
    order = np.random.default_rng(3).permutation(6)

    def shuffle(x):
        return np.asarray(unpatchify(patchify(x, (2, 2))[:, order], (4, 6)))

    args = shuffle(images), gamma, cond, previous | {"interface": previous["interface"][:, order]}
    positions = {"table": params["stem"]["positions"]["table"][order]}
    moved = params | {"stem": params["stem"] | {"positions": positions}}
    image, latents = forward(params, images, gamma, cond, previous)
    new_image, new_latents = forward(moved, *args)
    assert distance(shuffle(image), new_image) < 1e-4
    assert distance(latents["latents"], new_latents["latents"]) < 1e-4
    assert distance(latents["interface"][:, order], new_latents["interface"]) < 1e-4
    assert distance(image, new_image) > 1e-1
    assert distance(shuffle(image), forward(params, *args)[0]) > 1e-1


# Tokens.


def test_latents_are_bank_time_and_class_tokens(network):
    forward, params, (images, gamma, cond, previous) = network
    zeros = jax.tree.map(np.zeros_like, params["prev_latent_norm"])
    params = _without_blocks(params) | {"prev_latent_norm": zeros}
    latents = forward(params, images, gamma, cond, previous)[1]["latents"]
    bank = params["latents"]["table"]
    assert distance(latents[:, :3], np.broadcast_to(bank, (BATCH, *bank.shape))) == 0
    assert distance(latents[:, 4], params["label"]["kernel"] + params["label"]["bias"]) < 1e-6
    turned = jax.tree.map(lambda a: a[::-1], (images, gamma, cond))
    other = forward(params, *turned, previous)[1]["latents"]
    assert distance(latents[:, 3], other[::-1, 3]) < 1e-6  # gamma alone
    assert distance(latents[:, 3], other[:, 3]) > 1e-1


def test_no_label_is_the_bias_alone(network):
    forward, params, (images, gamma, cond, previous) = network
    one = [np.repeat(a[:1], BATCH, 0) for a in (images, gamma)]
    previous = jax.tree.map(lambda z: np.repeat(z[:1], BATCH, 0), previous)
    none = forward(params, *one, {"label": np.full(BATCH, NO_LABEL, np.int32)}, previous)
    assert distance(none, forward(params, *one, conditioning.null(cond), previous)) == 0
    kernel = np.zeros_like(params["label"]["kernel"])
    bias = params | {"label": params["label"] | {"kernel": kernel}}
    assert distance(none, forward(bias, *one, cond, previous)) < 1e-6
    labelled = forward(params, *one, cond, previous)
    for i in range(BATCH):  # labels are 0, 1, 2: every class
        assert distance(none[0][i], labelled[0][i]) > 1e-2


def test_previous_latents_change_nothing_at_initialisation(network, initial):
    forward, _, args = network
    blank = [*args[:3], jax.tree.map(np.zeros_like, args[3])]
    assert distance(forward(initial, *args), forward(initial, *blank)) == 0
    for name in ("latents", "interface"):
        norm = f"prev_{name.removesuffix('s')}_norm"
        moved = initial | {norm: initial[norm] | {"scale": initial[norm]["scale"] + 0.5}}
        expected = forward(moved, *blank)
        assert distance(forward(moved, *args), expected) > 1e-2
        other = args[3] | {name: blank[3][name]}
        assert distance(forward(moved, *args[:3], other), expected) == 0


def test_no_previous_latents_are_zeros(network):
    forward, params, args = network
    zeros = forward(params, *args[:3], jax.tree.map(np.zeros_like, args[3]))
    assert distance(forward(params, *args[:3]), zeros) < 1e-6
    assert distance(forward(params, *args), zeros) > 1e-1


@pytest.mark.parametrize(
    "changes", [{}, {"interface_self_cond": False}, {"num_classes": 0, "latent_self_cond": False}]
)
def test_shapes(changes):
    rin = small(**changes)
    images, gamma, cond, previous = inputs(rin)
    params = param_shapes(rin)
    assert ("label" in params) == bool(rin.num_classes)
    assert params["latents"]["table"].shape == (5 - rin.num_cond_latents, 16)
    assert ("prev_latent_mlp" in params) == rin.latent_self_cond
    assert ("prev_interface_mlp" in params) == rin.interface_self_cond
    for start in (previous, None):
        image, latents = jax.eval_shape(rin.apply, {"params": params}, images, gamma, cond, start)
        assert image.shape == images.shape
        assert jax.tree.map(jnp.shape, latents) == jax.tree.map(jnp.shape, previous)
    if rin.num_classes:
        with pytest.raises(AssertionError):
            jax.eval_shape(rin.apply, {"params": params}, images, gamma, {}, previous)


def test_wrong_shapes_are_refused():
    rin = small(interface_self_cond=False)
    images, gamma, cond, latents = inputs(rin)
    params = {"params": param_shapes(rin)}
    for args in (
        (images.swapaxes(1, 2), gamma, cond, latents),
        (images, gamma[:, None], cond, latents),
        (images, gamma, {"label": cond["label"][:1]}, latents),
        (images, gamma, {}, latents),
        (images, gamma, cond, latents[:, :-1]),
        (images, gamma, cond, latents[:1]),
    ):
        with pytest.raises(AssertionError):
            jax.eval_shape(rin.apply, params, *args)


# Equivalence.


def test_scan_is_a_loop():
    rin = small(num_blocks=4, depth=(1, 1, 2, 0), norm_context=True, interface_self_cond=False)
    params, args, apply = random_params(rin), inputs(rin), jax.jit(rin.apply)

    def loop(params, z, x):
        read = write = CrossAttention(8, 2, 2, True, jnp.float32)
        layer = SelfAttentionLayer(4, 2, 0.0, 0.0, 0.0, jnp.float32)
        for group, index, depth in ((0, 0, 1), (0, 1, 1), (1, 0, 2), (2, 0, 0)):
            block = jax.tree.map(lambda p: p[index], params[f"blocks_{group}"])  # noqa: B023
            z = read.apply({"params": block["read"]}, z, x)
            for i in range(depth):
                compute = jax.tree.map(lambda p: p[i], block["compute"])  # noqa: B023
                z = layer.apply({"params": compute}, z, False)
            if depth:
                x = write.apply({"params": block["write"]}, x, z)
        readout = Readout((2, 2), rin.example_shape, jnp.float32)
        return readout.apply({"params": params["readout"]}, x), z

    z = apply({"params": _without_blocks(params)}, *args)[1]
    stem = PatchStem((2, 2), 8, "learned", 1.0, None, jnp.float32)
    x, _ = stem.apply({"params": params["stem"]}, args[0])
    assert distance(apply({"params": params}, *args), jax.jit(loop)(params, z, x)) < 1e-4
    assert set(params["blocks_2"]) == {"read"}
    swapped = params | {"blocks_0": jax.tree.map(lambda p: p[::-1], params["blocks_0"])}
    assert distance(apply({"params": params}, *args), apply({"params": swapped}, *args)) > 1e-1


def test_equal_depths_are_one_depth():
    def program(rin):
        return str(jax.make_jaxpr(rin.init)(jax.random.key(0), *inputs(rin)))

    assert program(small(depth=(2, 2))) == program(small(depth=2))
    assert program(small(depth=(1, 2))) != program(small(depth=2))


def test_bfloat16_computes_and_float32_keeps(network):
    forward, params, args = network
    rin = small(dtype="bfloat16")
    assert jax.tree.map(lambda p: (p.shape, p.dtype), param_shapes(rin)) == jax.tree.map(
        lambda p: (p.shape, p.dtype), params
    )
    exact, rounded = forward(params, *args), jax.jit(rin.apply)({"params": params}, *args)
    pairs = zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True)
    for a, b in pairs:
        assert b.dtype == jnp.float32
        error = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
        # One rounding to 8 bits is 2^-9 = 0.002; some hundred of them, added as a random walk.
        assert 1e-3 < error < 3e-2


@functools.cache
def _gradient(remat):
    """The gradient of a squared error that every output enters."""
    rin = small(remat=remat, num_blocks=1, depth=2)
    args = inputs(rin)

    def loss(params):
        image, latents = rin.apply({"params": params}, *args)
        return jnp.mean((image - args[0]) ** 2) + jnp.mean(latents["latents"] ** 2)

    return jax.jit(jax.grad(loss))(random_params(rin))


def test_every_parameter_gets_gradient():
    for path, gradient in jax.tree_util.tree_leaves_with_path(_gradient("none")):
        name = jax.tree_util.keystr(path)
        largest = float(jnp.abs(gradient).max())
        if "['key']['bias']" in name:  # adds the same to all scores of a softmax
            assert largest < 1e-6, name
        elif "['compute']" in name:  # in each of its layers
            assert (jnp.abs(gradient[0]).max(range(1, gradient.ndim - 1)) > 1e-6).all(), name
        else:
            assert largest > 1e-6, name


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_keeps_the_gradient(remat):
    expected = _gradient("none")
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    assert distance(_gradient(remat), expected) < 1e-6 * max(scale, 1.0)


def test_remat_saves_memory():
    def saved(remat):
        rin = small(remat=remat, num_blocks=4, depth=2)
        args = inputs(rin)

        def pullback(params):
            return jax.vjp(lambda p: rin.apply({"params": p}, *args)[0], params)[1]

        kept = jax.tree.leaves(jax.eval_shape(pullback, param_shapes(rin)))
        return sum(x.size for x in kept)

    assert saved("full") < 0.8 * saved("dots") < 0.8 * 0.8 * saved("none")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_does_not_grow_with_the_network(remat):
    def lines(num_blocks, depth):
        rin = small(num_blocks=num_blocks, depth=depth, remat=remat)
        args = inputs(rin)

        def loss(params):
            return jnp.mean(rin.apply({"params": params}, *args)[0] ** 2)

        program = jax.jit(jax.grad(loss)).lower(param_shapes(rin))
        return len(program.as_text().splitlines())

    # Blocks and layers differ in number, or equal loops would be written once.
    assert abs(lines(9, 8) / lines(3, 2) - 1) < 0.01


# Dropout.


def test_dropout_draws_from_its_key_in_training_only():
    rin = small(dropout=0.2, attention_dropout=0.2, drop_path=0.2)
    params, args = {"params": random_params(rin)}, inputs(rin)
    train = jax.jit(lambda key: rin.apply(params, *args, train=True, rngs={"dropout": key}))
    first = train(jax.random.key(1))
    assert distance(first, train(jax.random.key(1))) == 0
    assert distance(first, train(jax.random.key(2))) > 1e-2
    plain = small()

    def program(rin):
        return str(jax.make_jaxpr(rin.apply)(params, *args))

    assert program(rin) == program(plain)  # train=False: the rates do not enter


# Initialisation.

ZERO_SCALES = ("prev_latent_norm/scale", "prev_interface_norm/scale")


def test_initialisers(initial):
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(initial)
    }
    kernels = 0
    for name, leaf in leaves.items():
        kind = name.rsplit("/", 1)[1]
        if kind == "scale":
            assert (leaf == (0 if name in ZERO_SCALES else 1)).all(), name
        elif kind == "bias":
            assert not leaf.any(), name
        elif kind == "table":
            assert 0.01 < leaf.std() < 0.025, name
            assert np.abs(leaf).max() <= 0.04, name
        else:
            assert kind == "kernel"
            stacked = ("blocks" in name) + ("compute" in name)
            *field, fan_in, fan_out = leaf.shape[stacked:]
            limit = np.sqrt(6 / (np.prod(field) * (fan_in + fan_out)))
            assert 0.9 * limit < np.abs(leaf).max() <= limit, name
            assert abs(leaf.std() / (limit / np.sqrt(3)) - 1) < 0.2, name
            if stacked:
                assert distance(leaf[0], leaf[1]) > 0.1 * limit, name
            kernels += 1
    assert kernels == 27
    assert initial["blocks_0"]["compute"]["attention"]["query"]["kernel"].shape == (2, 1, 16, 4, 4)
    assert initial["blocks_0"]["write"]["attention"]["key"]["kernel"].shape == (2, 16, 2, 4)
