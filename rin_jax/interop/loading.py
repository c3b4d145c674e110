"""An exported model, ready to sample: rin_jax.load(folder or hub id).

    model = rin_jax.load("exports/digits")
    images = model.sample(10, labels=range(10))  # or names of classes
    model.grid(images)
    others = model.edit(images, mask)  # made anew where the mask is True
    prediction, latents = model.denoise(xt, gamma, labels)
    clips = rin_jax.load("exports/moving_digits").sample(10, frames=frames)

Where the network is given the first frames of a video, every method takes them as `frames`,
[c, H, W, C] for all samples or [B, c, H, W, C]: uint8, and for one pass float in the range of x0.
ConfigError if they are missing or do not fit, or if the network is given none.

The mesh of the training run plays no part: the weights lie whole on every device that is there,
and the batch is split over them.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm
from jax.sharding import Mesh
from PIL import Image

from rin_jax import ConfigError
from rin_jax.configuration.stored import SINCE_FORMAT_2, check_architecture, completed, say_changes
from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop import arguments, export_format, given_clips, hub, stablehlo
from rin_jax.network.conditioning import of_labels
from rin_jax.runtime import machine, sharding
from rin_jax.sampling import grids
from rin_jax.sampling.conditions import scaled_frames
from rin_jax.sampling.generate import jit_sampler, make_generate

Array = jax.Array
GIVEN_FRAMES = "frames.npz"  # `Model.clips`
# the sections of an export that say nothing of a model
ANY_MACHINE = {"mesh": {"data": -1, "fsdp": 1, "tensor": 1}, "runtime": machine.DEFAULTS}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A network with its weights and the experiment that it comes from."""

    experiment: Experiment  # network, process and sampler
    params: Mapping[str, Any]  # float32
    mesh: Mesh  # the devices that the parameters lie on
    class_names: tuple[str, ...] | None  # one name a class; None where they are not known
    step: int  # training steps taken
    ema: str  # which running average of the weights this is
    # of some real clips "frames" uint8 [N, c, H, W, C] and "labels" [N]; None where there are none
    clips: Mapping[str, np.ndarray] | None = None

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

    def __repr__(self) -> str:
        data, count = self.experiment.data, sum(x.size for x in jax.tree.leaves(self.params))
        shape = " x ".join(map(str, self.experiment.rin.example_shape))
        return (
            f"<rin_jax model of {data.name}: {shape}, {data.num_classes} classes, {count:,} "
            f"parameters, step {self.step}, {self.ema}>"
        )

    def sample(
        self, num: int, labels: int | str | Sequence[int | str] | None = None, seed: int = 0,
        frames: Array | None = None, callback: Callable | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Samples 0..num-1 of a seed: uint8 [num, *example_shape], as --mode=sample makes them.

        Sample i is the same whatever `num` is. `labels` is a class for all or one for each, by
        number or name; None takes the classes in turn. Where the network is given frames and none
        are passed, they and the classes are those of `clips` in turn. ConfigError at labels that
        the model does not know, or not `num` of them: so in all methods. In a notebook a bar shows
        how many are there.

        callback(step, indices [n], x0 uint8 [n, *example_shape]) sees the estimates of each batch
        after each of its steps, from 1; with it the images are the same up to rounding.
        """
        known = self.experiment.rin.num_classes
        num = arguments.whole_number("num", num, 2**31 - 1)
        if self.clips is not None and frames is None:
            turn = np.arange(num) % len(self.clips["frames"])
            frames = self.clips["frames"][turn]
            labels = self.clips["labels"][turn] if known and labels is None else labels
        if labels is None and known:
            labels = np.arange(num) % known
        return self._images(num, seed, self._cond(labels, frames, num), callback)

    def edit(
        self, images: Array, mask: Array | None = None, strength: float = 1.0,
        labels: int | str | Sequence[int | str] | None = None, seed: int = 0,
        frames: Array | None = None, callback: Callable | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Samples 0..B-1 of a seed that start from given images: uint8 [B, *example_shape].

        images: uint8 [B, *example_shape]. mask: bool [H, W] for all or [B, H, W], of clips with the
        frames before H; True where they are made anew, by default everywhere; the rest stays.
        strength: share of the sampler's steps that are made, in (0, 1]; the fewer, the more is left
        of the images where they are made anew, and nothing at 1. labels: as in `sample_from`. The
        rest as in `sample`.
        """
        images, free, first = arguments.edited(images, mask, strength, self.experiment)
        cond = self._cond(labels, frames, len(images)), images, free
        return self._images(len(images), seed, cond, callback, first)

    def _cond(self, labels, frames, num: int) -> dict[str, Any]:
        """The condition of `num` samples."""
        cond = of_labels(self._labels(labels, num), self.experiment.rin.num_classes)
        scale = self.experiment.sampler.process.input_scale
        frames = self._frames(frames, num, sampler=True)
        return cond | {name: scaled_frames(values, scale) for name, values in frames.items()}

    def _images(
        self, num: int, seed: int, cond, callback: Callable | None, first: int | None = None
    ) -> np.ndarray:
        """Images 0..num-1 of a seed; `cond` and `first` as the program of `jit_sampler`."""
        seed = arguments.whole_number("seed", seed, 2**32 - 1)
        generate = self._generate(seed, first)
        if callback is not None:
            program = functools.partial(jit_sampler, callback=callback, first=first)
            generate = make_generate(self.experiment, self.mesh, seed, program)
        images = np.zeros((num, *self.experiment.rin.example_shape), np.uint8)
        at_once = self.experiment.generation.images_per_device * self.mesh.size
        hidden = "ipykernel" not in sys.modules
        with tqdm.tqdm(total=num, unit=" images", disable=hidden, file=sys.stdout) as bar:
            for start in range(0, num, at_once):
                rows = np.arange(start, min(start + at_once, num))
                part = jax.tree.map(lambda values, rows=rows: values[rows], cond)
                images[rows] = generate(self.params, rows, part)
                bar.update(len(rows))
        return images

    def grid(self, images: np.ndarray, columns: int = grids.COLUMNS) -> Image.Image:
        """uint8 images [B, H, W, C] as one picture, of clips the frames, one clip in each row.

        A notebook shows it, and its method save writes a file.
        """
        images = arguments.examples("images", images, self.experiment.rin.example_shape)
        if images.dtype != np.uint8 or not len(images):
            raise ConfigError(f"images are {images.dtype} {images.shape}; give samples, uint8.")
        if images.ndim == 5:
            columns, images = images.shape[1], np.reshape(images, (-1, *images.shape[2:]))
        picture = grids.grid(np.asarray(images), columns)
        return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)

    def sample_from(
        self, noise: Array, labels=None, keys: Array | None = None, frames: Array | None = None
    ) -> Array:
        """Samples float32 [B, ...] in [-1, 1], not clipped, from standard normal noise [B, ...].

        `labels` is a class for all or one for each; None: no class. DDPM draws its fresh noise from
        `keys`, uint32 [B, 2]; DDIM needs none.
        """
        noise = arguments.examples("noise", noise, self.experiment.rin.example_shape)
        batch = noise.shape[0]
        keys = jnp.zeros((batch, 2), jnp.uint32) if keys is None else keys
        labels, frames = self._labels(labels, batch), self._frames(frames, batch, sampler=True)
        return self._on_all_devices(self._sampler, noise, labels, keys, **frames)

    def denoise(
        self, xt: Array, gamma: Array, labels=None, latents=None, frames: Array | None = None
    ) -> tuple[Array, Any]:
        """One pass of the network: (prediction [B, ...], latents) in float32.

        xt: noisy examples [B, ...], as the process has them. gamma: signal power [B] in (0, 1].
        labels: as in `sample_from`. latents: what the pass before returned; None at first.
        """
        xt = arguments.examples("xt", xt, self.experiment.rin.example_shape)
        gamma, batch = arguments.examples("gamma", gamma, ()), xt.shape[0]
        if latents is None:
            shapes = self.experiment.rin.abstract_latents(batch)
            latents = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        labels, frames = self._labels(labels, batch), self._frames(frames, batch, sampler=False)
        return self._on_all_devices(self._denoiser, xt, gamma, labels, latents, **frames)

    def _frames(self, frames, batch: int, *, sampler: bool) -> dict[str, np.ndarray]:
        """{"frames": [batch, c, H, W, C]} of the dtype that was passed; {} if none are given."""
        wanted = self.experiment.rin.abstract_cond(batch).get("frames")
        dtype = np.uint8 if sampler else np.float32
        return arguments.frames(frames, wanted and wanted.shape, dtype)

    def _labels(self, labels, batch: int) -> np.ndarray:
        """int32 [batch], NO_LABEL where there is none."""
        return arguments.labels(labels, batch, self.experiment.rin.num_classes, self.class_names)

    @functools.cached_property
    def _generate(self):
        """(seed, first) -> generate; compiled once for the same ones."""

        def made(seed: int, first: int | None):
            program = functools.partial(jit_sampler, first=first)
            return make_generate(self.experiment, self.mesh, seed, program)

        return functools.lru_cache(made)

    @functools.cached_property
    def _sampler(self):
        return self._by_rows(stablehlo.make_sampler(self.experiment))

    @functools.cached_property
    def _denoiser(self):
        return self._by_rows(stablehlo.make_denoiser(self.experiment))

    def _by_rows(self, program):
        """program(params, inputs, frames), compiled; every device computes its rows of a batch."""
        in_specs = sharding.replicated(self.mesh).spec, sharding.BATCH, sharding.BATCH
        by_rows = jax.shard_map(
            lambda params, inputs, frames: program(params, *inputs, **frames),
            # no check: zeros that a scan starts from are the same everywhere at first
            mesh=self.mesh, in_specs=in_specs, out_specs=sharding.BATCH, check_vma=False,
        )  # fmt: skip
        return jax.jit(by_rows)

    def _on_all_devices(self, compiled, *inputs, **frames):
        """What `compiled` makes of arrays [B, ...]; rows are repeated to fill the devices."""
        batch, shards = inputs[0].shape[0], sharding.batch_shards(self.mesh)
        rows = np.arange(batch + -batch % shards) % batch
        place = sharding.batch_sharding(self.mesh)

        def put(x):
            return jax.device_put(x if len(rows) == batch else jnp.asarray(x)[rows], place)

        inputs = jax.tree.map(put, (inputs, frames))
        return jax.tree.map(lambda x: x[:batch], compiled(self.params, *inputs))


