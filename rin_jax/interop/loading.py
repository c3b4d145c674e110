"""An exported model, ready to sample: rin_jax.load(folder or hub id).

    model = rin_jax.load("exports/digits")
    images = model.sample(10, labels=range(10))
    prediction, latents = model.denoise(xt, gamma, labels)

The mesh of the training run plays no part: the weights lie whole on every device that is there,
and the batch is split over them.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.experiment import (
    Experiment,
    check_architecture,
    device_mesh,
    make_experiment,
    saved_config,
)
from rin_jax.interop import export_format, hub, stablehlo
from rin_jax.network.conditioning import NO_LABEL, of_labels
from rin_jax.runtime import sharding
from rin_jax.sampling.generate import make_generate

Array = jax.Array
ANY_DEVICES = {"data": -1, "fsdp": 1, "tensor": 1}  # the mesh section of an export


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network with its weights and the experiment that it comes from."""

    experiment: Experiment  # network, process and sampler
    params: Mapping[str, Any]  # float32
    mesh: Mesh  # the devices that the parameters lie on
    class_names: tuple[str, ...] | None  # one name a class; None where they are not known
    step: int  # training steps taken
    ema: str  # which running average of the weights this is

    @property
    def config(self) -> ml_collections.FrozenConfigDict:
        """The resolved configuration of the run."""
        return self.experiment.config

    def with_sampler(self, **fields: Any) -> "Model":
        """The same weights under another sampler: with_sampler(name="heun", num_steps=10).

        Fields of the section `sampler` that are not given stay; ConfigError at one that does not
        exist, or a value that cannot be.
        """
        sections = self.config.to_dict()
        sections["sampler"] |= fields
        experiment = make_experiment(ml_collections.ConfigDict(sections))
        return dataclasses.replace(self, experiment=experiment)

    def sample(self, num: int, labels: int | Sequence[int] | None = None, seed: int = 0):
        """Images 0..num-1 of a seed: uint8 [num, H, W, C], as --mode=sample makes them.

        Image i is the same whatever `num` is. `labels` is a class for all or one for each; None
        takes the classes in turn. ConfigError at labels that the model does not know, or not `num`
        of them: so in all methods.
        """
        known = self.experiment.rin.num_classes
        if labels is None and known:
            labels = np.arange(num) % known
        cond = of_labels(self._labels(labels, num), known)
        return self._generate(seed)(self.params, np.arange(num), cond)

    def sample_from(self, noise: Array, labels=None, keys: Array | None = None) -> Array:
        """Images float32 [B, H, W, C] in [-1, 1], not clipped, from standard normal noise.

        `labels` is a class for all or one for each; None: no class. DDPM draws its fresh noise from
        `keys`, uint32 [B, 2]; DDIM needs none.
        """
        batch = noise.shape[0]
        keys = jnp.zeros((batch, 2), jnp.uint32) if keys is None else keys
        return self._on_all_devices(self._sampler, noise, self._labels(labels, batch), keys)

    def denoise(self, xt: Array, gamma: Array, labels=None, latents=None) -> tuple[Array, Any]:
        """One pass of the network: (prediction [B, H, W, C], latents) in float32.

        xt: noisy images [B, H, W, C], as the process has them. gamma: signal power [B] in (0, 1].
        labels: as in `sample_from`. latents: what the pass before returned; None at first.
        """
        batch = xt.shape[0]
        if latents is None:
            shapes = self.experiment.rin.abstract_latents(batch)
            latents = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return self._on_all_devices(self._denoiser, xt, gamma, self._labels(labels, batch), latents)

    def _labels(self, labels, batch: int) -> np.ndarray:
        """int32 [batch], NO_LABEL where there is none."""
        known = self.experiment.rin.num_classes
        labels = np.asarray(NO_LABEL if labels is None else labels)
        if labels.ndim > 1 or (labels.ndim and len(labels) != batch):
            raise ConfigError(f"labels has shape {labels.shape}; give one number or {batch}.")
        wrong = labels[(labels != NO_LABEL) & ((labels < 0) | (labels >= known))]
        if wrong.size:
            classes = f"0..{known - 1}" if known else "none, it is unconditional"
            raise ConfigError(f"labels has {wrong.flat[0]}; the model's classes are {classes}.")
        return np.broadcast_to(labels, (batch,)).astype(np.int32)

    @functools.cached_property
    def _generate(self):
        """seed -> generate; compiled once for the same seed."""
        return functools.lru_cache(lambda seed: make_generate(self.experiment, self.mesh, seed))

    @functools.cached_property
    def _sampler(self):
        return self._by_rows(stablehlo.make_sampler(self.experiment))

    @functools.cached_property
    def _denoiser(self):
        return self._by_rows(stablehlo.make_denoiser(self.experiment))

    def _by_rows(self, program):
        """program(params, inputs), compiled; every device computes its own rows of a batch."""
        in_specs = sharding.replicated(self.mesh).spec, sharding.BATCH
        by_rows = jax.shard_map(
            lambda params, inputs: program(params, *inputs),
            # no check: zeros that a scan starts from are the same everywhere at first
            mesh=self.mesh, in_specs=in_specs, out_specs=sharding.BATCH, check_vma=False,
        )  # fmt: skip
        return jax.jit(by_rows)

    def _on_all_devices(self, compiled, *inputs):
        """What `compiled` makes of arrays [B, ...]; rows are repeated to fill the devices."""
        batch, shards = inputs[0].shape[0], sharding.batch_shards(self.mesh)
        rows = np.arange(batch + -batch % shards) % batch
        place = sharding.batch_sharding(self.mesh)
        inputs = jax.tree.map(lambda x: jax.device_put(jnp.asarray(x)[rows], place), inputs)
        return jax.tree.map(lambda x: x[:batch], compiled(self.params, inputs))


def load(source: str, experiment: Experiment | None = None) -> Model:
    """A model from an export in a folder (local, or gs://...), or of a hub id ("owner/name").

    `experiment` is what samples, and on which mesh, instead of the run's own experiment on all
    devices; its architecture is the export's.

    Raises:
      ConfigError: there is no such export, or it is damaged, changed, incomplete, of another
        format version or architecture; the message names the file, tensor or field.
    """
    path = find(source)
    description = export_format.read(path)
    config = saved_config(description.config)
    config.mesh = ANY_DEVICES
    own = make_experiment(config)
    export_format.check_network(path / export_format.CONFIG, description.network, own.rin)
    experiment = experiment or own
    check_architecture(experiment, description.config, f"the export {source}")
    mesh = device_mesh(experiment)
    place = functools.partial(jax.device_put, device=sharding.replicated(mesh))
    params = export_format.read_weights(path, description.sha256, experiment.rin, place)
    names = description.class_names
    if names is not None and len(names) > experiment.rin.num_classes:
        known = experiment.rin.num_classes
        raise ConfigError(f"{source} names {len(names)} classes; the network has {known}.")
    return Model(experiment, params, mesh, names, description.step, description.ema)


def find(source: str) -> epath.Path:
    """The folder of an export; what the hub has is fetched. ConfigError if there is none."""
    if source.startswith(("http://", "https://")):
        raise ConfigError(
            f"{source} is a web address; download the folder and name that, or name the model's "
            "owner/name on the hub."
        )
    path = epath.Path(source)
    return path if path.exists() else epath.Path(hub.pull(source))
