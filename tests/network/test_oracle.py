"""Every kind of example, condition and place of cond tokens, against a second rendering."""

import jax
import numpy as np
import pytest

from rin_jax.interop.pix2seq import reference_names
from rin_jax.network.cost import forward_flops
from rin_jax.network.partitioning import param_shapes
from tests import reference
from tests.network.oracle import Oracle
from tests.network.test_cost import matmul_flops
from tests.reference import error, rin_of, under

IMAGE = {
    "image_height": 4, "image_width": 6, "image_channels": 2, "patch_size": 2, "num_layers": "2,1",
    "latent_slots": 5, "latent_dim": 16, "latent_mlp_ratio": 2, "latent_num_heads": 4,
    "tape_dim": 24, "tape_mlp_ratio": 3, "rw_num_heads": 2, "latent_pos_encoding": "learned",
    "tape_pos_encoding": "learned", "self_cond": "latent", "time_on_latent": True,
    "cond_on_latent_n": 1, "cond_tape_writable": False, "cond_decoupled_read": False,
    "cond_dim": 0, "cond_proj": True, "xattn_enc_ln": False, "time_scaling": 20.0,
    "drop_path": 0.0, "drop_units": 0.0, "drop_att": 0.0,
}  # fmt: skip
TAPE = IMAGE | {"cond_on_latent_n": 0, "num_layers": "1"}
TOKENS = {k: v for k, v in TAPE.items() if not k.startswith("image") and k != "patch_size"}
TOKENS |= {"num_tokens": 9, "token_output_dim": 3, "num_layers": "1"}
SINES = {"tape_pos_encoding": "sin_cos", "latent_pos_encoding": "sin_cos"}
SUMS = {f"{part}_pos_encoding": "sin_cos_plus_learned" for part in ("tape", "latent")}
OFF = {"time_on_latent": False}
WRITTEN, APART = {"cond_tape_writable": True}, {"cond_decoupled_read": True}
RAW = {"cond_proj": False}
CLASSES = 3


def video(frames: int, clean: int, stride: int, **changes) -> dict:
    """A configuration of videos of so many noisy and so many conditioning frames."""
    return TAPE | {"seq_len": frames + clean, "seq_cond": clean, "seq_stride": stride} | changes


# A configuration, and its condition: a class, the class of a video, (tokens, width), or none.
VARIANTS = {
    "both on the latents": (IMAGE, "class"),
    "time read with the tape, heads of a rounded width": (
        IMAGE | OFF | {"latent_num_heads": 3, "rw_num_heads": 5}, "class",
    ),
    "class read with the tape": (TAPE, "class"),
    "both read with the tape": (TAPE | OFF, "class"),
    "both written": (TAPE | OFF | WRITTEN, "class"),
    "class read apart": (TAPE | APART | {"cond_dim": 8}, "class"),
    "both read apart, contexts normalised": (
        TAPE | OFF | APART | {"cond_dim": 32, "xattn_enc_ln": True}, "class",
    ),
    "class as it is": (TAPE | RAW | APART, "class"),
    "tokens, written without MLP": (TOKENS | {"num_tokens": 7, "tape_mlp_ratio": 0}, None),
    "tokens on a square": (TOKENS | SINES | {"self_cond": "latent+tape"}, None),
    "tokens on a learned square": (TOKENS | SUMS | OFF | WRITTEN | {"self_cond": "none"}, "class"),
    "video, any length": (video(3, 0, 2, self_cond="latent+tape"), None),
    "video after frames, odd": (video(3, 3, 2), None),
    "video, stride 1": (video(2, 1, 1, **SINES), None),
    "video, stride 2, rotated": (video(3, 1, 2, **SINES), "class of a video"),
    "video, stride 3": (video(4, 2, 3, **SUMS, **OFF), "class of a video"),
    "video, stride 4": (video(6, 2, 4, **SINES), None),
    "video, one column": (video(5, 3, 4, **SINES, image_width=2, **APART, **OFF), None),
    "video, no frames before": (
        video(4, 0, 2, **SINES, self_cond="latent+tape"), "class of a video",
    ),
    "sequence on the latents": (IMAGE | {"latent_slots": 7, "cond_on_latent_n": 3}, (3, 5)),
    "one token as it is": (IMAGE | RAW, (1, 16)),
    "sequence read": (TAPE | OFF, (3, 5)),
    "sequence read as it is": (TAPE | RAW, (3, 24)),
    "sequence written": (TAPE | WRITTEN, (3, 5)),
    "sequence written as it is": (TAPE | OFF | WRITTEN | RAW, (3, 24)),
    "sequence read apart": (TAPE | APART | {"cond_dim": 21}, (3, 5)),
    "its width is its own": (TOKENS | APART | RAW | {"tape_dim": 8}, (3, 10)),
    "tokens from a sequence": (TOKENS | APART | OFF | {"xattn_enc_ln": True}, (4, 5)),
    "convolution": (TAPE | {"image_height": 6, "conv_kernel_size": 3} | OFF | WRITTEN, "class"),
    "even convolution": (
        TOKENS | SUMS | {"conv_kernel_size": 2, "self_cond": "tape", "num_layers": "1,0,1"}, (2, 5),
    ),
    "convolution of a video": (
        video(3, 3, 2, conv_kernel_size=3, image_height=2, image_width=8, self_cond="none"), None,
    ),
}  # fmt: skip


