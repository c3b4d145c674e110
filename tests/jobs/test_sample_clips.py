"""The job that samples clips: which files there are, what is in them, and mistakes."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.data.source import open_source
from rin_jax.runtime import files
from tests.jobs import test_sample
from tests.sampling import videos
from tests.sampling.test_generate import save

pytestmark = pytest.mark.usefixtures("one_device")
GENERATION = {"data__clip__cond_frames": 0, "data__num_classes": 10}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return videos.prepare(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def workdir(data_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    save(path, videos.config(data_dir))
    return path


run = functools.partial(test_sample.run, num=3)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_predicted_clips_lie_beside_the_truth(workdir, data_dir):
    config = videos.config(data_dir)
    written = run(config, workdir, show=True)
    numbered = [f"{i:06d}.{kind}" for i in range(3) for kind in ("gif", "mp4")]
    assert names(written) == [*numbered, "record.json", "samples.npz"]
    beside = "", "-reads.png", "-trajectory.gif", "-trajectory.png", ".gif", ".png"
    assert names(written.parent) == [f"{written.name}{kind}" for kind in beside]
    arrays = dict(np.load(written / "samples.npz"))
    assert arrays["images"].shape == (3, 2, 16, 16, 1)
    test = open_source(videos.experiment(data_dir, data__split="test").data)
    gif = Image.open(written / "000002.gif")
    assert gif.n_frames == 4
    for t in range(4):
        gif.seek(t)
        picture = np.asarray(gif.convert("RGB"))[2:-2:3, :, 0]  # an edge, pixels three wide
        made, real = picture[:, 2:50:3], picture[:, 54:102:3]
        truth = np.concatenate([test[2]["frames"], test[2]["image"]])[t, ..., 0]
        seen = arrays["images"][2, t - 2, ..., 0] if t >= 2 else truth
        assert np.abs(real.astype(int) - truth).max() < 8  # 256 colours
        assert np.abs(made.astype(int) - seen).max() < 8
    for i in range(3):
        np.testing.assert_array_equal(arrays["frames"][i], test[i]["frames"])
    assert Image.open(f"{written}.gif").n_frames == 4
    assert Image.open(f"{written}.png").size == (4 * 54 + 2, 6 * 54 + 2)
    record = json.loads((written / "record.json").read_text())
    assert (record["frames"], record["cond_frames"], record["rollout"]) == (4, 2, None)

    more = np.load(run(config, workdir, num=5) / "samples.npz")
    np.testing.assert_array_equal(more["images"][:3], arrays["images"])


def test_a_roll_out_is_a_longer_clip(workdir, data_dir):
    config = videos.config(data_dir)
    one = np.load(run(config, workdir) / "samples.npz")["images"]
    written = run(config, workdir, windows=3, rollout_latents="carry")
    images = np.load(written / "samples.npz")["images"]
    assert images.shape == (3, 6, 16, 16, 1)
    assert np.abs(images[:, :2].astype(int) - one).max() <= 1
    assert Image.open(written / "000000.gif").n_frames == 8
    record = json.loads((written / "record.json").read_text())
    assert record["rollout"] == {"windows": 3, "latents": "carry"}


def test_clips_of_classes_need_no_data(tmp_path, capsys, monkeypatch):
    config = videos.config("/nowhere", **GENERATION)
    save(tmp_path, config)
    monkeypatch.setattr(files, "can_write_mp4", lambda: False)
    written = run(config, tmp_path, classes=["7", "2"], num=4)
    arrays = np.load(written / "samples.npz")
    assert "frames" not in arrays
    assert arrays["images"].shape == (4, 4, 16, 16, 1)
    np.testing.assert_array_equal(arrays["labels"], [7, 2, 7, 2])
    assert not list(written.glob("*.mp4"))
    assert "GIF files alone" in capsys.readouterr().out
    assert Image.open(f"{written}.gif").n_frames == 4


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({}, {"classes": ["3"]}, "--classes has 3, but data.clip.cond_frames is 2: a sample has"),
        (GENERATION, {"windows": 2}, "--rollout is 2, but the network is given no frames"),
        ({"sampler__latents": "reset"}, {"windows": 2, "rollout_latents": "carry"},
         "--rollout_latents is carry, but sampler.latents is 'reset'"),
        ({"data__name": "mine"}, {}, "mine"),
    ],
)  # fmt: skip
def test_a_mistake_costs_nothing(workdir, data_dir, monkeypatch, changes, flags, words):
    def never(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(checkpoints, "load", never)
    with pytest.raises(ConfigError, match=words):
        run(videos.config(data_dir, **changes), workdir, **flags)
