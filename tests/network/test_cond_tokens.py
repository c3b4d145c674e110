"""Where the time and class tokens can go, against a second rendering of the equations."""

import jax
import numpy as np
import pytest

from rin_jax.interop.pix2seq import import_params, reference_names
from rin_jax.network.cost import forward_flops
from rin_jax.network.partitioning import param_shapes
from tests import reference
from tests.network.oracle import Oracle
from tests.network.test_cost import matmul_flops
from tests.reference import error, labels_of, load, rin_of, under

CONFIG = {
    "image_height": 4, "image_width": 6, "image_channels": 2, "patch_size": 2, "num_layers": "2,1",
    "latent_slots": 5, "latent_dim": 16, "latent_mlp_ratio": 2, "latent_num_heads": 4,
    "tape_dim": 24, "tape_mlp_ratio": 3, "rw_num_heads": 2, "latent_pos_encoding": "learned",
    "tape_pos_encoding": "learned", "self_cond": "latent", "time_on_latent": True,
    "cond_on_latent_n": 1, "cond_tape_writable": False, "cond_decoupled_read": False,
    "cond_dim": 0, "cond_proj": True, "xattn_enc_ln": False, "time_scaling": 1000.0,
    "drop_path": 0.0, "drop_units": 0.0, "drop_att": 0.0,
}  # fmt: skip
CLASSES = 3
VARIANTS = {
    "both on the latents": {},
    "time read with the tape": {"time_on_latent": False},
    "class read with the tape": {"cond_on_latent_n": 0},
    "both read with the tape": {"time_on_latent": False, "cond_on_latent_n": 0},
    "both written": {
        "time_on_latent": False, "cond_on_latent_n": 0, "cond_tape_writable": True,
    },
    "class written": {"cond_on_latent_n": 0, "cond_tape_writable": True},
    "class read apart": {"cond_on_latent_n": 0, "cond_decoupled_read": True, "cond_dim": 8},
    "both read apart": {
        "time_on_latent": False, "cond_on_latent_n": 0, "cond_decoupled_read": True,
        "cond_dim": 32,
    },
    "contexts normalised": {"xattn_enc_ln": True, "cond_on_latent_n": 0},
}  # fmt: skip


def random_weights(rin) -> dict[str, np.ndarray]:
    """Random weights of a network under the reference's names."""
    rng = np.random.default_rng(0)
    names, weights = reference_names(rin), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(rin)):
        theirs = names["/".join(key.key for key in path)]
        for name in theirs.ravel():
            value = rng.normal(scale=0.3, size=leaf.shape[theirs.ndim :])
            weights[f"tape/{name}"] = value.astype(np.float32)
    return weights


def inputs(rin):
    rng = np.random.default_rng(1)
    return (
        rng.normal(size=(2, *rin.example_shape)).astype(np.float32),
        np.float32([0.3, 0.9]),
        np.int32([2, 0]),
        rng.normal(size=(2, rin.num_latents, rin.latent_dim)).astype(np.float32),
    )


@reference.needed
@pytest.mark.parametrize("name", ["arch_image_latent", "arch_image_layers_2_2_0"])
def test_the_second_rendering_is_right(name):
    arrays, meta = load(name)
    oracle = Oracle(under(arrays, "w/"), meta["config"])
    for i in range(len(arrays["in/x"])):
        x, z = oracle.image(
            arrays["in/x"][i], arrays["in/t"][i], arrays["in/cond"][i], arrays["in/latent_prev"][i]
        )
        assert error(x, arrays["out/x"][i]) < 4e-5
        assert error(z, arrays["out/latent"][i]) < 4e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(variant):
    config = CONFIG | VARIANTS[variant]
    rin = rin_of(config, CLASSES)
    weights = random_weights(rin)
    x, gamma, labels, prev = inputs(rin)
    params = import_params(weights, rin)
    apply = jax.jit(rin.apply)
    prediction, latents = apply({"params": params}, x, gamma, {"label": labels}, prev)
    oracle = Oracle(weights, config)
    for i in range(2):
        one_hot = np.eye(CLASSES)[labels[i]]
        expected, expected_latents = oracle.image(x[i], gamma[i], one_hot, prev[i])
        assert error(prediction[i], expected) < 4e-5
        assert error(latents[i], expected_latents) < 4e-5
    other = apply({"params": params}, x, gamma, {"label": labels[::-1]}, prev)[0]
    assert error(other, prediction) > 1e-2
    assert labels_of(np.eye(CLASSES)[labels]).tolist() == labels.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_of_the_program(variant):
    rin = rin_of(CONFIG | VARIANTS[variant], CLASSES)
    x, gamma, labels, _ = (value[:1] for value in inputs(rin))
    program = jax.make_jaxpr(rin.apply)({"params": param_shapes(rin)}, x, gamma, {"label": labels})
    assert forward_flops(rin) == matmul_flops(program.jaxpr)
