"""What is chosen by platform gives the same numbers."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.network import platform
from rin_jax.network.partitioning import new_params
from tests.network.small import distance, inputs, small


def traced_for(monkeypatch, kind):
    mesh = types.SimpleNamespace(abstract_device=types.SimpleNamespace(device_kind=kind))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4)])
def test_both_forms_of_a_projection_agree_with_numpy(monkeypatch, shape):
    rng = np.random.default_rng(0)
    x, kernel, cotangent = (rng.normal(size=s) for s in (shape, (4, 3), (*shape[:-1], 3)))
    for kind in ("cpu", "TPU v5 lite", "TPU7x"):
        traced_for(monkeypatch, kind)
        assert platform.traced_for("cpu") == (kind == "cpu")
        assert platform.traced_for("tpu") == (kind != "cpu")
        out, gradients = jax.vjp(platform.project, jnp.float32(x), jnp.float32(kernel))
        of_x, of_kernel = gradients(jnp.float32(cotangent))
        assert distance(out, x @ kernel) < 1e-6
        assert distance(of_x, cotangent @ kernel.T) < 1e-6
        rows, columns = x.reshape(-1, 4), cotangent.reshape(-1, 3)
        assert distance(of_kernel, rows.T @ columns) < 1e-6


@pytest.mark.parametrize("kind", ["cpu", "TPU v5 lite"])
def test_both_forms_of_a_product_with_gelu_agree_with_its_formula(monkeypatch, kind):
    """The gradient by differences of the formula, in float64."""
    traced_for(monkeypatch, kind)
    monkeypatch.setattr(platform, "MANY_WEIGHTS", 12)
    rng = np.random.default_rng(0)
    x, kernel, cotangent = (rng.normal(size=s) for s in ((2, 5, 4), (4, 3), (2, 5, 3)))

    def exact(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    arrays = jnp.float32(x), jnp.float32(kernel)
    out, gradients = jax.vjp(jax.checkpoint(platform.project_gelu), *arrays)
    of_x, of_kernel = gradients(jnp.float32(cotangent))
    assert distance(out, exact(x) @ kernel) < 1e-6
    slope = (exact(x + 1e-6) - exact(x - 1e-6)) / 2e-6
    assert distance(of_x, cotangent @ kernel.T * slope) < 1e-6
    assert distance(of_kernel, np.einsum("btw,btf->wf", exact(x), cotangent)) < 1e-6


def test_a_tpu_computes_a_product_with_gelu_apart_but_not_its_gradient(monkeypatch):
    arrays = jnp.ones((2, 5, 4)), jnp.ones((4, 3))
    for kind, many, few, parted in (
        ("cpu", 12, 5, 0), ("NVIDIA H100 80GB HBM3", 12, 5, 0), ("TPU v5e", 12, 5, 1),
        ("TPU v5e", 13, 5, 0), ("TPU v5e", 12, 4, 0),
    ):  # fmt: skip
        traced_for(monkeypatch, kind)
        monkeypatch.setattr(platform, "MANY_WEIGHTS", many)
        monkeypatch.setattr(platform, "FEW_TOKENS", few)
        form = functools.partial(platform.project_gelu)  # traced anew
        out, gradients = jax.vjp(form, *arrays)
        programs = jax.make_jaxpr(form)(*arrays), jax.make_jaxpr(gradients)(out)
        found = [str(program).count("optimization_barrier") for program in programs]
        assert found == [parted, 0]


@pytest.mark.parametrize(("kind", "axes"), [("cpu", 1), ("NVIDIA H100 80GB HBM3", 2)])
def test_the_gradient_of_a_kernel_sums_over_one_axis_on_a_cpu_alone(monkeypatch, kind, axes):
    traced_for(monkeypatch, kind)
    x, kernel = jnp.ones((2, 5, 4)), jnp.ones((4, 3))
    gradient = jax.grad(lambda kernel: platform.project(x, kernel).sum())
    products = [eqn for eqn in jax.make_jaxpr(gradient)(kernel).eqns if "dot" in str(eqn.primitive)]
    contracted, _ = products[-1].params["dimension_numbers"]
    assert [len(side) for side in contracted] == [axes, axes]


def test_without_a_mesh_the_default_device_says_what_it_is(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not platform.traced_for("cpu")
    assert not platform.traced_for("tpu")


def test_compute_layers_that_are_written_out_give_the_same(monkeypatch):
    """As they are for a TPU: no loop but that over blocks."""
    rin = small(depth=3, num_blocks=2)
    params, arguments = new_params(rin, jax.random.key(0)), inputs(rin)
    found, loops = [], []
    for kind in ("cpu", "TPU v5 lite"):
        traced_for(monkeypatch, kind)
        program = jax.jit(lambda params: rin.apply({"params": params}, *arguments)[0]).lower(params)
        loops.append(program.as_text().count("stablehlo.while"))
        found.append(program.compile()(params))
    assert loops == [2, 1]
    assert distance(*found) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_bias_is_summed_in_float32(dtype):
    """A sum in bfloat16 would stay at 256 after as many ones."""
    x, bias, cotangent = jnp.ones((3, 512, 2), dtype), jnp.ones(2, dtype), jnp.ones((3, 512, 2))
    out, gradients = jax.vjp(platform.add_bias, x, bias)
    of_x, of_bias = gradients(cotangent.astype(dtype))
    assert out.dtype == of_x.dtype == of_bias.dtype == dtype
    assert (out == 2).all()
    assert (of_x == 1).all()
    assert (of_bias == 3 * 512).all()
    assert (platform.sum_by_product(cotangent.astype(jnp.bfloat16)) == 3 * 512).all()
