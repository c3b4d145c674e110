"""Times the decoding of clips from video files and the reading of prepared ones, on one core.

    taskset -c 0 python -m benchmarks.clips --json=clips.json

Makes videos of the size that Kinetics' usually have (340 x 256 pixels, 10 s of 25 frames, H.264
with B-frames): a window that moves over one of the photographs that scikit-learn carries. It then
takes the time of each of these, for 16 frames of 64 pixels:

  decode first   the first window of a file, cut to the central square and resized
  decode random  a random window, which decodes all frames before it
  prepare        the first window of a file, written as a record of a data set
  read           a prepared record, decoded as training reads it

It counts processor time, so that other programs of a shared machine matter little. README.md in
this folder says how `benchmarks.data` times images.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import av
import numpy as np
from sklearn import datasets

from benchmarks.data import machine
from rin_jax.data import catalog, clips, preprocessing, shard_writer
from rin_jax.data.dataset import Clip, Data
from rin_jax.data.originals import open_folder
from rin_jax.data.source import open_source

HEIGHT, WIDTH, FRAMES, RATE = 256, 340, 250, 25
SIZE = 64  # of a frame that is prepared
FIRST = Clip(frames=16, cond_frames=5, stride=1, window="first")
RANDOM = Clip(frames=16, cond_frames=5, stride=1, window="random")


def save_video(path: pathlib.Path, seed: int) -> None:
    """A window that moves along a straight line over a photograph, with some noise."""
    photograph = datasets.load_sample_images().images[seed % 2]
    rng = np.random.default_rng(seed)
    room = np.array(photograph.shape[:2]) - (HEIGHT, WIDTH)
    ways = np.linspace(rng.uniform(0, room), rng.uniform(0, room), FRAMES).astype(int)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for top, left in ways:
            crop = photograph[top : top + HEIGHT, left : left + WIDTH]
            noisy = crop + rng.normal(0, 3, crop.shape)
            frame = np.rint(noisy.clip(0, 255)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def rates(work: Callable[[], int], repetitions: int) -> list[float]:
    """Clips for a second of processor time in each repetition; `work` returns their number."""
    work()
    found = []
    for _ in range(repetitions):
        since = time.process_time()
        found.append(work() / (time.process_time() - since))
    return found


def decode_all(paths: list[pathlib.Path], clip: Clip) -> int:
    """Decodes the window of each file to the training size."""
    for path in paths:
        frames = clips.decode(path, path.name, clip, channels=3)
        preprocessing.preprocess(frames, SIZE, channels=3)
    return len(paths)


def prepare_all(folder: pathlib.Path) -> int:
    """Prepares all files as a new data set."""
    original = open_folder(str(folder), "videos", "train", None, 3, FIRST)
    with tempfile.TemporaryDirectory() as data_dir:
        target = catalog.sized_folder("videos", data_dir, SIZE, FIRST.frames)
        report = shard_writer.write(original, target, SIZE, 1, lambda done: None, FIRST)
    return report["written"]


def read_all(source) -> int:
    """Reads each record."""
    for index in range(len(source)):
        source[index]
    return len(source)


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=32, help="videos")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", help="write the figures there")
    args = parser.parse_args()
    result = {"machine": machine("av"), "arguments": vars(args), "clips_per_core_second": {}}
    print(result["machine"])
    with tempfile.TemporaryDirectory() as folder:
        videos = pathlib.Path(folder) / "videos"
        videos.mkdir()
        paths = [videos / f"{seed}.mp4" for seed in range(args.clips)]
        for seed, path in enumerate(paths):
            save_video(path, seed)
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        original = open_folder(str(videos), "videos", "train", None, 3, FIRST)
        target = catalog.sized_folder("videos", folder, None, SIZE, FIRST.frames)
        report = shard_writer.write(original, target, SIZE, 1, lambda done: None, FIRST)
        record = report["bytes"] / report["written"] / 1e3
        print(f"{len(paths)} videos of {size:.0f} KB, records of {record:.0f} KB")
        data = Data("videos", "train", folder, SIZE, FIRST, 3, 0, False, num_threads=1, prefetch=1)
        source = open_source(data)
        print("\n| work | clips/s/core, median [min, max] |\n|---|---|")
        for name, work in {
            "decode first": lambda: decode_all(paths, FIRST),
            "decode random": lambda: decode_all(paths, RANDOM),
            "prepare": lambda: prepare_all(videos),
            "read": lambda: read_all(source),
        }.items():
            found = rates(work, args.repetitions)
            result["clips_per_core_second"][name] = found
            middle, low, high = statistics.median(found), min(found), max(found)
            print(f"| {name} | {middle:,.1f} [{low:,.1f}, {high:,.1f}] |", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
