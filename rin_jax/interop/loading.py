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
from rin_jax.interop import export_format, hub, programs
from rin_jax.network import conditioning
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.runtime import sharding
from rin_jax.sampling.generate import make_generate

Array = jax.Array
ANY_DEVICES = {"data": -1, "fsdp": 1, "tensor": 1}  # the mesh section of an export


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network with its weights and the experiment that it comes from.

    Attributes:
      experiment: network, process and sampler.
      params: the parameters, float32.
      mesh: the devices they lie on.
      class_names: one name a class; None where they are not known.
      step: training steps taken.
      ema: which running average of the weights this is.
    """

    experiment: Experiment
    params: Mapping[str, Any]
    mesh: Mesh
    class_names: tuple[str, ...] | None
    step: int
    ema: str

    @property
    def config(self) -> ml_collections.FrozenConfigDict:
        """The resolved configuration of the run."""
        return self.experiment.config

    def with_sampler(self, **fields: Any) -> "Model":
        """The same weights under another sampler: with_sampler(name="heun", num_steps=10).

        Args:
          **fields: of the section `sampler` of a configuration; the others stay.

        Raises:
          ConfigError: a field that there is not, or a value that cannot be.
        """
        sections = self.config.to_dict()
        sections["sampler"] |= fields
        experiment = make_experiment(ml_collections.ConfigDict(sections))
        return dataclasses.replace(self, experiment=experiment)

    def sample(self, num: int, labels: int | Sequence[int] | None = None, seed: int = 0):
        """Images 0..num-1 of a seed: uint8 [num, H, W, C].

        Image i is the same whatever `num` is, and the same as --mode=sample makes.

        Args:
          num: how many.
          labels: a class for all or one for each; None takes the classes in turn.
          seed: of the noise.

        Raises:
          ConfigError: labels that the model does not know, or not `num` of them.
        """
        known = self.experiment.rin.num_classes
        if labels is None and known:
            labels = np.arange(num) % known
        cond = conditioning.of_labels(self._labels(labels, num), known)
        return self._generate(seed)(self.params, np.arange(num), cond)

    def sample_from(self, noise: Array, labels=None, keys: Array | None = None) -> Array:
        """Images float32 [B, H, W, C] in [-1, 1], not clipped, from given noise of that shape.

        Args:
          noise: standard normal.
          labels: a class for all or one for each; None: no class.
          keys: uint32 [B, 2], from which DDPM draws its fresh noise; DDIM needs none.
        """
        batch = noise.shape[0]
        keys = jnp.zeros((batch, 2), jnp.uint32) if keys is None else keys
        return self._on_all_devices(self._sampler, noise, self._labels(labels, batch), keys)

    def denoise(self, xt: Array, gamma: Array, labels=None, latents=None) -> tuple[Array, Any]:
        """One pass of the network: (prediction [B, H, W, C], latents) in float32.

        Args:
          xt: noisy images [B, H, W, C], as the process has them.
          gamma: signal power [B] in (0, 1].
          labels: a class for all or one for each; None: no class.
          latents: what the pass before returned; None at first.
        """
        batch = xt.shape[0]
        if latents is None:
            shapes = self.experiment.rin.abstract_latents(batch)
            latents = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        labels = self._labels(labels, batch)
        return self._on_all_devices(self._denoiser, xt, gamma, labels, latents)

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
        return self._by_rows(programs.make_sampler(self.experiment))

    @functools.cached_property
    def _denoiser(self):
        return self._by_rows(programs.make_denoiser(self.experiment))

    def _by_rows(self, program):
        """program(params, inputs), compiled; every device computes its own rows of a batch."""
        by_rows = jax.shard_map(
            lambda params, inputs: program(params, *inputs),
            mesh=self.mesh,
            in_specs=(sharding.replicated(self.mesh).spec, sharding.BATCH),
            out_specs=sharding.BATCH,
            check_vma=False,  # zeros that a scan starts from are the same everywhere at first
        )
        return jax.jit(by_rows)

    def _on_all_devices(self, compiled, *inputs):
        """What `compiled` makes of arrays [B, ...]; rows are repeated to fill the devices."""
        batch, shards = inputs[0].shape[0], sharding.batch_shards(self.mesh)
        rows = np.arange(batch + -batch % shards) % batch
        place = sharding.batch_sharding(self.mesh)
        inputs = jax.tree.map(lambda x: jax.device_put(jnp.asarray(x)[rows], place), inputs)
        return jax.tree.map(lambda x: x[:batch], compiled(self.params, inputs))


def load(source: str, experiment: Experiment | None = None) -> Model:
    """A model from an export.

    Args:
      source: a folder (local, or gs://...), or a hub id ("owner/name").
      experiment: what samples, and on which mesh, instead of the run's own experiment on all
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
    if experiment is None:
        experiment = own
    check_architecture(experiment, description.config, f"the export {source}")
    mesh = device_mesh(experiment)
    place = sharding.replicated(mesh)
    params = export_format.read_weights(
        path, description.sha256, experiment.rin, lambda array: jax.device_put(array, place)
    )
    names = description.class_names
    if names is not None and len(names) > experiment.rin.num_classes:
        raise ConfigError(
            f"{source} names {len(names)} classes; the network has {experiment.rin.num_classes}."
        )
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
