"""FID's Inception against torch-fidelity's, with random weights; mistakes that the parity sees."""

import functools

import jax
import numpy as np
import pytest
import torch

from rin_jax import ConfigError
from rin_jax.evaluation import inception, resize, weight_files
from tests.evaluation.peers import import_torchvision

pytestmark = pytest.mark.slow  # compiles a network

BATCH = 4
CLOSE = 1e-4  # of the spread of a feature over images
# The graph's name of a convolution, by PyTorch's.
GRAPH_NAMES = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_4a_3x3": "conv_4",
    "Mixed_5b.branch1x1": "mixed/conv",
    "Mixed_5b.branch5x5_2": "mixed/tower/conv_1",
    "Mixed_5c.branch3x3dbl_3": "mixed_1/tower_1/conv_2",
    "Mixed_5d.branch_pool": "mixed_2/tower_2/conv",
    "Mixed_6a.branch3x3": "mixed_3/conv",
    "Mixed_6a.branch3x3dbl_2": "mixed_3/tower/conv_1",
    "Mixed_6d.branch1x1": "mixed_6/conv",
    "Mixed_6e.branch7x7dbl_5": "mixed_7/tower_1/conv_4",
    "Mixed_7a.branch3x3_1": "mixed_8/tower/conv",
    "Mixed_7a.branch7x7x3_4": "mixed_8/tower_1/conv_3",
    "Mixed_7b.branch3x3_2a": "mixed_9/tower/mixed/conv",
    "Mixed_7c.branch3x3dbl_2": "mixed_10/tower_1/conv_1",
    "Mixed_7c.branch3x3dbl_3b": "mixed_10/tower_1/mixed/conv_1",
}


def pictures(side: int) -> np.ndarray:
    """Images [4, side, side, 3] that differ much: noise, blotches, a dark ramp, bright stripes."""
    rng = np.random.default_rng(side)
    noise = rng.uniform(-9, 264, (side, side, 3))
    blotches = np.kron(rng.uniform(0, 255, (4, 4, 3)), np.ones((side // 4, side // 4, 1)))
    ramp = np.linspace(0, 80, side * side * 3).reshape(side, side, 3)
    stripes = 200 + 55 * np.sin(np.arange(side) / 3)[None, :, None] * np.ones((side, 1, 3))
    return np.stack([noise, blotches, ramp, stripes]).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Random weights as torch-fidelity stores them.

    The statistics of batch normalisation are those of some images: activations stay in range.
    """
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    random = torch.Generator().manual_seed(0)
    state = {}
    for name, _, (height, width, fan_in, fan_out) in inception.places():
        normal = functools.partial(torch.randn, generator=random)
        gain = (2 / (height * width * fan_in)) ** 0.5
        state[f"{name}.conv.weight"] = gain * normal(fan_out, fan_in, height, width)
        state[f"{name}.bn.weight"] = 1 + 0.2 * normal(fan_out)
        # mostly positive before ReLU: rounding grows little on its way through 48 layers
        state[f"{name}.bn.bias"] = 1 + 0.3 * normal(fan_out)
        state[f"{name}.bn.running_mean"] = torch.zeros(fan_out)
        state[f"{name}.bn.running_var"] = torch.ones(fan_out)
    state["fc.weight"] = normal(1008, 2048) / 2048**0.5
    state["fc.bias"] = normal(1008)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    peer = FeatureExtractorInceptionV3("calibrated", ["2048"], str(path)).train()
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        peer(as_torch(pictures(96)))
    torch.save(peer.state_dict(), path)
    return path


def as_torch(images: np.ndarray) -> torch.Tensor:
    """Images [B, 3, H, W] of whole numbers."""
    whole = np.clip(np.round(images), 0, 255).astype(np.uint8)
    return torch.from_numpy(whole).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def peer(path):
    """images -> the same features by torch-fidelity, for each side once."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], str(path))
    seen = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *hooked: seen.append(hooked[-1]))

    @functools.cache
    def features(side: int) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            pool, logits = network(as_torch(pictures(side)))
        spatial = seen.pop()[:, :7].permute(0, 2, 3, 1).reshape(BATCH, -1)
        found = {"pool": pool, "spatial": spatial, "logits": logits}
        return {name: value.numpy() for name, value in found.items()}

    return features


@pytest.fixture(scope="module")
def params(path):
    return inception.load(path)[0]


@pytest.fixture(scope="module")
def network():
    """The network alone, compiled once for all sizes."""
    return jax.jit(inception.features)


def errors(ours: dict, theirs: dict) -> dict[str, float]:
    """Largest difference of each kind of feature, of its spread over images."""
    assert set(ours) == set(theirs)
    spread = {name: np.sqrt(np.mean(np.var(x, axis=0))) for name, x in theirs.items()}
    return {name: np.abs(ours[name] - theirs[name]).max() / spread[name] for name in theirs}


@pytest.mark.parametrize("side", [32, 64, 128, 256, 512])
def test_agrees_with_torch_fidelity(side, peer, params, network):
    ours = network(params, inception.normalized(pictures(side), "adm"))
    assert {name: x.shape for name, x in ours.items()} == {
        "pool": (BATCH, 2048), "spatial": (BATCH, 2023), "logits": (BATCH, 1008),
    }  # fmt: skip
    found = errors(ours, peer(side))
    assert max(found.values()) < CLOSE, found


def antialiased(source: int, target: int, half_pixel: bool) -> np.ndarray:
    """The TF1 rule with a filter that widens as an image shrinks."""
    scale = source / target
    distance = np.abs(np.arange(source)[None] - scale * np.arange(target)[:, None])
    weights = np.maximum(1 - distance / max(scale, 1), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


EXACT_MATRIX = resize.matrix
MISTAKES = {  # what is put in the place of what, and a side at which it shows
    "half-pixel resize": (resize, "matrix", lambda s, t, _: EXACT_MATRIX(s, t, True), 32),
    "antialiasing": (resize, "matrix", antialiased, 512),
    "floor": (inception.jnp, "round", np.floor, 64),
    "unrounded": (inception.jnp, "round", lambda x: x, 64),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_on_the_way_in_is_seen(name, peer, params, network, monkeypatch):
    owner, attribute, wrong, side = MISTAKES[name]
    monkeypatch.setattr(owner, attribute, wrong)
    ours = network(params, inception.normalized(pictures(side), "adm"))
    assert min(errors(ours, peer(side)).values()) > 10 * CLOSE


def test_bfloat16_is_seen(peer, params, network):
    """Kernels rounded as a TPU's default precision rounds them, without even the activations."""
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), params)
    ours = network(rounded, inception.normalized(pictures(64), "adm"))
    assert min(errors(ours, peer(64)).values()) > 10 * CLOSE


def test_an_average_in_the_last_block_is_seen(peer, params, monkeypatch):
    monkeypatch.setitem(inception.POOLS, "maximum", inception.POOLS["average"])
    wrong = jax.jit(lambda params, x: inception.features(params, x))  # traced anew
    found = errors(wrong(params, inception.normalized(pictures(64), "adm")), peer(64))
    assert found["spatial"] < CLOSE  # which lies before it
    assert min(found["pool"], found["logits"]) > 10 * CLOSE


@pytest.mark.parametrize("protocol", inception.PROTOCOLS)
def test_every_product_has_full_precision(protocol, params):
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    extract = jax.jit(lambda params, images: inception.extract(params, images, protocol))
    lines = extract.lower(params, images).as_text().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    products = [line for line in lines if "stablehlo.dot_general" in line]
    assert (len(convolutions), len(products)) == (94, 3)  # two of the resize, one to the logits
    for line in convolutions + products:
        assert line.count("HIGHEST") == 2, line
    assert not any("bf16" in line or "f16" in line for line in lines)


def test_an_unknown_protocol():
    with pytest.raises(ConfigError, match=r"'adm2'; choose one of adm, rin_tfgan"):
        inception.normalized(pictures(32), "adm2")


def same(first, second) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, second)))


