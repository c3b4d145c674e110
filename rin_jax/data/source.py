"""Opening an image data set of TFDS by its name, for reading at random without TensorFlow.

Owns what a data set is here: a TFDS name with one image feature and perhaps one class label,
prepared as ArrayRecord files. A data set that is not there yet is prepared on opening.
"""

import dataclasses
import difflib
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rin_jax.data import digits  # noqa: F401  (the import registers the name "digits")


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of one split of a data set without reading a record.

    Attributes:
      name: the TFDS name, as given.
      image_shape: (height, width, channels) as TFDS declares it, None where it varies.
      num_classes: 0 if the data set has no class label.
      class_names: one name a class; empty if there is no class label.
      num_examples: records in the split; None while the data set is not prepared.
    """

    name: str
    image_shape: tuple[int | None, ...]
    num_classes: int
    class_names: tuple[str, ...]
    num_examples: int | None


class ImageSource:
    """The records of one split, in storage order.

    Record i is {"image": uint8 [H, W, C]} and, if info.num_classes > 0, "label": int.
    Attribute `info` is the DatasetInfo. Reading from several threads is safe.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, info: DatasetInfo, split: str):
        self.info = info
        self._image_key, self._label_key = _feature_keys(info.name, builder)
        features = builder.info.features.items()
        encoded = [key for key, feature in features if isinstance(feature, tfds.features.Image)]
        self._records = builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in encoded}
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        stored = self._records[index]
        record = {"image": _decode(stored[self._image_key], self.info.image_shape[-1])}
        if self._label_key is not None:
            record["label"] = int(stored[self._label_key])
        return record


def describe(name: str, split: str, data_dir: str | None) -> DatasetInfo:
    """Looks a data set up; downloads, prepares and reads nothing.

    Args:
      name: a TFDS name, perhaps with a configuration ("imagenet_resized/64x64"), or "digits".
      split: a TFDS split, for example "train" or "train[:90%]".
      data_dir: the folder of prepared data sets; None is TFDS's own default.

    Raises:
      ValueError: no such name, no such split, or no image of 8 bits in the data set.
      ImportError: the description itself needs TensorFlow.
    """
    return _info(name, split, _builder(name, data_dir))


def open_source(name: str, split: str, data_dir: str | None) -> ImageSource:
    """Opens one split, after preparing the data set if data_dir does not hold it.

    Takes the arguments of `describe`. Processes that share data_dir may call this together.

    Raises:
      ValueError: as `describe`, and where data_dir holds it in a format without random access.
      ImportError: the preparation needs TensorFlow, which is not installed.
    """
    builder = _builder(name, data_dir)
    _feature_keys(name, builder)  # refused before a download
    if not builder.is_prepared():
        _prepare(name, builder)
        builder = _builder(name, data_dir)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"data.data_dir: {builder.data_path} holds data.name={name!r} as "
            f"{', '.join(sorted(formats))}, but only array_record can be read at random; give "
            f"another data.data_dir or delete that folder, and it is prepared anew"
        )
    return ImageSource(builder, _info(name, split, builder), split)


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        stem = name.partition("/")[0].partition(":")[0]
        nearest = difflib.get_close_matches(stem, known, n=5, cutoff=0.5)
        hint = f"nearest names: {', '.join(nearest)}" if nearest else "no name is near it"
        raise ValueError(f"data.name: TFDS has no data set {name!r}; {hint}") from None
    except ImportError as error:
        raise _missing_package(f"describing {name!r}", error) from error
    except (AssertionError, ValueError) as error:  # an unknown configuration or version
        raise ValueError(f"data.name: {name!r} cannot be opened: {error}") from error


def _missing_package(doing: str, error: ImportError) -> ImportError:
    cause = str(error).splitlines()[-1]  # TFDS puts the record that it was at before it
    return ImportError(
        f"data.name: {doing} needs a package that is missing ({cause}); if it is TensorFlow, "
        f'install it for this, training does without: pip install "rin-jax[tf]"'
    )


def _feature_keys(name: str, builder: tfds.core.DatasetBuilder) -> tuple[str, str | None]:
    """The keys of the image and of the class label (None: unconditional)."""
    features = builder.info.features
    items = features.items() if isinstance(features, tfds.features.FeaturesDict) else ()
    images = [
        key
        for key, feature in items
        if isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage)
        and feature.np_dtype == np.uint8
    ]
    labels = [key for key, feature in items if isinstance(feature, tfds.features.ClassLabel)]
    image, label = _choose(images, "image"), _choose(labels, "label")
    if image is None:
        found = f"several ({', '.join(images)})" if images else "none"
        raise ValueError(
            f"data.name: {name!r} must have one image feature of 8 bits but has {found}; "
            f"choose another data set"
        )
    return image, label


def _choose(keys: list[str], preferred: str) -> str | None:
    if preferred in keys:
        return preferred
    return keys[0] if len(keys) == 1 else None


def _info(name: str, split: str, builder: tfds.core.DatasetBuilder) -> DatasetInfo:
    image_key, label_key = _feature_keys(name, builder)
    class_label = builder.info.features[label_key] if label_key else None
    num_examples = None
    if builder.is_prepared():
        try:
            num_examples = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"data.split: {split!r} is not a split of data.name={name!r}; "
                f"it has {', '.join(builder.info.splits)}"
            ) from error
    return DatasetInfo(
        name=name,
        image_shape=tuple(builder.info.features[image_key].shape),
        num_classes=class_label.num_classes if class_label else 0,
        class_names=tuple(class_label.names) if class_label else (),
        num_examples=num_examples,
    )


def _prepare(name: str, builder: tfds.core.DatasetBuilder) -> None:
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except ImportError as error:
        raise _missing_package(f"preparing {name!r}", error) from error
    except OSError:
        # TFDS writes beside the folder and renames at the end, which fails if another process
        # was first: its copy is complete, then, and serves.
        if not builder.data_path.exists():
            raise


def _decode(encoded: bytes, channels: int | None) -> np.ndarray:
    """Decodes PNG or JPEG into uint8 [H, W, C], with the declared number of channels."""
    with Image.open(io.BytesIO(encoded)) as image:
        mode = {1: "L", 3: "RGB"}.get(channels, image.mode)
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels
