"""The job that prepares a data set at the training size and shows what the network will see.

A data set of TFDS, or a folder of images or clips, becomes a TFDS data set of our own
(`data/shard_writer.py`); one that is prepared already is only shown.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from rin_jax import ConfigError
from rin_jax.data import catalog, pipeline, set_metadata, shard_writer
from rin_jax.data.dataset import Data, declared_size
from rin_jax.data.originals import FolderOriginal, TfdsOriginal, open_folder
from rin_jax.data.source import Source, open_source
from rin_jax.experiment import check_sections, section
from rin_jax.runtime import console, files
from rin_jax.sampling import grids
from rin_jax.training.step import prepare_images

PREVIEW, CLIPS, FRAMES = 64, 8, 8  # images; clips and how many frames of each
COUNTED = 10_000  # labels
NAME = re.compile(r"[a-z][a-z0-9_]*")


def prepare(
    config, workdir: str | None, folder: str | None, downloaded: str | None, encoding: str | None,
    fit: str | None,
) -> epath.Path:  # fmt: skip
    """Prepares `data.name` at `data.image_size` in `data.data_dir`; returns the preview's path.

    Of `config` only the section data and the seed are read. The preview goes to `workdir` or, if
    None, to the data set. `folder` has images or clips of the user's own (`data/originals.py`) that
    become the data set; `downloaded` files that TFDS would otherwise fetch. `encoding` is a key of
    `preprocessing.ENCODINGS` and `fit` of `preprocessing.FITS`; None: PNG and crop, or as it is if
    it is there. ConfigError at what is wrong; what was written is kept.
    """
    sections = config.to_dict()
    check_sections(sections)
    data = section(Data, "data", sections)
    if downloaded is not None and not epath.Path(downloaded).is_dir():
        raise ConfigError(
            f"--downloaded is {downloaded}, but there is no such folder; name the one that has the "
            "files, or leave the flag out."
        )
    if files.is_bucket(catalog.folder_of(data.data_dir)):
        raise ConfigError(
            f"data.data_dir is {data.data_dir!r}; a data set is prepared on a disk of this "
            "machine: name a folder on it and copy that afterwards."
        )
    split = re.match(r"\w*", data.split)[0]
    if folder is None:
        data, original = _tfds_original(data, split, downloaded)
    else:
        original = _folder_original(data, split, folder)
    if original is not None:
        _write(original, data, encoding or "png", fit or "crop")
    source = open_source(dataclasses.replace(data, channels=data.channels or 3, prefetch=1))
    report = set_metadata.read_report(epath.Path(source.info.folder), split)
    for flag, field, chosen in (("format", "encoding", encoding), ("fit", "fit", fit)):
        if chosen and (report is None or report[field] != chosen):
            how = "by TFDS; leave it out"
            if report is not None:
                how = f"with {report[field]}; leave it out, or delete that folder first"
            where = source.info.folder
            raise ConfigError(f"--{flag} is {chosen}, but {where} was prepared {how}")
    if report is not None:
        console.say(_describe(report))
    return _show(source, config.seed, workdir, report and _describe_encoding(report))


def _folder_original(data: Data, split: str, folder: str) -> FolderOriginal:
    if not NAME.fullmatch(data.name):
        remedy = "name the new data set with small letters, digits and _."
        raise ConfigError(f"data.name is {data.name!r}; {remedy}")
    if data.name in tfds.list_builders(with_community_datasets=False):
        raise ConfigError(
            f"data.name is {data.name!r}, a data set of TFDS; give what --source has another name: "
            " --config.data.name=NAME, and the same when training."
        )
    if data.image_size is None:
        raise ConfigError("data.image_size is not set; say --config.data.image_size=SIZE.")
    return open_folder(folder, data.name, split, data.num_classes, data.channels or 3, data.clip)


def _tfds_original(
    data: Data, split: str, downloaded: str | None
) -> tuple[Data, TfdsOriginal | None]:
    """(data with an image size, what has to be written or None if it is there at that size)."""
    if data.image_size is not None:
        copy = catalog.sized_folder(data.name, data.data_dir, data.image_size, data.frames)
        if split in catalog.find_splits(copy):
            return data, None
    builder = catalog.tfds_builder(data.name, data.data_dir, data.image_size, data.frames)
    catalog.feature_keys(data.name, builder, data.frames)  # refused before a download
    if not builder.is_prepared():
        with console.doing(f"TFDS prepares {data.name} in {builder.data_path}"):
            catalog.prepare_with_tfds(data.name, builder, downloaded)
        builder = catalog.tfds_builder(data.name, data.data_dir, data.image_size, data.frames)
    info = catalog.info(data.name, split, builder, data.frames)
    if data.image_size is None:
        data = dataclasses.replace(data, image_size=declared_size(info))
    stored = info.example_shape[-3:-1]
    if catalog.has_random_access(builder) and stored == (data.image_size, data.image_size):
        return data, None
    if data.clip is not None:
        raise ConfigError(
            f"data.name={data.name!r} has clips of {stored[0]} x {stored[1]} pixels in "
            f"{info.folder}; clips of TFDS are read as they are, stored as array_record: set "
            "data.image_size to theirs, or prepare a folder of files with --source"
        )
    return data, TfdsOriginal(info, builder)


def _write(
    original: TfdsOriginal | FolderOriginal, data: Data, encoding: str, fit: str
) -> None:
    folder = catalog.sized_folder(data.name, data.data_dir, data.image_size, data.frames)
    if original.split in catalog.find_splits(folder):
        raise ConfigError(
            f"{folder} has {original.split!r} of {data.name!r} already; delete that folder to "
            "prepare it anew, or choose another data.name."
        )
    what = _what(data)
    pixels = len(original) * (data.frames or 1) * data.image_size**2 * original.channels
    console.say(
        f"preparing {len(original):,} {what} of {data.name} ({original.split}) at "
        f"{data.image_size} pixels in {folder}; without compression {pixels / 1e9:,.2f} GB"
    )
    patience = 0.1 if sys.stderr.isatty() else 10  # seconds between updates of the bar
    since = time.monotonic()
    with tqdm.tqdm(total=len(original), unit=f" {what}", mininterval=patience) as bar:
        threads = data.num_threads
        shard_writer.write(
            original, folder, data.image_size, threads, bar.update, data.clip, encoding, fit
        )
    seconds = time.monotonic() - since
    console.say(f"{console.duration(seconds)}, {len(original) / seconds:,.0f} {what}/s")


def _what(data: Data) -> str:
    return "images" if data.clip is None else "clips"


def _describe(report: dict) -> str:
    what, shape = "images", f"{report['image_size']} pixels"
    if "frames" in report:
        taken = f"stride {report['stride']}, {report['window']} window"
        what, shape = "clips", f"{report['frames']} frames ({taken}) of {shape}"
    written = f"{report['written']:,} {what} of {shape}"
    lines = [f"{written}, {report['bytes'] / 1e9:,.3f} GB in {len(report['shard_lengths'])} files"]
    lines.append(_describe_encoding(report))
    if report["fit"] == "pad":
        lines.append("what is not square is padded with white")
    if report["enlarged"]:
        lines.append(f"enlarged, since they were smaller: {report['enlarged']:,}")
    if report["skipped"]:
        lines.append(f"left out: {len(report['skipped']):,}")
        lines += [f"  {what}: {why}" for what, why in report["skipped"][:10]]
    return "\n".join([*lines, _describe_classes(report["classes"], what)])


def _describe_encoding(report: dict) -> str:
    what = "image" if "frames" not in report else "clip"
    size = f"{report['bytes'] / report['written'] / 1e3:,.1f} KB on disk for each {what}"
    loss = "without loss" if report["psnr"] is None else f"PSNR {report['psnr']:.2f} dB"
    return f"{size}, as {report['encoding'].upper()}, {loss}"


def _describe_classes(counts: Mapping[str, int], what: str) -> str:
    if not counts:
        return "no classes"
    ordered = sorted(counts, key=counts.get)
    fewest, most = ordered[0], ordered[-1]
    numbers = f"from {counts[fewest]:,} {what} ({fewest}) to {counts[most]:,} ({most})"
    return f"{len(counts)} classes, {numbers}"


def _show(source: Source, seed: int, workdir: str | None, how: str | None) -> epath.Path:
    """Writes preview.png: the first examples of training with their labels, and a histogram.

    `how` they are stored is written below the examples, if it is known.
    """
    what, names = _what(source.data), source.info.class_names
    draw = _draw_images if source.data.clip is None else _draw_clips
    picture, num = draw(source, seed)
    if how is not None:
        picture = grids.stack(picture, grids.text(how, 480, 16))
    if names:
        counted = min(COUNTED, len(source))
        counts = np.bincount([source.label(i) for i in range(counted)], minlength=len(names))
        title = f"labels of the first {counted:,} of {len(source):,} {what}"
        picture = grids.stack(picture, grids.histogram(counts, title))
        counts = dict(zip(names, counts, strict=True))
        console.say(f"{title}\n{_describe_classes(counts, what)}")
    path = epath.Path(workdir or source.info.folder) / "preview.png"
    files.write_png(path, picture)
    mark = "<> is flipped" if source.data.clip is None else "not flipped"
    console.say(f"{num} {what} as the network sees them ({mark}): {path}")
    return path


def _draw_images(source: Source, seed: int) -> tuple[np.ndarray, int]:
    """A grid of images as they are flipped, and how many."""
    num, names = min(PREVIEW, len(source)), source.info.class_names
    batch = next(pipeline.train_batches(source, num, seed=seed, start=0))
    plain, seen = (np.asarray(prepare_images(batch["image"], jax.random.key(seed), flip=flip))
                   for flip in (False, source.data.flip))  # fmt: skip
    flipped = (seen != plain).any(axis=(1, 2, 3))
    captions = [names[label] for label in batch["label"]] if names else [""] * num
    captions = [f"{name} <>" if turned else name
                for name, turned in zip(captions, flipped, strict=True)]  # fmt: skip
    pixels = np.rint((seen + 1) * 127.5).astype(np.uint8)
    return grids.captioned_grid(pixels, captions, columns=8), num


def _draw_clips(source: Source, seed: int) -> tuple[np.ndarray, int]:
    """A row of frames for each clip, not flipped, and how many clips."""
    num, names = min(CLIPS, len(source)), source.info.class_names
    batch = next(pipeline.train_batches(source, num, seed=seed, start=0))
    whole = [batch[key] for key in ("frames", "image") if key in batch]
    chosen = np.unique(np.linspace(0, source.data.frames - 1, FRAMES).round().astype(int))
    pixels = np.concatenate(whole, axis=1)[:, chosen]
    labels = [names[label] for label in batch["label"]] if names else [""] * num
    captions = [f"{name} given" if frame < source.data.cond_frames else name
                for name in labels for frame in chosen]  # fmt: skip
    return grids.captioned_grid(pixels.reshape(-1, *pixels.shape[2:]), captions, len(chosen)), num