def test_formats_agree(path, params, tmp_path):
    """NumPy, safetensors and a frozen graph with the graph's own names."""
    import safetensors.numpy
    import tensorflow as tf

    arrays = weight_files.read_arrays(path)
    np.savez(tmp_path / "weights.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "weights.safetensors")
    scopes = {name: scope for name, scope, _ in inception.places()}
    assert GRAPH_NAMES.items() <= scopes.items()
    assert len(set(scopes.values())) == len(scopes) == 94
    graph = tf.compat.v1.GraphDef()

    def constant(name: str, value: np.ndarray):
        tensor = tf.make_tensor_proto(np.ascontiguousarray(value))
        graph.node.add(name=name, op="Const").attr["value"].tensor.CopyFrom(tensor)

    graph.node.add(name="ExpandDims", op="Placeholder")
    for name, scope in scopes.items():
        constant(f"{scope}/conv2d_params", arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0))
        for torch_part, part in (("weight", "gamma"), ("bias", "beta"),
                                 ("running_mean", "moving_mean"),
                                 ("running_var", "moving_variance")):  # fmt: skip
            constant(f"{scope}/batchnorm/{part}", arrays[f"{name}.bn.{torch_part}"])
    constant("softmax/weights", arrays["fc.weight"].T)
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    for name in ("weights.npz", "weights.safetensors", "graph.pb"):
        loaded, digest = inception.load(tmp_path / name)
        assert same(loaded, params), name
        assert digest == weight_files.sha256(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Mixed_5b.branch5x5_2.conv.weight": None},
         "no array Mixed_5b.branch5x5_2.conv.weight, so it is a file of another network"),
        ({"fc.weight": np.zeros((1000, 2048))},
         r"fc.weight has shape \(1000, 2048\) instead of \(1008, 2048\)"),
        ({"Mixed_7c.branch_pool.bn.bias": np.full(192, np.nan)},
         "Mixed_7c.branch_pool.bn.bias has values that are not finite"),
    ],
)  # fmt: skip
def test_a_wrong_array_is_named(changes, message, path, monkeypatch):
    arrays = weight_files.read_arrays(path) | changes
    arrays = {name: x for name, x in arrays.items() if x is not None}
    monkeypatch.setattr(weight_files, "read_arrays", lambda _: arrays)
    with pytest.raises(ConfigError, match=message) as error:
        inception.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
