"""The order of the records, their preprocessing, and the errors of the pipeline."""

import itertools

import numpy as np
import pytest

from rin_jax.data import pipeline, source
from tests.data import small_sets


@pytest.fixture(params=[True, False], ids=["in memory", "from disk"])
def kept_in_memory(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(pipeline, "_MEMORY_BYTES", 0)


def read(data_dir, num, **changes):
    """`num` batches of the first 180 digits, 16 to the global batch."""
    options = {
        "name": "digits",
        "split": "train[:180]",
        "data_dir": data_dir,
        "image_size": 8,
        "channels": 1,
        "batch_size": 16,
        "seed": 3,
        "start_step": 0,
        **changes,
    }
    return list(itertools.islice(pipeline.train_batches(**options), num))


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
    assert global_batches(digits_dir, 6, process_count, start_step=17) == reference[17:]
    stream = list(itertools.chain(*reference))
    assert len(set(stream[:180])) == len(set(stream[180:360])) == 180
    assert stream[:180] != stream[180:360]
    assert global_batches(digits_dir, 23, process_count, seed=4) != reference


def test_memory_and_disk_agree(digits_dir, monkeypatch):
    in_memory = read(digits_dir, 30)
    monkeypatch.setattr(pipeline, "_MEMORY_BYTES", 0)
    for kept, decoded in zip(in_memory, read(digits_dir, 30), strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(kept[key], decoded[key])
            assert kept[key].dtype == decoded[key].dtype


@pytest.mark.usefixtures("kept_in_memory")
def test_batches_pair_image_and_label(digits_dir):
    stored = source.open_source("digits", "train[:180]", digits_dir)
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
    options = {"name": "small_labelled", "split": "train", "data_dir": small_dir}
    batch = pipeline.fixed_examples(**options, image_size=6, channels=3, num=4)
    squares = np.stack([small_sets.small_image(index)[:, 1:7] for index in range(4)])
    np.testing.assert_array_equal(batch["image"], squares)
    assert batch["label"].tolist() == [0, 1, 0, 1]
    every = pipeline.fixed_examples(**options, image_size=6, channels=3, num=11)
    assert len(every["label"]) == 10


def cubic_matrix(size_in, size_out):
    """The antialiased bicubic resize (a = -1/2) as a matrix [size_out, size_in]."""
    scale = size_in / size_out
    width = max(scale, 1)  # of the kernel: stretched when shrinking
    centres = (np.arange(size_out) + 0.5) * scale
    x = np.abs(np.arange(size_in) + 0.5 - centres[:, None]) / width
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("image_size", [4, 8, 12])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((12, 12, 3), 3), ((12, 19, 3), 3), ((20, 13, 1), 1), ((20, 13, 1), 3), ((5, 4, 1), 1)],
)
def test_preprocess_crops_and_resizes(shape, image_size, channels):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    side = min(shape[:2])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = image[top : top + side, left : left + side].astype(float)
    matrix = cubic_matrix(side, image_size)
    rows = np.einsum("jw,hwc->hjc", matrix, square).clip(0, 255).round()  # as Pillow does
    expected = np.einsum("ih,hjc->ijc", matrix, rows).clip(0, 255).round()
    result = pipeline.preprocess(image, image_size, channels)
    assert (result.shape, result.dtype) == ((image_size, image_size, channels), np.uint8)
    np.testing.assert_allclose(result, np.broadcast_to(expected, result.shape), atol=1)


def test_preprocess_leaves_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    assert np.shares_memory(pipeline.preprocess(image, 8, 1), image)
    grey = pipeline.preprocess(image, 8, 3)
    np.testing.assert_array_equal(grey, np.concatenate([image] * 3, axis=-1))


@pytest.mark.parametrize(("stored", "channels"), [(3, 1), (1, 2), (4, 4), (4, 3)])
def test_preprocess_refuses_channels(stored, channels):
    with pytest.raises(ValueError, match=rf"data\.channels={channels} .* stored with {stored}"):
        pipeline.preprocess(np.zeros((8, 8, stored), np.uint8), 8, channels)


def test_errors_before_reading(digits_dir, small_dir, tmp_path):
    with pytest.raises(ValueError, match=r"train\.batch_size=16 is not divisible by the 3 proc"):
        read(digits_dir, 0, process_count=3)
    with pytest.raises(ValueError, match=r"'digits'.* 180 records.*train\.batch_size=181; choose"):
        read(digits_dir, 0, batch_size=181)
    with pytest.raises(ValueError, match=r"data\.channels=1 "):
        read(str(tmp_path), 0, name="small_plain", split="train", channels=1)
    assert not list(tmp_path.iterdir())  # refused before it was prepared


@pytest.mark.usefixtures("kept_in_memory")
def test_label_that_is_no_class(small_dir):
    with pytest.raises(ValueError, match=r"label of record \d is -1, outside \[0, 2\)"):
        read(small_dir, 1, name="small_unlabelled", split="train", channels=3, batch_size=5)
