"""The order of the records and the errors of the pipeline."""

import itertools

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.data import pipeline, source
from tests.data import small_sets


@pytest.fixture(params=[True, False], ids=["in memory", "from disk"])
def kept_in_memory(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(pipeline, "_MEMORY_BYTES", 0)


def read(data_dir, num, name="digits", split="train[:180]", image_size=8, channels=1, **changes):
    """`num` batches of the first 180 digits, 16 to the global batch, or of another set."""
    options = {"batch_size": 16, "seed": 3, "start": 0, **changes}
    opened = small_sets.opened(name, split, data_dir, image_size, channels)
    return list(itertools.islice(pipeline.train_batches(opened, **options), num))


def keys(batch):
    """One number an image, equal for equal images (the 180 are all different)."""
    return [image.tobytes() for image in batch["image"]]


def global_batches(data_dir, num, process_count, **changes):
    """The batches of all processes, process after process: rows as one process has them."""
    parts = [
        read(data_dir, num, process_index=index, process_count=process_count, **changes)
        for index in range(process_count)
    ]
    return [list(itertools.chain(*map(keys, step))) for step in zip(*parts, strict=True)]


@pytest.mark.usefixtures("kept_in_memory")
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_order_is_of_seed_and_step_alone(digits_dir, process_count):
    """180 records in batches of 16: two epochs are 22.5 batches."""
    reference = [keys(batch) for batch in read(digits_dir, 23)]
    assert global_batches(digits_dir, 23, process_count) == reference
    assert global_batches(digits_dir, 6, process_count, start=17 * 16) == reference[17:]
    stream = list(itertools.chain(*reference))
    assert len(set(stream[:180])) == len(set(stream[180:360])) == 180
    assert stream[:180] != stream[180:360]
    assert global_batches(digits_dir, 23, process_count, seed=4) != reference


@pytest.mark.usefixtures("kept_in_memory")
def test_resumed_at_every_step_on_another_number_of_processes(digits_dir):
    reference = [keys(batch) for batch in read(digits_dir, 23)]
    for step in range(23):
        process_count = (1, 2, 4, 8)[step % 4]
        (batch,) = global_batches(digits_dir, 1, process_count, start=step * 16)
        assert batch == reference[step], (step, process_count)


def test_another_batch_size_goes_on_where_the_images_ended(digits_dir):
    stream = list(itertools.chain(*map(keys, read(digits_dir, 10))))
    rest = list(itertools.chain(*map(keys, read(digits_dir, 8, start=64, batch_size=12))))
    assert rest == stream[64:]


def test_batches_have_no_end(digits_dir):
    """Four records, two to a batch, for 60 epochs: each has all four, in its own order."""
    batches = read(digits_dir, 120, split="train[:4]", batch_size=2)
    stream = list(itertools.chain(*map(keys, batches)))
    epochs = [tuple(stream[first : first + 4]) for first in range(0, 240, 4)]
    assert {frozenset(epoch) for epoch in epochs} == {frozenset(stream)}
    assert len(set(epochs)) > 12  # of the 24 orders that there are


def test_memory_and_disk_agree(digits_dir, monkeypatch):
    in_memory = read(digits_dir, 30)
    monkeypatch.setattr(pipeline, "_MEMORY_BYTES", 0)
    for kept, decoded in zip(in_memory, read(digits_dir, 30), strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(kept[key], decoded[key])
            assert kept[key].dtype == decoded[key].dtype


@pytest.mark.parametrize("kept", [True, False])
def test_a_data_set_that_fits_into_memory_is_read_once(digits_dir, monkeypatch, kept):
    """Three epochs of grey digits that are trained on in colour."""
    reads, stored = [], small_sets.opened("digits", "train[:180]", digits_dir, 8, 3)
    getitem = source.Source.__getitem__

    def counted(self, index):
        if self is stored:
            reads.append(index)
        return getitem(self, index)

    monkeypatch.setattr(source.Source, "__getitem__", counted)
    size = 180 * 8 * 8 * 3
    monkeypatch.setattr(pipeline, "_MEMORY_BYTES", size if kept else size - 1)
    list(itertools.islice(pipeline.train_batches(stored, 18, seed=3, start=0), 30))
    assert set(reads) == set(range(180))
    assert len(reads) == 180 if kept else len(reads) >= 3 * 180


@pytest.mark.usefixtures("kept_in_memory")
def test_batches_pair_image_and_label(digits_dir):
    stored = small_sets.opened("digits", "train[:180]", digits_dir, 8, 1)
    labels = {stored[index]["image"].tobytes(): stored[index]["label"] for index in range(180)}
    for batch in read(digits_dir, 12, process_index=1, process_count=2):
        assert (batch["image"].shape, batch["image"].dtype) == ((8, 8, 8, 1), np.uint8)
        assert (batch["label"].shape, batch["label"].dtype) == ((8,), np.int32)
        assert [labels[key] for key in keys(batch)] == batch["label"].tolist()


@pytest.mark.usefixtures("kept_in_memory")
def test_unconditional_colour_set(small_dir):
    options = {"name": "small_plain", "split": "train", "channels": 3, "image_size": 6}
    (batch,) = read(small_dir, 1, batch_size=10, **options)
    squares = [small_sets.small_image(index)[:, 1:7] for index in range(10)]
    assert set(batch) == {"image"}
    assert sorted(keys(batch)) == sorted(square.tobytes() for square in squares)


def test_fixed_examples(small_dir):
    opened = small_sets.opened("small_labelled", "train", small_dir, 6, 3)
    batch = pipeline.fixed_examples(opened, 4)
    squares = np.stack([small_sets.small_image(index)[:, 1:7] for index in range(4)])
    np.testing.assert_array_equal(batch["image"], squares)
    assert batch["label"].tolist() == [0, 1, 0, 1]
    every = pipeline.fixed_examples(opened, 11)
    assert len(every["label"]) == 10


def test_errors_before_reading(digits_dir, small_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size=16 is not divisible by the 3 proc"):
        read(digits_dir, 0, process_count=3)
    with pytest.raises(ConfigError, match=r"'digits'.* 180 records.*train\.batch_size=181; choose"):
        read(digits_dir, 0, batch_size=181)
    with pytest.raises(ConfigError, match=r"data\.channels=1 "):
        read(str(tmp_path), 0, name="small_plain", split="train", channels=1)
    assert not list(tmp_path.iterdir())  # refused before it was prepared


@pytest.mark.usefixtures("kept_in_memory")
def test_label_that_is_no_class(small_dir):
    with pytest.raises(ConfigError, match=r"label of record \d is -1, outside \[0, 2\)"):
        read(small_dir, 1, name="small_unlabelled", split="train", channels=3, batch_size=5)
