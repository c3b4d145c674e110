"""Where the images of a data set to be prepared come from: TFDS, or a user's folder.

Both origins give the same: `name`, `split`, `channels`, `class_names`, `fingerprint`, a length, and
`read(start, stop)`, which gives (what to call it, load) for each image; load() decodes it and gives
(uint8 [H, W, C], class or None).

The classes of a folder are found in one of these, in this order:
  dataset.json  {"labels": [["some/file.png", 3], ...]}; {"labels": null} for no classes
  labels.csv    with the columns file and label; labels are class names, or the integers 0, 1, ...
  folders       one folder a class, whose name is the class's, images at any depth below
  none          images in the folder itself and no folders: no classes
"""

import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from rin_jax import ConfigError
from rin_jax.data import catalog, preprocessing

Image = tuple[str, Callable[[], tuple[np.ndarray, int | None]]]
EXTENSIONS = {
    ".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".jp2", ".avif",
}  # fmt: skip
Classes = tuple[list[int] | None, tuple[str, ...]]  # a label for each file, and the class names


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
    """The images of a folder in a fixed order that mixes the classes; see `open_folder`."""

    name: str  # like split, of the data set that becomes of it
    split: str
    root: pathlib.Path
    files: Sequence[str]  # relative paths of the images
    labels: Sequence[int] | None  # a class for each
    class_names: tuple[str, ...]  # one a class
    channels: int  # 1 or 3, of all images

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

            def load(index=index):
                image = preprocessing.read_any(self.root / self.files[index], self.channels)
                return image, None if self.labels is None else self.labels[index]

            yield self.files[index], load


def open_folder(
    root: str, name: str, split: str, num_classes: int | None, channels: int
) -> FolderOriginal:
    """Lists the images of a folder and finds their classes; at most `num_classes`, if given.

    Raises:
      ConfigError: no images; a class without images; labels that are missing, of no image or
        outside the classes; images that may or may not have classes.
    """
    folder = pathlib.Path(root)
    if not folder.is_dir():
        raise ConfigError(f"--source={root} is not a folder; name the folder that has the images")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS]
    files = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    if not files:
        known = ", ".join(sorted(EXTENSIONS))
        raise ConfigError(f"--source={root} has no image (files that end in {known})")
    readers = {"dataset.json": _read_json, "labels.csv": _read_csv}
    tables = [table for table in readers if (folder / table).exists()]
    if len(tables) > 1:
        raise ConfigError(f"--source={root} has {' and '.join(tables)}; keep one of them")
    if tables:
        rows = readers[tables[0]](folder / tables[0])
        labels, names = _by_table(folder / tables[0], rows, files)
    else:
        labels, names = _by_folders(folder, files)
    if labels is not None and num_classes is not None and len(names) > num_classes:
        raise ConfigError(
            f"data.num_classes is {num_classes}, but --source={root} has labels "
            f"0..{len(names) - 1}; set at least {len(names)}"
        )
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    files = [files[index] for index in order]
    labels = None if labels is None else [labels[index] for index in order]
    return FolderOriginal(name, split, folder, files, labels, names, channels)


def _by_folders(folder: pathlib.Path, files: Sequence[str]) -> Classes:
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    classes = sorted(path.name for path in folders)
    if not classes:
        return None, ()
    tops = [file.partition("/")[0] if "/" in file else None for file in files]
    if loose := [file for file, top in zip(files, tops, strict=True) if top not in classes]:
        raise ConfigError(
            f"--source={folder} has folders and also images beside them ({_some(loose)}): move "
            "each into the folder of its class, or add labels.csv (columns file, label)"
        )
    if empty := sorted(set(classes) - set(tops)):
        raise ConfigError(
            f"--source={folder}: no image in {len(empty)} of {len(classes)} class folders "
            f"({_some(empty)}); delete these folders or put images in"
        )
    return [classes.index(top) for top in tops], tuple(classes)


def _by_table(table: pathlib.Path, rows: dict[str, str] | None, files: Sequence[str]) -> Classes:
    if rows is None:
        return None, ()
    for what, names in (
        ("names files that are no images there", sorted(set(rows) - set(files))),
        ("has no label for some images", sorted(set(files) - set(rows))),
    ):
        if names:
            raise ConfigError(f"{table} {what}: {_some(names)} ({len(names)} in all)")
    classes = sorted(set(rows.values()))
    if all(value.lstrip("-").isdecimal() for value in classes):
        if negative := sorted(file for file, value in rows.items() if int(value) < 0):
            raise ConfigError(f"{table}: labels below 0 at {_some(negative)}")
        labels = [int(rows[file]) for file in files]
        return labels, tuple(str(number) for number in range(max(labels) + 1))
    return [classes.index(rows[file]) for file in files], tuple(classes)


def _read_json(table: pathlib.Path) -> dict[str, str] | None:
    try:
        labels = json.loads(table.read_text(encoding="utf-8"))["labels"]
        return None if labels is None else {file: str(int(label)) for file, label in labels}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f'{table} cannot be read ({error!r}); write {{"labels": [["FILE", INTEGER], ...]}}'
        ) from error


def _read_csv(table: pathlib.Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            found = reader.fieldnames
            raise ConfigError(
                f"{table} has the columns {found}; its first line must name file and label"
            )
        rows = {}
        for row in reader:
            if not row["label"]:
                raise ConfigError(f"{table}, line {reader.line_num}: no label")
            rows[row["file"]] = row["label"].strip()
    return rows


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
