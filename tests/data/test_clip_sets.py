"""Data sets of clips: what is written is what batches have, and what does not go together."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rin_jax import ConfigError
from rin_jax.data import catalog, pipeline, set_metadata, shard_writer
from rin_jax.data.dataset import Clip
from tests.data import small_sets

CLIP = {"frames": 5, "cond_frames": 2, "stride": 3, "window": "random"}
SIZE, NUM = 8, 20


@dataclasses.dataclass(frozen=True)
class Clips:
    """Random clips of 20x24 pixels in two classes, of which clip 7 has a frame less."""

    name: str = "mine"
    split: str = "train"
    channels: int = 3
    class_names: tuple[str, ...] = ("even", "odd")
    fingerprint: str = "these"

    def __len__(self):
        return NUM

    def pixels(self, index):
        shape = (CLIP["frames"] - (index == 7), 20, 24, self.channels)
        return np.random.default_rng(index).integers(0, 256, shape, np.uint8)

    def read(self, start, stop):
        for index in range(start, stop):
            yield f"clip {index}", lambda index=index: (self.pixels(index), index % 2)


def write(data_dir, encoding="png", **changes):
    original, clip = Clips(), Clip(**{**CLIP, **changes})
    folder = pathlib.Path(catalog.sized_folder("mine", str(data_dir), SIZE, clip.frames))
    return shard_writer.write(original, folder, SIZE, 2, lambda done: None, clip, encoding)


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("clips")
    write(data_dir)
    return data_dir


def opened(data_dir, name="mine", size=SIZE, channels=3, **changes):
    clip = {**CLIP, **changes}
    return small_sets.opened(name, "train", data_dir, size, channels, clip=clip)


def expected(index):
    """The 20 x 20 pixels in the middle as means over 8 x 8 areas, each 2.5 pixels wide."""
    whole = Clips().pixels(index)[:, :, 2:22].astype(float)
    halves = whole.repeat(2, axis=1).repeat(2, axis=2)  # of pixels, of which a cell has five
    return halves.reshape(5, 8, 5, 8, 5, 3).mean(axis=(2, 4))


WRITTEN = [index for index in range(NUM) if index != 7]


@pytest.mark.parametrize("cond_frames", [0, 1, 4])
def test_what_is_read_is_the_clip_in_two_parts(clips_dir, cond_frames):
    source = opened(clips_dir, cond_frames=cond_frames)
    assert source.data.example_shape == (5 - cond_frames, 8, 8, 3)
    assert len(source) == len(WRITTEN)
    for index, record in zip(WRITTEN, map(source.__getitem__, range(len(source))), strict=True):
        assert record["image"].shape == source.data.example_shape
        given = record.get("frames", np.empty((0, 8, 8, 3)))
        assert (len(given), "frames" in record) == (cond_frames, cond_frames > 0)
        whole = np.concatenate([given, record["image"]])
        assert np.abs(whole - expected(index)).max() < 0.501
        assert record["label"] == index % 2


def test_a_record_has_all_frames_of_a_clip(clips_dir):
    """It is an ordinary data set of TFDS, with a report."""
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    records = tfds.data_source(
        "mine_5x8px", data_dir=str(clips_dir), split="train", deserialize_method=raw
    )
    assert all(record.count(b"\x89PNG") == 5 for record in records)
    info = tfds.builder("mine_5x8px", data_dir=str(clips_dir)).info
    assert info.features["video"].shape == (5, 8, 8, 3)
    described = catalog.describe("mine", "train", str(clips_dir), SIZE, frames=5)
    assert (described.example_shape, described.num_examples) == ((5, 8, 8, 3), NUM - 1)
    report = set_metadata.read_report(clips_dir / "mine_5x8px" / "1.0.0", "train")
    assert report["skipped"] == [["clip 7", "ValueError: 4 frames instead of 5"]]
    assert report["classes"] == {"even": 10, "odd": 9}
    assert {key: report[key] for key in ("written", "frames", "stride", "window")} == {
        "written": 19, "frames": 5, "stride": 3, "window": "random",
    }  # fmt: skip


def test_the_loss_of_clips_is_that_of_all_their_frames(clips_dir, tmp_path):
    report = write(tmp_path, encoding="jpeg")
    sets = [opened(data_dir, cond_frames=0) for data_dir in (clips_dir, tmp_path)]
    whole, lossy = (np.stack([source[index]["image"] for index in range(NUM - 1)], dtype=np.float64)
                    for source in sets)  # fmt: skip
    error = np.square(whole - lossy).mean()
    assert report["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)


@pytest.mark.parametrize("kept_in_memory", [True, False])
def test_batches_of_clips(clips_dir, monkeypatch, kept_in_memory):
    source = opened(clips_dir)
    size = len(source) * 5 * 8 * 8 * 3
    monkeypatch.setattr(pipeline, "_MEMORY_BYTES", size if kept_in_memory else size - 1)
    reads, getitem = [], type(source).__getitem__
    monkeypatch.setattr(
        type(source), "__getitem__", lambda self, i: reads.append(i) or getitem(self, i)
    )
    known = {record["image"].tobytes(): record for record in map(source.__getitem__, range(19))}
    reads.clear()
    batches = pipeline.train_batches(source, 6, seed=0, start=0)
    for batch in itertools.islice(batches, 9):  # three epochs
        assert batch["image"].shape == (6, 3, 8, 8, 3)
        assert batch["frames"].shape == (6, 2, 8, 8, 3)
        for row, image in enumerate(batch["image"]):
            record = known[image.tobytes()]
            np.testing.assert_array_equal(batch["frames"][row], record["frames"])
            assert batch["label"][row] == record["label"]
    assert (len(reads) == 19) == kept_in_memory


def test_clips_are_read_in_colour_and_at_another_size(clips_dir):
    """As images are: grey is repeated, and a set of another size is resized."""
    record = opened(clips_dir, cond_frames=0)[0]
    small = pipeline.preprocessing.preprocess(record["image"][..., :1], 4, 3)
    assert small.shape == (5, 4, 4, 3)
    means = record["image"][..., 0].reshape(5, 4, 2, 4, 2).mean(axis=(2, 4))
    assert np.abs(small - means[..., None]).max() < 0.501


def test_fingerprint_is_of_every_frame(clips_dir, tmp_path, monkeypatch):
    pixels = Clips.pixels

    def last_frame_is_black(self, index):
        frames = pixels(self, index)
        frames[4:] = 0
        return frames

    write(tmp_path / "same")
    monkeypatch.setattr(Clips, "pixels", last_frame_is_black)
    write(tmp_path / "other")
    before = opened(clips_dir).fingerprint
    assert opened(tmp_path / "same").fingerprint == before
    assert opened(tmp_path / "other").fingerprint != before


def test_shards_count_frames():
    clip = Clip(frames=16, cond_frames=0, stride=1, window="first")
    images = shard_writer.shard_ranges(16 * 100_000, 64, 3)
    clips = shard_writer.shard_ranges(100_000, 64, 3, clip)
    assert [16 * len(one) for one in clips] == pytest.approx([len(one) for one in images], abs=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 4}, r"'mine' at data\.clip\.frames x data\.image_size, only at 5x8px"),
        ({"frames": 4}, r"5x8px; set --config\.data\.clip\.frames=5 and .*image_size=8\."),
        ({"size": 9}, r"'mine' at data\.clip\.frames x data\.image_size, only at 5x8px"),
        ({"stride": 1}, r"data\.clip\.stride is 1, but 'mine' .* was prepared with 3; set it"),
        ({"window": "first"}, r"data\.clip\.window is 'first', but 'mine' .* with 'random'"),
        ({"channels": 1}, r"data\.channels=1 does not suit images stored with 3"),
        ({"name": "digits"}, r"data\.clip is set, but 'digits' is a data set of images; do not"),
    ],
)
def test_other_clips_than_those_that_are_there(clips_dir, changes, message):
    with pytest.raises(ConfigError, match=message):
        opened(clips_dir, **changes)
    assert not (clips_dir / "digits").exists()


def test_images_are_wanted_and_clips_are_there(clips_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"of images, only of clips \(5x8px\); set data\.clip"):
        small_sets.opened("mine", "train", clips_dir, SIZE, 3)
    message = r"data\.clip is not set, but 'moving_digits' is a data set of clips; set it, or"
    with pytest.raises(ConfigError, match=message):
        small_sets.opened("moving_digits", "train", tmp_path, 24, 1)
    with pytest.raises(ConfigError, match=message):
        small_sets.section("moving_digits", "train", tmp_path, None, None).resolved()
    assert not list(tmp_path.iterdir())


def test_clips_are_wanted_and_images_are_there(tmp_path):
    (tmp_path / "mine_8px" / "1.0.0").mkdir(parents=True)
    (tmp_path / "mine_8px" / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"of clips, only of images \(8px\); leave data\.clip"):
        opened(tmp_path)


def test_what_was_begun_goes_on_with_the_same_frames_only(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "publish", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path)
    with pytest.raises(ConfigError, match=r"other images or settings \(changed: stride\)"):
        write(tmp_path, stride=1)
    monkeypatch.undo()
    assert write(tmp_path, cond_frames=0)["written"] == 19  # it is not what was prepared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 1, "cond_frames": 0}, r"data\.clip\.frames is 1; it must be at least 2\."),
        ({"cond_frames": 5}, r"clip\.cond_frames is 5, but data\.clip\.frames is 5; it must be"),
        ({"cond_frames": -1}, r"clip\.cond_frames is -1, but data\.clip\.frames is 5; .* least 0"),
        ({"stride": 0}, r"data\.clip\.stride is 0; it must be at least 1\."),
        ({"window": "last"}, r"data\.clip\.window is 'last'; choose one of first, random\."),
        ({"length": 3}, r"data\.clip has cond_frames, frames, length, stride, window; give it fr"),
    ],
)
def test_a_clip_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_sets.section("mine", "train", "nowhere", 8, 3, clip={**CLIP, **changes})
    with pytest.raises(ConfigError, match=r"data\.clip has frames; give it frames, cond_frames, "):
        small_sets.section("mine", "train", "nowhere", 8, 3, clip={"frames": 3})


def test_a_section_with_a_clip_stays_plain_data():
    data = small_sets.section("mine", "train", "nowhere", 8, 3, clip=CLIP)
    assert dataclasses.asdict(data)["clip"] == CLIP
    assert dataclasses.replace(data, image_size=9).clip == data.clip == Clip(**CLIP)
    assert (data.frames, data.cond_frames) == (5, 2)
    image = dataclasses.replace(data, clip=None)
    assert (image.frames, image.cond_frames, image.example_shape) == (None, 0, (8, 8, 3))
