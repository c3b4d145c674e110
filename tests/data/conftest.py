"""Prepared data sets, once a session, below pytest's temporary folder."""

import pytest

from rin_jax.data import catalog
from tests.data import small_sets


def _prepared(data_dir, names):
    for name in names:
        builder = catalog.tfds_builder(name, str(data_dir))
        catalog.prepare_with_tfds(name, builder, None)
    return str(data_dir)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    return _prepared(tmp_path_factory.mktemp("digits"), ["digits"])


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory):
    assert small_sets.NUM_RECORDS == 10  # the import has registered the names
    names = ["small_plain", "small_labelled", "small_unlabelled", "small_photos"]
    return _prepared(tmp_path_factory.mktemp("small"), names)
