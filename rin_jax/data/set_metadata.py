"""What a data set of ours says of itself: its records, a report of each split, what TFDS reads."""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from rin_jax.data.dataset import Clip
from rin_jax.data.originals import FolderOriginal, TfdsOriginal
from rin_jax.runtime import files

Original = TfdsOriginal | FolderOriginal


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a record has of each image or clip."""

    image_size: int  # height and width
    clip: Clip | None  # None: an image
    encoding: str  # of `preprocessing.ENCODINGS`
    fit: str  # of `preprocessing.FITS`

    def describe(self) -> dict[str, Any]:
        """What a report and a plan say of it."""
        of_clip = self.clip.prepared if self.clip else {}
        plain = {"image_size": self.image_size, "encoding": self.encoding, "fit": self.fit}
        return plain | of_clip


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of a written shard."""

    records: int  # images or clips in it; "image" stands for both below
    bytes: int  # of the file
    squared_error: float  # sum over images of the mean over their pixels; 0 if nothing is lost
    enlarged: int  # images whose square was below the training size
    classes: dict[int, int]  # images of each class
    skipped: list[tuple[str, str]]  # (what, why) of each image that was left out


def make_features(original: Original, stored: Stored) -> tfds.features.FeaturesDict:
    """The features of a record: an image or video and, if there are classes, a label.

    They do not say how images are encoded, which each split may do otherwise and readers find out.
    """
    shape = (stored.image_size, stored.image_size, original.channels)
    image = tfds.features.Image(shape=shape)
    features = {"image": image}
    if stored.clip is not None:
        features = {"video": tfds.features.Sequence(image, length=stored.clip.frames)}
    if original.class_names:
        features["label"] = tfds.features.ClassLabel(names=list(original.class_names))
    return tfds.features.FeaturesDict(features)


def make_report(original: Original, stored: Stored, shards: Sequence[Shard]) -> dict[str, Any]:
    """The report of a split, from all of its shards.

    "psnr" is that of the images as they are read against those that were encoded, in dB, from the
    mean squared error over all of them; None if nothing is lost.
    """
    classes = sum((collections.Counter(shard.classes) for shard in shards), collections.Counter())
    written = sum(shard.records for shard in shards)
    squared_error = sum(shard.squared_error for shard in shards)
    return {
        "name": original.name, "split": original.split, "original": original.fingerprint,
        "channels": original.channels, **stored.describe(), "written": written,
        "bytes": sum(shard.bytes for shard in shards),
        "psnr": 10 * math.log10(255**2 * written / squared_error) if squared_error else None,
        "enlarged": sum(shard.enlarged for shard in shards),
        "classes": {name: classes[label] for label, name in enumerate(original.class_names)},
        "skipped": [list(image) for shard in shards for image in shard.skipped],
        "shard_lengths": [shard.records for shard in shards],
    }  # fmt: skip


def read_report(folder: pathlib.Path, split: str) -> dict[str, Any] | None:
    """The report of a finished split, or None."""
    path = folder / f"report-{split}.json"
    if not path.exists():
        return None
    older = {"encoding": "png", "psnr": None, "fit": "crop"}  # what they did not say
    return older | json.loads(path.read_text())


def publish(
    folder: pathlib.Path, staging: pathlib.Path, original: Original, stored: Stored, report: dict
) -> None:
    """Moves the shards to their place and, last, makes the split known to TFDS."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in staging.glob("*.array_record-*-of-?????"):
        path.rename(folder / path.name)
    path, text = folder / f"report-{original.split}.json", json.dumps(report, indent=2)
    files.write_whole(path, text.encode())
    template = tfds.core.ShardedFileTemplate(
        folder, dataset_name=folder.parent.name, filetype_suffix="array_record"
    )
    splits = []
    for path in sorted(folder.glob("report-*.json")):
        one = json.loads(path.read_text())
        names = template.replace(split=one["split"])
        splits.append(tfds.core.SplitInfo(one["split"], one["shard_lengths"], one["bytes"], names))
    resized = "antialiased bicubic" if stored.clip is None else "area"
    whole = {"crop": "the largest central square of each image", "pad": "each image, padded"}
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=make_features(original, stored),
        split_infos=splits,
        filename_template=template,
        check_data=False,  # would need TensorFlow; each shard was checked
        description=f"{original.name} at {stored.image_size} pixels: {whole[stored.fit]}, "
        f"resized ({resized}).",
    )
