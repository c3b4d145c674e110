"""How a folder's images get their classes, and what is wrong with a folder."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.data.originals import open_folder


def put(root, *files):
    """Small images, each of one colour that tells its name."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(file), ord(path.stem[0]), 0)).save(path)


def opened(root, num_classes=None, channels=3):
    return open_folder(str(root), "mine", "train", num_classes, channels)


def pairs(original):
    """{file: label}, and a look at every image through `read`."""
    found = {}
    for what, load in original.read(0, len(original)):
        image, found[what] = load()
        assert image[0, 0].tolist() == [len(what), ord(what.rpartition("/")[2][0]), 0]
    return found


FILES = ("cat/a.png", "cat/deep/b.png", "dog/c.jpg.png", "dog/d.PNG")


def test_class_folders(tmp_path):
    put(tmp_path, *FILES, ".thumbnails/x.txt.png")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / ".thumbnails" / "x.txt.png").unlink()
    original = opened(tmp_path)
    assert original.class_names == ("cat", "dog")
    assert pairs(original) == dict(zip(FILES, (0, 0, 1, 1), strict=True))
    assert pairs(opened(tmp_path)) == pairs(original)
    assert opened(tmp_path).files == original.files
    assert [what for what, _ in original.read(1, 3)] == original.files[1:3]


def test_what_macos_adds_is_no_image(tmp_path):
    """An archive made there has a file beside each file, hidden, and a folder of such files."""
    added = [str(pathlib.PurePath(file).with_name(f"._{file.split('/')[-1]}")) for file in FILES]
    put(tmp_path, *FILES, *added, *[f"__MACOSX/{file}" for file in added], "._x.png", ".y/z.png")
    assert pairs(opened(tmp_path)) == dict(zip(FILES, (0, 0, 1, 1), strict=True))
    put(tmp_path / "bare", "a.png", "._a.png", "__MACOSX/._a.png", "__MACOSX.png")
    assert pairs(opened(tmp_path / "bare")) == {"a.png": None, "__MACOSX.png": None}
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{file},0\n" for file in (*FILES, "bare/a.png")))
    with pytest.raises(ConfigError, match=r"has no label for some images: bare/__MACOSX\.png"):
        opened(tmp_path)


def test_no_classes(tmp_path):
    put(tmp_path, "a.png", "b.png")
    original = opened(tmp_path)
    assert (original.class_names, original.labels) == ((), None)
    assert pairs(original) == {"a.png": None, "b.png": None}


def test_the_order_mixes_classes(tmp_path):
    put(tmp_path, *[f"{name}/{i}.png" for name in "ab" for i in range(20)])
    labels = opened(tmp_path).labels
    assert sorted(labels) == [0] * 20 + [1] * 20
    assert 5 < sum(labels[:20]) < 15


def test_csv_with_names(tmp_path):
    put(tmp_path, *FILES)
    rows = zip(FILES, ("x, y", "z", "z", "x, y"), strict=True)
    text = "label,file\n" + "".join(f'"{label} ",{file}\n' for file, label in rows)
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")
    original = opened(tmp_path)
    assert original.class_names == ("x, y", "z")
    assert pairs(original) == dict(zip(FILES, (0, 1, 1, 0), strict=True))


def test_csv_and_json_with_numbers(tmp_path):
    put(tmp_path, *FILES)
    labels = dict(zip(FILES, (10, 2, 2, 0), strict=True))
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{file},{n}\n" for file, n in labels.items()))
    by_csv = opened(tmp_path)
    assert by_csv.class_names == tuple(str(n) for n in range(11))  # 10 comes after 9
    assert pairs(by_csv) == labels
    table.unlink()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": list(labels.items())}))
    assert pairs(opened(tmp_path)) == labels
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert opened(tmp_path).class_names == ()


def test_fingerprint(tmp_path):
    put(tmp_path, *FILES)
    first = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == first
    assert opened(tmp_path, channels=1).fingerprint != first
    Image.fromarray(np.zeros((90, 90), np.uint8)).save(tmp_path / FILES[0])
    changed = opened(tmp_path).fingerprint
    assert changed != first
    (tmp_path / "dog").rename(tmp_path / "wolf")
    assert opened(tmp_path).fingerprint not in (first, changed)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "name,label\na,1\n", r"labels\.csv has the columns \['name', 'label'\]"),
        ("labels.csv", "", r"columns None"),
        ("labels.csv", "file,label\ncat/a.png,\n", "line 2: no label"),
        ("labels.csv", "file,label\ncat/a.png,-1\n", r"labels below 0 at cat/a\.png"),
        ("labels.csv", "file,label\ncat/a.png,0\nb.png,1\n", r"no images there: b\.png \(1 in"),
        ("labels.csv", "file,label\n", r"no label for some images: cat/a\.png"),
        ("dataset.json", "{", r"dataset\.json cannot be read"),
        ("dataset.json", '{"labels": {"cat/a.png": 1}}', "cannot be read"),
        ("dataset.json", '{"labels": [["cat/a.png", "cat"]]}', "cannot be read"),
    ],
)
def test_wrong_tables(tmp_path, name, text, message):
    put(tmp_path, "cat/a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path)


def test_wrong_folders(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no image \(files that end in .*\.png"):
        opened(tmp_path)
    put(tmp_path, *FILES)
    with pytest.raises(ConfigError, match=r"num_classes is 1, but .* labels 0\.\.1; set .* 2"):
        opened(tmp_path, num_classes=1)
    assert len(opened(tmp_path, num_classes=2)) == 4
    (tmp_path / "bird").mkdir()
    with pytest.raises(ConfigError, match=r"no image in 1 of 3 class folders \(bird\); delete"):
        opened(tmp_path)
    put(tmp_path, "loose.png")
    with pytest.raises(ConfigError, match=r"also images beside them \(loose\.png\): move"):
        opened(tmp_path)
    (tmp_path / "labels.csv").write_text("")
    (tmp_path / "dataset.json").write_text("")
    with pytest.raises(ConfigError, match=r"dataset\.json and labels\.csv; keep one"):
        opened(tmp_path)