def file_of(variant: str) -> tuple[dict, dict]:
    """(arrays, meta) of a variant as of a reference file, with random weights and no outputs."""
    (config, kind), rng = VARIANTS[variant], np.random.default_rng(0)
    classes = CLASSES * (kind in ("class", "class of a video"))
    sequence = kind if isinstance(kind, tuple) else None
    if kind == "class" and not config["cond_proj"]:
        classes, sequence = 0, (1, CLASSES)
    rin = rin_of(config, classes, sequence)
    names, arrays = reference_names(rin), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(rin)):
        theirs = names["/".join(key.key for key in path)]
        for name in theirs.ravel():
            arrays[f"w/tape/{name}"] = rng.normal(scale=0.3, size=leaf.shape[theirs.ndim :])
    if rin.video and config["tape_pos_encoding"] == "sin_cos":
        del arrays["w/tape/tape_pos_emb_res/kernel"]
    shapes = {"x": rin.example_shape, "tape_prev": (rin.num_tokens, rin.interface_dim)}
    shapes |= {"latent_prev": (rin.num_latents, rin.latent_dim)}
    if rin.cond_frames:
        shapes["cond"] = rin.cond_frames, *rin.example_shape[1:]
    elif isinstance(kind, tuple):
        shapes["cond"] = kind if kind[0] > 1 else kind[1:]
    arrays |= {f"in/{name}": rng.normal(size=(2, *shape)) for name, shape in shapes.items()}
    one_hot = np.eye(CLASSES)[[2, 0]]
    arrays["in/t"] = np.array([0.3, 0.9])
    if kind == "class":
        arrays["in/cond"] = one_hot
    if kind == "class of a video":
        arrays["in/t"] = np.concatenate([arrays["in/t"][:, None], one_hot], 1)
    cond = "frames" if rin.cond_frames else "class" if kind == "class" else "tokens"
    meta = {"config": config, "cond": cond}
    return {name: array.astype(np.float32) for name, array in arrays.items()}, meta


def expected(arrays: dict, meta: dict) -> list:
    """[(prediction, latents, tape) of each example] by the second rendering."""
    oracle, outputs = Oracle(under(arrays, "w/"), meta["config"]), []
    for i, (x, t) in enumerate(zip(arrays["in/x"], np.atleast_1d(arrays["in/t"]), strict=True)):
        gamma, beside = (t[0], t[1:]) if t.ndim else (t, ())
        entry = "frames" if meta["cond"] == "frames" else "cond"
        given = {entry: arrays["in/cond"][i]} if "in/cond" in arrays else {}
        given |= {name: arrays[f"in/{name}"][i] for name in ("latent_prev", "tape_prev")}
        outputs.append(oracle.forward(x, gamma, beside=beside, **given))
    return outputs


@reference.needed
@pytest.mark.parametrize("name", reference.names("arch_*"))
def test_the_second_rendering_is_right(name):
    arrays, meta = reference.load(name)
    for i, (x, z, tape) in enumerate(expected(arrays, meta)):
        assert error(x, arrays["out/x"][i]) < 4e-5
        assert error(z, arrays["out/latent"][i]) < 4e-5
        assert error(tape, arrays["out/tape"][i, : len(tape)]) < 4e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(variant, monkeypatch):
    arrays, meta = file_of(variant)
    monkeypatch.setattr(reference, "load", lambda _: (arrays, meta))
    rin, params = reference.network(variant)
    given, prev = reference.inputs(variant), arrays["in/latent_prev"]
    if rin.interface_self_cond:
        prev = {"latents": prev, "interface": arrays["in/tape_prev"]}
    traced = jax.jit(rin.apply).trace({"params": params}, **given, prev_latents=prev)
    assert 2 * forward_flops(rin) == matmul_flops(traced.jaxpr.jaxpr, batch=2)

    apply = traced.lower().compile()
    prediction, latents = apply({"params": params}, **given, prev_latents=prev)
    for i, (x, z, tape) in enumerate(expected(arrays, meta)):
        assert error(prediction[i], x) < 1e-5
        assert error(latents["latents"][i] if rin.interface_self_cond else latents[i], z) < 1e-5
        if rin.interface_self_cond:
            assert error(latents["interface"][i], tape) < 1e-5
    for entry, values in given["cond"].items():
        other = given | {"cond": given["cond"] | {entry: values[::-1].copy()}}
        assert error(apply({"params": params}, **other, prev_latents=prev)[0], prediction) > 1e-3


def test_a_video_has_as_many_tokens_as_the_reference_counts():
    for config, _ in VARIANTS.values():
        if "seq_len" in config:
            frames, clean, stride = (config[f"seq_{name}"] for name in ("len", "cond", "stride"))
            times = (frames + (frames - clean) % stride + clean % stride) // stride
            rin = rin_of(config, 0)
            assert rin.num_tokens + rin.num_frame_tokens == times * np.prod(rin.grid[1:])
