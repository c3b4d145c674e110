"""Which data set a name means, and what is known of it.

A data set here is a TFDS name with one image feature of 8 bits, or one video feature of such images
if clips are wanted, and perhaps one class label. Under a name there may be the set as TFDS prepared
it and, for each image size, a copy of ours (`shard_writer.py`) in the folder NAME_SIZEpx or, of
clips, NAME_FRAMESxSIZEpx; the copy of the size that is wanted comes first.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import checksums

from rin_jax import ConfigError
from rin_jax.data import digits, moving_digits  # noqa: F401  (the import registers the names)
from rin_jax.runtime import console, files

Builder = tfds.core.DatasetBuilder


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of one split of a data set without reading a record."""

    name: str  # like split, as given
    split: str
    # (height, width, channels), of clips (frames, height, width, channels), as declared; None: it
    # varies
    example_shape: tuple[int | None, ...]
    num_classes: int  # 0 if the data set has no class label
    class_names: tuple[str, ...]  # one name a class; empty if there is no class label
    num_examples: int | None  # records in the split; None while the data set is not prepared
    folder: str  # of the files; they need not be there yet


def describe(
    name: str, split: str, data_dir: str | None, image_size: int | None, frames: int | None = None
) -> DatasetInfo:
    """Looks a data set up; downloads, prepares and reads nothing.

    The arguments are the fields of the section `data`; `frames` those of a clip, None for images.

    Raises:
      ConfigError: no such name, no such split, no image of 8 bits in the data set, images where
        clips are wanted or the other way round, clips of other frames, or its description itself
        needs TensorFlow, which is not installed.
    """
    return info(name, split, find_builder(name, data_dir, image_size, frames), frames)


def folder_of(data_dir: str | None) -> epath.Path:
    """The folder of prepared data sets."""
    return epath.Path(tfds.core.constants.DATA_DIR if data_dir is None else data_dir).expanduser()


def sized_folder(
    name: str, data_dir: str | None, image_size: int, frames: int | None = None
) -> epath.Path:
    """The folder of our copy of a data set at one size; its version is in it."""
    size = f"{image_size}px" if frames is None else f"{frames}x{image_size}px"
    return folder_of(data_dir) / f"{re.sub('[/:.]', '_', name)}_{size}" / "1.0.0"


def find_splits(folder: epath.Path) -> tuple[str, ...]:
    """The splits of a copy of ours that are complete; none if it is not there."""
    if not (folder / "dataset_info.json").exists():
        return ()
    return tuple(tfds.builder_from_directory(folder).info.splits)


def has_random_access(builder: Builder) -> bool:
    """Whether a prepared data set is stored as ArrayRecord."""
    return "array_record" in {found.value for found in builder.info.available_file_formats()}


def find_builder(
    name: str, data_dir: str | None, image_size: int | None, frames: int | None = None
) -> Builder:
    """Our copy at that size if it is there, else the data set of TFDS; see `describe`."""
    try:
        folder = folder_of(data_dir)
        if not files.is_bucket(folder) and folder.exists():
            os.listdir(folder)  # TFDS takes a folder that it may not read for one that is not there
        if image_size is not None:
            copy = sized_folder(name, data_dir, image_size, frames)
            if (copy / "dataset_info.json").exists():
                return tfds.builder_from_directory(copy)
        return tfds_builder(name, data_dir, image_size, frames)
    except PermissionError as error:
        raise ConfigError(
            f"data.data_dir: {error.filename} may not be read by this user ({error.strerror}); "
            "change its permissions, or name another folder."
        ) from error


def copies(name: str, data_dir: str | None) -> list[tuple[int | None, int]]:
    """(frames, size) of each copy of ours under a name; frames are None of images."""
    stem = sized_folder(name, data_dir, 0).parent.name.removesuffix("0px")
    folder, sizes = folder_of(data_dir), re.compile(re.escape(stem) + r"(?:(\d+)x)?(\d+)px")
    found = folder.glob(f"{stem}*px/1.0.0/dataset_info.json") if folder.exists() else ()
    matches = filter(None, (sizes.fullmatch(path.parent.parent.name) for path in found))
    known = [(match[1] and int(match[1]), int(match[2])) for match in matches]
    return sorted(known, key=lambda copy: (copy[0] or 0, copy[1]))


