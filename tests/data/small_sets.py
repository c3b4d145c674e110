"""Small TFDS data sets for these tests (10 records of 6x9 colour images) and how to open them."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rin_jax.data.dataset import Data
from rin_jax.data.source import Source, open_source

NUM_RECORDS = 10
_KIND = {"kind": tfds.features.ClassLabel(names=["even", "odd"])}


def small_image(index):
    """The image of record `index`, uint8 [6, 9, 3]."""
    return np.random.default_rng(index).integers(0, 256, (6, 9, 3), np.uint8)


def section(name, split, data_dir, image_size, channels, **changes) -> Data:
    """A section `data` of these fields."""
    options = {
        "cache_dir": None, "clip": None, "num_classes": None, "flip": False,
        "num_threads": 4, "prefetch": 2, **changes,
    }  # fmt: skip
    where = {"name": name, "split": split, "data_dir": str(data_dir)}
    return Data(**where, image_size=image_size, channels=channels, **options)


def opened(*arguments, **changes) -> Source:
    """The source of such a section."""
    return open_source(section(*arguments, **changes))


class _SmallSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    EXTRA_FEATURES = {}  # noqa: RUF012

    def _info(self):
        image = tfds.features.Image(shape=(6, 9, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, **self.EXTRA_FEATURES}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(NUM_RECORDS):
            png = io.BytesIO()
            Image.fromarray(small_image(index)).save(png, format="PNG")
            png.seek(0)
            yield index, {"image": png, **self.extra(index)}

    def extra(self, index):
        return {}


class SmallPlain(_SmallSet):
    """Without a class label."""


class SmallLabelled(_SmallSet):
    """With a class label under another key than "label"."""

    EXTRA_FEATURES = _KIND

    def extra(self, index):
        return {"kind": index % 2}


class SmallUnlabelled(_SmallSet):
    """With a class label declared but not known, which TFDS stores as -1."""

    EXTRA_FEATURES = _KIND

    def extra(self, index):
        return {"kind": -1}


class SmallPhotos(tfds.core.GeneratorBasedBuilder):
    """JPEGs of 64x96 pixels, of undeclared size."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        features = tfds.features.FeaturesDict({"image": image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        jpeg = io.BytesIO()
        Image.new("RGB", (96, 64), (200, 100, 50)).save(jpeg, format="JPEG")
        jpeg.seek(0)
        yield 0, {"image": jpeg}


class SmallNeedsTensorflow(_SmallSet):
    """Whose preparation fails as that of many sets of TFDS does without TensorFlow."""

    def _generate_examples(self):
        import tensorflow  # noqa: F401

        yield from super()._generate_examples()
