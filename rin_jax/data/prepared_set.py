"""The files of a data set of our own beside its shards: the report, and what TFDS reads.

`shard_writer.py` writes the shards.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds

from rin_jax.data.originals import FolderOriginal, TfdsOriginal

Original = TfdsOriginal | FolderOriginal


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of a written shard."""

    records: int  # images in it
    bytes: int  # of the file
    enlarged: int  # images whose shorter side was below the training size
    classes: dict[int, int]  # images of each class
    skipped: list[tuple[str, str]]  # (what, why) of each image that was left out


def read_report(folder: pathlib.Path, split: str) -> dict | None:
    """The report of a finished split, or None."""
    path = folder / f"report-{split}.json"
    return json.loads(path.read_text()) if path.exists() else None


def publish(folder: pathlib.Path, staging: pathlib.Path, original: Original, report: dict) -> None:
    """Moves the shards to their place and, last, makes the split known to TFDS."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in staging.glob("*.array_record-*-of-?????"):
        path.rename(folder / path.name)
    write_whole(folder / f"report-{original.split}.json", json.dumps(report, indent=2))
    template = tfds.core.ShardedFileTemplate(
        folder, dataset_name=folder.parent.name, filetype_suffix="array_record"
    )
    splits = []
    for path in sorted(folder.glob("report-*.json")):
        one = json.loads(path.read_text())
        files = template.replace(split=one["split"])
        splits.append(tfds.core.SplitInfo(one["split"], one["shard_lengths"], one["bytes"], files))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=make_features(original, report["image_size"]),
        split_infos=splits,
        filename_template=template,
        check_data=False,  # would need TensorFlow; each shard was checked
        description=f"{original.name} at {report['image_size']} pixels: the largest central "
        "square of each image, antialiased bicubic resize, PNG.",
    )


def make_features(original: Original, image_size: int) -> tfds.features.FeaturesDict:
    """The features of a record: a square PNG and, if there are classes, a label."""
    shape = (image_size, image_size, original.channels)
    features = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if original.class_names:
        features["label"] = tfds.features.ClassLabel(names=list(original.class_names))
    return tfds.features.FeaturesDict(features)


def make_report(original: Original, image_size: int, shards: Sequence[Shard]) -> dict:
    """What `shard_writer.write` returns, from all shards of a split."""
    classes = sum((collections.Counter(shard.classes) for shard in shards), collections.Counter())
    return {
        "name": original.name, "split": original.split, "original": original.fingerprint,
        "image_size": image_size, "channels": original.channels,
        "written": sum(shard.records for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "enlarged": sum(shard.enlarged for shard in shards),
        "classes": {name: classes[label] for label, name in enumerate(original.class_names)},
        "skipped": [list(image) for shard in shards for image in shard.skipped],
        "shard_lengths": [shard.records for shard in shards],
    }  # fmt: skip


def file_name(folder: pathlib.Path, split: str, index: int, count: int) -> str:
    """The name of shard `index` of `count`, as TFDS expects it."""
    return f"{folder.parent.name}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.rename(path)
