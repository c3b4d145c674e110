"""DINOv2 beside timm's, with random weights, and bicubic resizes beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from rin_jax import ConfigError
from rin_jax.evaluation import bicubic, dinov2
from tests.evaluation.peers import import_torchvision
from tests.evaluation.precision import full, products

pytestmark = pytest.mark.slow  # compiles a network

CLOSE = 1e-4  # of the largest value
SMALL = {"embed_dim": 128, "num_heads": 2, "depth": 3}
PUBLISHED = 1 + 37**2  # position embeddings in the published file


def peer(**size):
    """timm's network with every parameter random, as (network, its arrays)."""
    import_torchvision()
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.create_model(
        "vit_large_patch14_dinov2", pretrained=False, img_size=224, num_classes=0, **size
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 4
            parameter.normal_(std=fan_in**-0.5)
    return network, {name: x.numpy() for name, x in network.state_dict().items()}


def peer_features(network, images, mean=dinov2.MEAN, deviation=dinov2.DEVIATION):
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True) / 255
    mean, deviation = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (mean, deviation))
    with torch.no_grad():
        return network((x - mean) / deviation).numpy()


def distance(first, second):
    return np.abs(np.asarray(first) - second).max() / np.abs(second).max()


@pytest.fixture(scope="module")
def images():
    """Parts of two photographs; [2, 100, 120, 3]."""
    names = "china.jpg", "flower.jpg"
    return np.stack([load_sample_image(x)[200:300, 200:320] for x in names]).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    return peer(**SMALL)


def pool(params, images):
    return jax.jit(dinov2.extract)(params, jnp.asarray(images))["pool"]


def test_features_are_those_of_timm(small, images):
    network, arrays = small
    params = dinov2.params_of(arrays)
    ours, theirs = pool(params, images), peer_features(network, images)
    assert ours.shape == theirs.shape == (2, SMALL["embed_dim"])
    assert distance(theirs[:1], theirs[1:]) > 1000 * CLOSE  # images differ by more than errors
    assert distance(ours, theirs) < CLOSE
    swapped = peer_features(network, images, mean=dinov2.DEVIATION, deviation=dinov2.MEAN)
    assert distance(ours, swapped) > 10 * CLOSE
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert distance(pool(rounded, images), theirs) > 10 * CLOSE


def test_blocks_of_the_width_of_vit_l_are_those_of_timm(images):
    network, arrays = peer(depth=2)
    ours = pool(dinov2.params_of(arrays), images[:1])
    assert ours.shape == (1, dinov2.WIDTH)
    assert distance(ours, peer_features(network, images[:1])) < CLOSE


def test_published_positions_are_resized_as_by_the_authors(small):
    """PyTorch's bicubic, from a side of 37 to 16 by a factor of 16.1 / 37."""
    import torch

    published = np.random.default_rng(1).normal(size=(1, PUBLISHED, 128)).astype(np.float32)
    ours = dinov2.params_of(small[1] | {"pos_embed": published})["positions"]
    grid = torch.from_numpy(published[:, 1:]).reshape(1, 37, 37, 128).permute(0, 3, 1, 2)

    def theirs(**rule):
        found = torch.nn.functional.interpolate(grid, mode="bicubic", **rule)
        return found.permute(0, 2, 3, 1).reshape(1, 256, 128).numpy()

    np.testing.assert_array_equal(ours[:, :1], published[:, :1])
    assert distance(ours[:, 1:], theirs(scale_factor=16.1 / 37)) < 1e-5
    for wrong in ({"size": (16, 16)}, {"size": (16, 16), "antialias": True}):
        assert distance(ours[:, 1:], theirs(**wrong)) > 1e-2


def test_every_product_has_full_precision(small):
    found = products(dinov2.extract, dinov2.params_of(small[1]), (1, 32, 32, 3))
    assert len(found) == 2 + 1 + 6  # resize, patches, one block
    assert all(map(full, found))


@pytest.mark.parametrize("shape", [(32, 32), (224, 224), (300, 227), (1, 700)])
def test_images_are_resized_as_by_pytorch(shape):
    import torch

    image = np.random.default_rng(0).uniform(0, 255, (1, *shape, 3)).astype(np.float32)
    ours = np.asarray(bicubic.bicubic(jnp.asarray(image), (224, 224)))
    torch_image = torch.from_numpy(image).permute(0, 3, 1, 2)

    def theirs(antialias):
        found = torch.nn.functional.interpolate(
            torch_image, (224, 224), mode="bicubic", antialias=antialias
        )
        return found.permute(0, 2, 3, 1).numpy()

    np.testing.assert_allclose(ours, theirs(True), atol=1e-2)  # positions float32 there
    if shape != (224, 224):
        assert np.abs(ours - theirs(False)).max() > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("blocks.1.ls2.gamma"), "no array blocks.1.ls2.gamma"),
        (lambda x: x.pop("cls_token"), "no array cls_token"),
        (lambda x: x.pop("pos_embed"), "no array pos_embed"),
        (lambda x: x.update(pos_embed=x["pos_embed"][:, :100]), "99 patches"),
        (lambda x: x.update({"norm.bias": x["norm.bias"][:9]}), r"norm.bias has shape \(9,\)"),
        (lambda x: x.update({"norm.bias": x["norm.bias"] * np.nan}), "norm.bias has .*not finite"),
        (lambda x: [x.pop(k) for k in list(x) if "blocks" in k], "no array blocks.0.norm1.weight"),
        (lambda x: x.update(register_tokens=np.zeros((1, 4, 128))), "register_tokens"),
        (lambda x: None, "3 blocks of width 128, not 24 of 1024"),
    ],
)
def test_another_file_is_refused(small, change, message, tmp_path):
    changed = dict(small[1])
    change(changed)
    np.savez(tmp_path / "some.npz", **changed)
    with pytest.raises(ConfigError, match=f"some.npz is not DINOv2's .*({message})"):
        dinov2.load(tmp_path / "some.npz")
