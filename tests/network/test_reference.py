"""The network's forward pass against the reference implementation's tensors."""

import jax
import numpy as np
import pytest

from rin_jax.interop.pix2seq import import_params
from rin_jax.network import embeddings
from rin_jax.network.rin import RIN
from tests import reference
from tests.reference import error, labels_of, load, under

pytestmark = reference.needed
ARCHITECTURES = reference.names("arch_*")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward(name):
    arrays, meta = load(name)
    rin, params = reference.network(name)
    rotated = rin.video and meta["config"]["tape_pos_encoding"] == "sin_cos"
    fixed = params["stem"]["positions"]["table"].size if rotated else 0
    assert sum(p.size for p in jax.tree.leaves(params)) - fixed == meta["num_params"]
    latents = arrays["in/latent_prev"]
    if rin.interface_self_cond:
        latents = {"latents": latents, "interface": arrays["in/tape_prev"]}
    zeros = jax.tree.map(np.zeros_like, latents)
    for prev, outputs in ((latents, "out/"), (zeros, "out_zero_prev/")):
        out, given = under(arrays, outputs), reference.inputs(name)
        x, z = reference.forward(rin)({"params": params}, **given, prev_latents=prev)
        if rin.interface_self_cond:
            assert error(z["interface"], out["tape"]) < 4e-5
            z = z["latents"]
        assert error(x, out["x"]) < 4e-5
        assert error(z, out["latent"]) < 4e-5


def test_there_are_architectures():
    assert {"arch_image_latent", "arch_image_uncond", "arch_image_layers_2_2_0"} <= set(
        ARCHITECTURES
    )
    assert {"arch_video_even", "arch_video_learned"} <= set(ARCHITECTURES)


def test_import_names_every_problem():
    arrays, _ = load("arch_image_latent")
    rin, _ = reference.network("arch_image_latent")
    weights = under(arrays, "w/")
    weights["tape/extra"] = weights.pop("tape/stem/bias")
    weights["tape/output_linear/bias"] = weights["tape/output_linear/bias"][:-1]
    with pytest.raises(ValueError, match="stem/bias: missing") as caught:
        import_params(weights, rin)
    assert "tape/extra: not used" in str(caught.value)
    assert "readout/out/bias: shape (11,) instead of (12,)" in str(caught.value)


@pytest.mark.parametrize(("scale", "dim"), [(1000, 6), (1000, 8), (10000, 6), (10000, 8)])
def test_scalar_embedding(scale, dim):
    arrays, _ = load("embed")
    weights = under(arrays, f"scalar/scaling{scale}_dim{dim}/")
    gamma = arrays["scalar/gamma"]
    encoding = embeddings.sinusoidal_encoding(gamma * np.float32(scale), dim)
    assert error(encoding, weights["encoding"]) < 3e-4
    params = {
        ours: {leaf: weights[f"w/time_emb/{theirs}/{leaf}"] for leaf in ("kernel", "bias")}
        for ours, theirs in (("hidden", "dense0"), ("out", "dense1"))
    }
    embed = embeddings.ScalarEmbedding(4 * dim, scale, np.float32)
    out = embed.apply({"params": params}, gamma)
    assert error(out[:, 0], weights["out"]) < 3e-4


def test_position_codes():
    arrays, _ = load("embed")
    coords = arrays["positional_encoding/coords"]
    codes = embeddings.sinusoidal_encoding(coords, 12)
    assert error(codes, arrays["positional_encoding/dim12"]) < 3e-4
    cases = {k: v for k, v in arrays.items() if k.startswith("sincos")}
    assert len(cases) == 6
    for name, expected in cases.items():
        kind, size = name.split("/")
        parts = size.split("_")
        span = float(parts[-1].removeprefix("max"))
        shape = tuple(int(p[1:]) for p in parts[:-2])
        assert len(shape) == (1 if kind == "sincos1d" else 2)
        codes = embeddings.sincos_positions(shape, expected.shape[-1], span)
        assert error(codes.reshape(expected.shape), expected) < 3e-4, name


def test_sin_cos_of_one_token_is_finite():
    assert np.isfinite(embeddings.sincos_positions((1,), 8, 1000.0)).all()
    table = embeddings.sincos_positions((1, 5), 8, 1000.0)
    assert error(table, embeddings.sincos_positions((5,), 8, 1000.0)) == 0


def test_context_norm_has_its_own_weights():
    rin, params = reference.network("arch_image_latent")
    arrays, _ = load("arch_image_latent")
    weights = under(arrays, "w/")
    fields = {f: getattr(rin, f) for f in RIN.__dataclass_fields__ if f not in ("parent", "name")}
    normed = RIN(**(fields | {"norm_context": True}))
    for unit, width in (("read", rin.interface_dim), ("write", rin.latent_dim)):
        for i in range(2):
            prefix = f"tape/{unit}_unit_{i}/transformer_decoder_layer/cross_mha/enc_ln"
            weights[f"{prefix}/gamma"] = np.ones(width, np.float32)
            weights[f"{prefix}/beta"] = np.zeros(width, np.float32)
    cond = {"label": labels_of(arrays["in/cond"])}
    args = arrays["in/x"], arrays["in/t"], cond, arrays["in/latent_prev"]
    with_norm, without = (
        reference.forward(net)({"params": own}, *args)[0]
        for net, own in ((normed, import_params(weights, normed)), (rin, params))
    )
    assert error(with_norm, without) > 1e-2
