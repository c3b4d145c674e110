"""Where the images or clips of a data set to be prepared come from: TFDS, or a user's folder.

All origins give the same: `name`, `split`, `channels`, `class_names`, `fingerprint`, a length, and
`read(start, stop)`, which gives (what to call it, load) for each image; load() decodes it and gives
(uint8 [H, W, C], class or None). A clip is uint8 [T, H, W, C].
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from rin_jax import ConfigError
from rin_jax.data import catalog, clips, folder_classes, preprocessing
from rin_jax.data.dataset import Clip
from rin_jax.data.folder_classes import is_hidden

Image = tuple[str, Callable[[], tuple[np.ndarray, int | None]]]
EXTENSIONS = {
    ".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".jp2", ".avif",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TfdsOriginal:
    """One split of a data set that TFDS has prepared, in storage order; threads may share it.

    ArrayRecord is read without TensorFlow, other formats (TFRecord, say) with it; ConfigError if it
    is not installed then.
    """

    info: catalog.DatasetInfo
    builder: tfds.core.DatasetBuilder

    def __post_init__(self):
        if not catalog.has_random_access(self.builder):
            catalog.require_tensorflow(f"reading {self.info.name!r} from {self.info.folder}")

    name, split = property(lambda self: self.info.name), property(lambda self: self.info.split)
    class_names = property(lambda self: self.info.class_names)
    channels = property(lambda self: self.info.example_shape[-1] or 3)

    @property
    def fingerprint(self) -> str:
        files = self.builder.info.splits[self.info.split].file_instructions
        what = (self.info.name, [(file.skip, file.take) for file in files], self.class_names)
        return hashlib.sha256(str(what).encode()).hexdigest()

    def __len__(self) -> int:
        return self.info.num_examples

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """The images start, ..., stop - 1; see the module."""
        image_key, label_key = catalog.feature_keys(self.info.name, self.builder)
        for index, record in enumerate(self._records(start, stop), start):
            label = None if label_key is None else int(record[label_key])

            def load(encoded=record[image_key], label=label):
                if label is not None and not 0 <= label < len(self.class_names):
                    raise ValueError(f"label {label} is outside [0, {len(self.class_names)})")
                return preprocessing.decode(encoded, self.channels), label

            yield f"record {index}", load

    def _records(self, start: int, stop: int) -> Iterator[dict]:
        features = self.builder.info.features.items()
        images = [key for key, feature in features if isinstance(feature, tfds.features.Image)]
        skip = dict.fromkeys(images, tfds.decode.SkipDecoding())
        if catalog.has_random_access(self.builder):
            records = self.builder.as_data_source(self.info.split, decoders=skip)
            return (records[index] for index in range(start, stop))
        split = tfds.core.ReadInstruction(self.info.split, from_=start, to=stop, unit="abs")
        return iter(tfds.as_numpy(self.builder.as_dataset(split=split, decoders=skip)))


@dataclasses.dataclass(frozen=True)
class FolderOriginal:
    """The images or clips of a folder in an order that mixes the classes; see `open_folder`."""

    name: str  # like split, of the data set that becomes of it
    split: str
    root: pathlib.Path
    files: Sequence[str]  # relative paths
    labels: Sequence[int] | None  # a class for each
    class_names: tuple[str, ...]  # one a class
    channels: int  # 1 or 3, of all
    clip: Clip | None  # what is taken of a clip; None for images

    @property
    def fingerprint(self) -> str:
        sizes = [(self.root / file).stat().st_size for file in self.files]
        what = (self.files, sizes, self.labels, self.class_names, self.channels)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """The images start, ..., stop - 1; see the module."""
        for index in range(start, stop):

            def load(file=self.files[index], index=index):
                label = None if self.labels is None else self.labels[index]
                if self.clip is None:
                    return preprocessing.read_any(self.root / file, self.channels), label
                return clips.decode(self.root / file, file, self.clip, self.channels), label

            yield self.files[index], load


def open_folder(
    root: str, name: str, split: str, num_classes: int | None, channels: int,
    clip: Clip | None = None,
) -> FolderOriginal:  # fmt: skip
    """Lists the images of a folder, or the clips, and finds their classes (`folder_classes`).

    Hidden files are left out.

    Raises:
      ConfigError: no images; classes that are wrong, or more than `num_classes` (0: not used, None:
        all); clips and no PyAV.
    """
    folder = pathlib.Path(root)
    what, extensions = ("image", EXTENSIONS) if clip is None else ("clip", clips.EXTENSIONS)
    if clip is not None:
        clips.require_pyav()
    if not folder.is_dir():
        raise ConfigError(f"--source={root} is not a folder; name the folder that has the {what}s")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in extensions]
    names = {path.relative_to(folder) for path in paths if path.is_file()}
    files = sorted(path.as_posix() for path in names if not any(map(is_hidden, path.parts)))
    if not files:
        known = ", ".join(sorted(extensions))
        raise ConfigError(f"--source={root} has no {what} (files that end in {known})")
    files, labels, names = folder_classes.find(folder, files, what, split)
    if num_classes and len(names) > num_classes:
        raise ConfigError(
            f"data.num_classes is {num_classes}, but --source={root} has labels "
            f"0..{len(names) - 1}; set at least {len(names)}"
        )
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    files = [files[index] for index in order]
    labels = None if labels is None else [labels[index] for index in order]
    return FolderOriginal(name, split, folder, files, labels, names, channels, clip)