def load(source: str, experiment: Experiment | None = None) -> Model:
    """A model from an export in a folder (local, or gs://...), or of a hub id ("owner/name").

    `experiment` is what samples, and on which mesh, instead of the run's own experiment on all
    devices; its architecture is the export's.

    An export may be anybody's. Nothing but its files is read, whatever names of data sets and
    folders are in it, and types and sizes are checked before anything of that size is allocated.

    Raises:
      ConfigError: there is no such export, or it is damaged, changed, incomplete, of another
        format version or architecture; the message names the file, tensor or field.
    """
    path = hub.find(source)
    description = export_format.read(path)
    try:
        own = stored_experiment(description.config)
    except ConfigError as error:
        raise ConfigError(f"{path / export_format.CONFIG}: {error}") from error
    network = SINCE_FORMAT_2 | {"cond_frames": 0} | description.network
    export_format.check_network(path / export_format.CONFIG, network, own.rin)
    if experiment is not None:
        say_changes(experiment, own.config.to_dict(), str(path))
    experiment = experiment or own
    check_architecture(experiment, own.config.to_dict(), f"the export {source}")
    mesh = device_mesh(experiment)
    place = functools.partial(jax.device_put, device=sharding.replicated(mesh))
    params = export_format.read_weights(path, description.sha256, experiment.rin, place)
    names = description.class_names
    if names is not None and len(names) > experiment.rin.num_classes:
        known = experiment.rin.num_classes
        raise ConfigError(f"{source} names {len(names)} classes; the network has {known}.")
    clips = given_clips.read(path / GIVEN_FRAMES, experiment.rin)
    return Model(experiment, params, mesh, names, description.step, description.ema, clips)


def stored_experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment of an export, on any devices; ConfigError at what an export does not have."""
    sections = completed(config) | ANY_MACHINE
    data, sampler = sections.get("data"), sections.get("sampler")
    for field in ("image_size", "channels", "num_classes"):  # else a data set would be asked
        if isinstance(data, Mapping) and data.get(field) is None:
            raise ConfigError(f"data.{field} is not set; an export tells all sizes.")
    if isinstance(sampler, Mapping) and sampler.get("guide") is not None:
        raise ConfigError("sampler.guide is set, but an export holds one network.")
    return make_experiment(sections)


def exported_names(source: str) -> tuple[str, ...]:
    """The names of the classes of an export, empty if it does not tell; raises as `load`."""
    return tuple(export_format.read(hub.find(source)).class_names or ())
