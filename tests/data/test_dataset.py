"""The section `data`: its checks and what the data set fills in."""

import dataclasses

import pytest

from rin_jax import ConfigError
from rin_jax.data import catalog
from tests.data import small_sets


@pytest.mark.parametrize("field", ["image_size", "channels", "num_threads", "prefetch"])
def test_counts_are_at_least_one(field):
    data = small_sets.section("digits", "train", "nowhere", 8, 1)
    assert dataclasses.replace(data, **{field: 1})
    with pytest.raises(ConfigError, match=rf"data\.{field} is 0; it must be at least 1\."):
        dataclasses.replace(data, **{field: 0})


def test_classes_are_none_or_more():
    assert small_sets.section("digits", "train", "nowhere", 8, 1, num_classes=0)
    with pytest.raises(ConfigError, match=r"data\.num_classes is -1; it must be at least 0"):
        small_sets.section("digits", "train", "nowhere", 8, 1, num_classes=-1)


def test_what_is_not_set_follows_the_data_set(tmp_path):
    def resolved(name, *fields):
        data = small_sets.section(name, "train", tmp_path, *fields[:2], num_classes=fields[2])
        data = data.resolved()
        return data.image_size, data.channels, data.num_classes

    assert resolved("digits", None, None, None) == (8, 1, 10)
    assert resolved("digits", 16, 3, None) == (16, 3, 10)
    assert resolved("digits", None, 3, 12) == (8, 3, 12)
    assert resolved("small_labelled", 4, None, None) == (4, 3, 2)
    assert resolved("small_plain", 4, None, None) == (4, 3, 0)
    assert resolved("nothing_like_it", 4, 3, 2) == (4, 3, 2)  # it is not asked where all is set
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("small_plain", (None, 3, 0), r"image_size is not set and .* square size \(6 x 9\); set"),
        ("imagenet2012", (None, 3, 0), r"no single square size \(None x None\)"),
        ("digits", (None, 1, 5), r"num_classes is 5, but 'digits' has labels 0\.\.9; set at"),
        ("small_plain", (4, None, 7), r"num_classes is 7, but 'small_plain' has no labels; set it"),
        ("nothing_like_it", (4, None, 7), r"neither TFDS nor"),
    ],
)
def test_what_does_not_fit(tmp_path, name, fields, message):
    size, channels, classes = fields
    data = small_sets.section(name, "train", tmp_path, size, channels, num_classes=classes)
    with pytest.raises(ConfigError, match=message):
        data.resolved()


def test_channels_that_a_data_set_does_not_tell(monkeypatch, tmp_path):
    info = catalog.describe("digits", "train", str(tmp_path), 8)
    unknown = dataclasses.replace(info, example_shape=(8, 8, None))
    monkeypatch.setattr(catalog, "describe", lambda *arguments: unknown)
    with pytest.raises(ConfigError, match=r"data\.channels is not set and 'digits' does not tell"):
        small_sets.section("digits", "train", tmp_path, 8, None).resolved()


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(catalog.os, "listdir", refuse)
    with pytest.raises(ConfigError, match=rf"data\.data_dir: {tmp_path} may not be read by this"):
        catalog.describe("mine", "train", str(tmp_path), 8)


def test_unlabelled_training_takes_any_labels():
    data = small_sets.section("digits", "train", "nowhere", 8, 1, num_classes=0)
    data.check_labels(10)
    dataclasses.replace(data, num_classes=10).check_labels(10)
    with pytest.raises(ConfigError, match=r"labels 0\.\.9; set at least 10, or 0"):
        dataclasses.replace(data, num_classes=9).check_labels(10)
