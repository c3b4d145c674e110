"""Times the reading and the preparation of images on the processors of this machine.

    python -m benchmarks.data --json=data.json

Makes photographs of the size that ImageNet's have (crops of the two that scikit-learn carries),
stores them as a TFDS data set of JPEGs, prepares that at each size and reads all of them through
the training pipeline. Needs no accelerator. README.md in this folder says how to read the table.
"""

import argparse
import datetime
import io
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from importlib import metadata

# so that `python benchmarks/data.py` finds the package
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from rin_jax.data import catalog, pipeline, preprocessing, shard_writer
from rin_jax.data.dataset import Data
from rin_jax.data.originals import TfdsOriginal
from rin_jax.data.source import open_source

HEIGHT, WIDTH, QUALITY = 415, 480, 93  # about 70 KB


def photographs(count: int):
    """JPEGs of random crops."""
    originals = datasets.load_sample_images().images
    rng = np.random.default_rng(0)
    for index in range(count):
        image = originals[index % 2]
        top = rng.integers(0, image.shape[0] - HEIGHT + 1)
        left = rng.integers(0, image.shape[1] - WIDTH + 1)
        jpeg = io.BytesIO()
        crop = Image.fromarray(image[top : top + HEIGHT, left : left + WIDTH])
        crop.save(jpeg, "JPEG", quality=QUALITY)
        yield jpeg.getvalue()


class Photographs(tfds.core.GeneratorBasedBuilder):
    """JPEGs as they come, as TFDS stores ImageNet."""

    VERSION = tfds.core.Version("1.0.0")
    COUNT = 1000

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key, jpeg in enumerate(photographs(self.COUNT)):
            yield key, {"image": io.BytesIO(jpeg), "label": key % 2}


def time_preparation(data_dir: str, image_size: int, threads: int, encoding: str) -> dict:
    """Prepares the photographs at one size."""
    builder = catalog.tfds_builder("photographs", data_dir)
    original = TfdsOriginal(catalog.info("photographs", "train", builder), builder)
    folder = catalog.sized_folder("photographs", data_dir, image_size)
    wall, busy = time.perf_counter(), time.process_time()
    report = shard_writer.write(
        original, folder, image_size, threads, lambda done: None, encoding=encoding
    )
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return {
        "images_per_second": report["written"] / wall,
        "images_per_core_second": report["written"] / busy,
        "kb_per_image": report["bytes"] / report["written"] / 1e3,
        "psnr": report["psnr"],
    }


def time_reading(data_dir: str, image_size: int, threads: int, seconds: float, count: int) -> dict:
    """Reads batches for some seconds, `count` times, without keeping decoded images."""
    since = time.perf_counter()
    data = Data("photographs", "train", data_dir, None, image_size, None, 3, 2, False, threads, 2)
    source = open_source(data)
    batch_size = max(32, min(256, 2**20 // image_size**2))
    pipeline._MEMORY_BYTES = 0  # a data set of this size would be kept in memory
    batches = pipeline.train_batches(source, batch_size, seed=0, start=0)
    next(batches)
    first = time.perf_counter() - since
    rates, core_rates = [], []
    for _ in range(count):
        wall, busy, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - wall < seconds:
            next(batches)
            images += batch_size
        rates.append(images / (time.perf_counter() - wall))
        core_rates.append(images / (time.process_time() - busy))
    return {
        "first_batch_seconds": first,
        "images_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "images_per_core_second": statistics.median(core_rates),
    }


def machine(*more: str) -> str:
    """The processors, what else runs on them, the versions, `more` packages' too, and the date."""
    packages = (
        "array_record", "grain", "numpy", "opencv-python-headless", "pillow", "tensorflow-datasets",
        *more,
    )  # fmt: skip
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return (
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, load before "
        f"{os.getloadavg()[0]:.2f}; python {platform.python_version()}, {versions}; "
        f"{datetime.date.today()}"
    )


def main() -> None:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000, help="photographs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--format", choices=preprocessing.ENCODINGS, default="png")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", help="write the figures there")
    args = parser.parse_args()
    Photographs.COUNT = args.images
    result = {"machine": machine(), "arguments": vars(args), "raw": {}, "prepared": {}}
    print(result["machine"])
    with tempfile.TemporaryDirectory() as data_dir:
        catalog.prepare_with_tfds(
            "photographs", catalog.tfds_builder("photographs", data_dir), None
        )
        builder = catalog.tfds_builder("photographs", data_dir)
        size = builder.info.splits["train"].num_bytes / args.images / 1e3
        print(f"{args.images} JPEGs of {HEIGHT} x {WIDTH} pixels, {size:.1f} KB each")
        timing = (args.threads, args.seconds, args.repetitions)
        print("\n| read | px | first batch, s | images/s [min, max] | images/s/core |")
        print("|---|---|---|---|---|")
        for image_size in args.sizes:
            row = result["raw"][image_size] = time_reading(data_dir, image_size, *timing)
            print_reading("raw", image_size, row)
        for image_size in args.sizes:
            made = time_preparation(data_dir, image_size, args.threads, args.format)
            row = time_reading(data_dir, image_size, *timing)
            result["prepared"][image_size] = {"prepare": made, "read": row}
            print_reading("prepared", image_size, row)
    per_image = "hours per 1,000 images | KB per image | PSNR, dB"
    print(f"\n| prepare, px | images/s | images/s/core | {per_image} |")
    print("|---|---|---|---|---|---|")
    for image_size, rows in result["prepared"].items():
        made = rows["prepare"]
        print(
            f"| {image_size} | {made['images_per_second']:,.0f} "
            f"| {made['images_per_core_second']:,.0f} "
            f"| {1000 / made['images_per_second'] / 3600:.4f} | {made['kb_per_image']:.1f} "
            f"| {made['psnr'] or float('inf'):.2f} |"
        )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


def print_reading(what: str, image_size: int, row: dict) -> None:
    """One row of the table of reading, as soon as it is known."""
    low, high = row["range"]
    print(
        f"| {what} | {image_size} | {row['first_batch_seconds']:.2f} "
        f"| {row['images_per_second']:,.0f} [{low:,.0f}, {high:,.0f}] "
        f"| {row['images_per_core_second']:,.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