def other_sizes(
    name: str, data_dir: str | None, image_size: int | None, frames: int | None = None
) -> tuple[str, str]:
    """Which other copies there are, as the end of a message, and the flag that chooses one."""
    known = copies(name, data_dir)
    images = [size for of, size in known if of is None]
    clips = [(of, size) for of, size in known if of is not None]
    of_images = ", ".join(f"{size}px" for size in images)
    of_clips = ", ".join(f"{of}x{size}px" for of, size in clips)
    if frames is None and images:
        near = min(images, key=lambda size: abs(size - (image_size or 0)))
        return f" at data.image_size, only at {of_images}", f"set --config.data.image_size={near}"
    if frames is None and clips:
        return f" of images, only of clips ({of_clips})", "set data.clip for them"
    if clips:
        of, size = min(clips, key=lambda x: (abs(x[0] - frames), abs(x[1] - (image_size or 0))))
        remedy = f"set --config.data.clip.frames={of} and --config.data.image_size={size}"
        return f" at data.clip.frames x data.image_size, only at {of_clips}", remedy
    if images:
        return f" of clips, only of images ({of_images})", "leave data.clip out"
    return "", ""


def tfds_builder(
    name: str, data_dir: str | None, image_size: int | None = None, frames: int | None = None
) -> Builder:
    """The data set of TFDS, prepared or not; errors as `describe`.

    Of a name that TFDS does not know, where no size is asked for, it is the only copy of ours. Size
    and frames are those of clips that are rendered; no other data set of TFDS depends on them.
    """
    if name == moving_digits.NAME:
        return moving_digits.MovingDigits(image_size, frames, data_dir=data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        sizes = [size for of, size in copies(name, data_dir) if of == frames]
        if image_size is None and len(sizes) == 1:
            folder = sized_folder(name, data_dir, sizes[0], frames)
            return tfds.builder_from_directory(folder)
        known = tfds.list_builders(with_community_datasets=False)
        nearest = difflib.get_close_matches(re.split("[/:]", name)[0], known, n=5, cutoff=0.5)
        hint = f"nearest names: {', '.join(nearest)}" if nearest else "no name is near it"
        there, remedy = other_sizes(name, data_dir, image_size, frames)
        folder = folder_of(data_dir)
        gone = "" if folder.exists() else ", which is not there,"
        raise ConfigError(
            f"data.name: neither TFDS nor {folder}{gone} has a data set "
            f"{name!r}{there}; {remedy or hint}."
        ) from None
    except ImportError as error:
        raise _missing_package(f"describing {name!r}", error) from error
    except (AssertionError, ValueError) as error:  # an unknown configuration or version
        raise ConfigError(f"data.name: {name!r} cannot be opened: {error}") from error


def _missing_package(doing: str, error: ImportError) -> ConfigError:
    cause = str(error).splitlines()[-1]  # TFDS writes the record that it was at before it
    return ConfigError(
        f"data.name: {doing} needs a package that is missing ({cause}); if it is TensorFlow, "
        f'install it for this (training does not need it): pip install "rin-jax[tf]"'
    )


def feature_keys(name: str, builder: Builder, frames: int | None = None) -> tuple[str, str | None]:
    """The keys of the image, or video if there are `frames`, and of the class label, if any."""
    features = builder.info.features
    items = features.items() if isinstance(features, tfds.features.FeaturesDict) else ()
    found_images = [
        key for key, feature in items if isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage) and feature.np_dtype == np.uint8
    ]  # fmt: skip
    found_videos = [
        key for key, feature in items
        if isinstance(feature, tfds.features.Sequence)  # as is TFDS's Video, which needs TensorFlow
        and isinstance(feature.feature, tfds.features.Image)
        and not isinstance(feature.feature, tfds.features.LabeledImage)
        and feature.feature.np_dtype == np.uint8
    ]  # fmt: skip
    labels = [key for key, feature in items if isinstance(feature, tfds.features.ClassLabel)]
    kind, keys, others = "image", found_images, found_videos
    if frames is not None:
        kind, keys, others = "video", found_videos, found_images
    chosen, label = _choose(keys, kind), _choose(labels, "label")
    if others and not keys:
        clash = "set, but {} is a data set of images; do not set it"
        if frames is None:
            clash = "not set, but {} is a data set of clips; set it"
        raise ConfigError(f"data.clip is {clash.format(repr(name))}, or choose another data set")
    if chosen is None:
        found = f"several ({', '.join(keys)})" if keys else "none"
        wanted = f"data.name: {name!r} must have one {kind} feature of 8 bits"
        raise ConfigError(f"{wanted} but has {found}; choose another data set")
    return chosen, label


