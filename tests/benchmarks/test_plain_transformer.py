"""The network that RIN is compared with: its layers one after the other, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import plain_transformer
from benchmarks.plain_transformer import PlainTransformer
from rin_jax.experiment import make_experiment
from rin_jax.network import cost
from rin_jax.network.embeddings import ScalarEmbedding
from rin_jax.network.layers import SelfAttentionLayer
from rin_jax.network.partitioning import module_of, names, param_shapes, stacked_axes
from rin_jax.network.tokenizer import PatchStem, Readout
from tests.network.small import BATCH, SMALL, inputs
from tests.network.test_cost import matmul_flops
from tests.test_configs import load

CHANGES = {"num_blocks": 2, "depth": 2, "interface_self_cond": False}


@pytest.fixture(scope="module")
def network():
    return PlainTransformer(**(SMALL | CHANGES))


def test_as_its_layers_one_after_the_other(network):
    xt, gamma, cond, latents = inputs(network)
    shapes, rng = param_shapes(network), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    found, carried = network.apply({"params": params}, xt, gamma, cond, latents)
    assert not carried.any()

    width = network.interface_dim
    float32 = jnp.dtype("float32")
    stem = PatchStem((2, 2), width, "learned", 1000.0, None, float32)
    x, _ = stem.apply({"params": params["stem"]}, xt)
    time = ScalarEmbedding(width, 1000.0, float32).apply({"params": params["time"]}, gamma)
    one_hot = np.eye(3)[np.asarray(cond["label"])] * (np.asarray(cond["label"]) >= 0)[:, None]
    label = one_hot @ params["label"]["kernel"] + params["label"]["bias"]
    x = jnp.concatenate([x, time, label[:, None].astype(np.float32)], axis=1)
    layer = SelfAttentionLayer(4, 2, 0.0, 0.0, 0.0, float32)
    for block in range(2):
        for depth in range(2):
            own = jax.tree.map(lambda p: p[block, depth], params["blocks_0"]["compute"])  # noqa: B023
            x = layer.apply({"params": own}, x, False)
    readout = Readout((2, 2), network.example_shape, float32)
    expected = readout.apply({"params": params["readout"]}, x[:, : network.num_tokens])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_its_cost_is_that_of_the_program(network):
    program = jax.make_jaxpr(network.apply)({"params": param_shapes(network)}, *inputs(network))
    assert matmul_flops(program.jaxpr) == BATCH * plain_transformer.forward_flops(network)


def test_its_parameters_are_known_by_name(network):
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(network)):
        assert module_of(names(path)) in {"stem", "time", "label", "blocks_0.compute", "readout"}
        assert leaf.shape[: stacked_axes(names(path))] in ((), (2, 2))


def test_takes_the_place_of_a_rin(monkeypatch):
    monkeypatch.setattr(cost, "multiply_adds", cost.multiply_adds)
    monkeypatch.setattr("rin_jax.experiment.RIN", None)
    plain_transformer.take_its_place()
    network = make_experiment(load("digits").get_config("tiny")).rin
    assert type(network) is PlainTransformer
    assert cost.forward_flops(network) == plain_transformer.forward_flops(network)
