"""Folders of clips: classes by folder or table, and the tables of Kinetics, which tell splits."""

import re

import pytest

from rin_jax import ConfigError
from rin_jax.data import clips
from rin_jax.data.dataset import Clip
from rin_jax.data.originals import open_folder
from tests.data import video_files

CLIP = Clip(3, 1, 2, "first")
COLUMNS = "label,youtube_id,time_start,time_end,split\n"
TRAIN = """\
play "air guitar",a_b-c0000000,12,22,train
abseiling,xyz00000000,0,10,train
abseiling,gone0000000,100,110,train
yoga,gone0000001,7,17,train
"""
VALIDATE = "bee keeping,dashed-_000,1,11,validate\n"
FILES = ("x/a_b-c0000000_000012_000022.mp4", "xyz00000000_000000_000010.mkv")
OTHER = "y/dashed-_000_000001_000011.mp4"


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")


def opened(root, split="train", num_classes=None, clip=CLIP):
    return open_folder(str(root), "mine", split, num_classes, 3, clip)


def labels(original):
    names = [original.class_names[label] for label in original.labels]
    return dict(zip(original.files, names, strict=True))


def test_clips_by_folder_and_by_table(tmp_path):
    touch(tmp_path, "cat/a.mp4", "cat/deep/b.GIF", "dog/c.webm", "dog/not a clip.txt")
    original = opened(tmp_path)
    assert labels(original) == {"cat/a.mp4": "cat", "cat/deep/b.GIF": "cat", "dog/c.webm": "dog"}
    rows = "file,label\ncat/a.mp4,runs\ncat/deep/b.GIF,sits\ndog/c.webm,runs\n"
    (tmp_path / "labels.csv").write_text(rows)
    assert set(labels(opened(tmp_path)).values()) == {"runs", "sits"}
    (tmp_path / "labels.csv").write_text(rows + "gone.mp4,runs\n")
    with pytest.raises(ConfigError, match=r"names files that are no clips there: gone\.mp4"):
        opened(tmp_path)
    (tmp_path / "labels.csv").unlink()
    touch(tmp_path, "loose.avi")
    with pytest.raises(ConfigError, match=r"also clips beside them \(loose\.avi\)"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match=r"also images beside them|no image in 1 of 2"):
        opened(tmp_path, clip=None)  # the animation is an image too, the others are none


def test_frames_of_a_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    for index, file in enumerate(("cat/a.gif", "cat/b.webp")):
        video_files.save_animation(tmp_path / file, video_files.numbered()[index:])
    original = opened(tmp_path)
    for what, load in original.read(0, 2):
        frames, label = load()
        first = ("cat/a.gif", "cat/b.webp").index(what)
        assert video_files.numbers(frames) == [first, first + 2, first + 4]
        assert label == 0
    touch(tmp_path, "cat/c.mp4")
    broken = [load for what, load in opened(tmp_path).read(0, 3) if what == "cat/c.mp4"]
    with pytest.raises(clips.ClipError):
        broken[0]()


def test_kinetics(tmp_path, caplog):
    """From one table or several, and the classes are those of all rows."""
    touch(tmp_path, *FILES, OTHER)
    (tmp_path / "all.csv").write_text(COLUMNS + TRAIN + VALIDATE)
    train, validate = opened(tmp_path), opened(tmp_path, "validate")
    classes = ("abseiling", "bee keeping", 'play "air guitar"', "yoga")
    assert train.class_names == validate.class_names == classes
    assert labels(train) == {FILES[0]: classes[2], FILES[1]: "abseiling"}
    assert labels(validate) == {OTHER: "bee keeping"}
    assert "2 of 4 clips of 'train' are not there" in caplog.text
    assert "'validate'" not in caplog.text
    (tmp_path / "all.csv").unlink()
    (tmp_path / "kinetics600_train.csv").write_text(COLUMNS + TRAIN)
    (tmp_path / "kinetics600_validate.csv").write_text(COLUMNS + VALIDATE)
    assert labels(opened(tmp_path)) == labels(train)
    assert opened(tmp_path).fingerprint == train.fingerprint
    assert len(opened(tmp_path, num_classes=0)) == 2  # labels that nobody uses
    with pytest.raises(ConfigError, match=r"num_classes is 3, but .* set at least 4"):
        opened(tmp_path, num_classes=3)


@pytest.mark.parametrize(
    ("table", "split", "message"),
    [
        (TRAIN, "train", f"no row of a table has the clips {re.escape(OTHER)} \\(1 in all\\)"),
        (TRAIN + VALIDATE, "test", "no clip of the split 'test'; the tables have train, validate"),
        (TRAIN.replace("0,10", "0,ten") + VALIDATE, "train", r"k\.csv, line 3: invalid literal"),
        (TRAIN.replace("yoga", "") + VALIDATE, "train", r"k\.csv, line 5: no label"),
    ],
)
def test_wrong_tables_of_kinetics(tmp_path, table, split, message):
    touch(tmp_path, *FILES, OTHER)
    (tmp_path / "k.csv").write_text(COLUMNS + table)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, split)
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(ConfigError, match=r"labels\.csv and k\.csv; keep one of them"):
        opened(tmp_path, split)


def test_no_clips(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(ConfigError, match=r"has no clip \(files that end in .*\.mp4"):
        opened(tmp_path)
    assert opened(tmp_path, clip=None).files == ["a.png"]