def _choose(keys: list[str], preferred: str) -> str | None:
    only = keys[0] if len(keys) == 1 else None
    return preferred if preferred in keys else only


def info(name: str, split: str, builder: Builder, frames: int | None = None) -> DatasetInfo:
    """What a builder tells of one split; errors as `describe`."""
    example_key, label_key = feature_keys(name, builder, frames)
    label = builder.info.features[label_key] if label_key else None
    num_examples, folder = None, str(builder.data_path)
    if builder.is_prepared():
        try:
            num_examples = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"data.split: {split!r} is not a split of data.name={name!r}; "
                f"{builder.data_path} has {', '.join(builder.info.splits)}; choose one of these, "
                f"or run the same command once with --mode=prepare"
            ) from error
    example_shape = tuple(builder.info.features[example_key].shape)
    if frames is not None and example_shape[0] != frames:
        raise ConfigError(
            f"data.clip.frames is {frames}, but the clips of {name!r} in {folder} have "
            f"{example_shape[0] or 'no fixed number of'} frames; choose another data set or set "
            "data.clip.frames to theirs"
        )
    num_classes, names = (label.num_classes, tuple(label.names)) if label else (0, ())
    return DatasetInfo(name, split, example_shape, num_classes, names, num_examples, folder)


def prepare_with_tfds(name: str, builder: Builder, downloaded: str | None) -> None:
    """Has TFDS prepare a data set as ArrayRecord, from the network if it must.

    `downloaded` is a folder that is looked through for the files first, under their original
    names; the only way for a data set that one has to fetch by hand.

    Raises:
      ConfigError: the preparation needs TensorFlow, which is not installed; files are missing or
        cannot be fetched; or the disk is full.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=downloaded)
    if downloaded is not None:
        _trust_files(builder, downloaded)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow, if imported, tells of it
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS praises what it does
            builder.download_and_prepare(file_format="array_record", download_config=config)
    except ImportError as error:
        raise _missing_package(f"preparing {name!r}", error) from error
    except (AssertionError, OSError) as error:  # files that are missing, network, disk
        # TFDS writes beside the folder and renames at the end, which fails if another process was
        # first; that one's copy is complete and will do.
        if builder.data_path.exists():
            return
        raise ConfigError(
            f"data.name: TFDS cannot prepare {name!r} in {builder.data_path}: {str(error).strip()}"
            f"\nWith the files fetched by other means, give their folder: --downloaded=FOLDER"
        ) from error


def _trust_files(builder: Builder, downloaded: str) -> None:
    """Takes the user's files as they are, and says so where TFDS knows other checksums.

    Some sources pack the same content anew, which changes the checksum of the package.
    """
    known, unknown = builder.url_infos or {}, []
    for url, expected in known.items():
        path = epath.Path(downloaded) / (expected.filename or "")
        if path.is_file():
            known[url] = checksums.compute_url_info(path)
            if known[url] != expected:
                unknown.append(path.name)
    if unknown:
        console.say(f"used as they are, packed otherwise than TFDS knows: {', '.join(unknown)}")


def require_tensorflow(doing: str) -> None:
    """Raises ConfigError, with the remedy, where TensorFlow is not installed."""
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise _missing_package(doing, error) from error
