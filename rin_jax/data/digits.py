"""The data set "digits": scikit-learn's handwritten digits as a TFDS builder.

scikit-learn carries the images, so that the set is generated at once on a machine without a
network. Source: https://archive.ics.uci.edu/dataset/80 (E. Alpaydin and C. Kaynak, 1998).
"""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey 8x8 images, the values 0..16 scaled to 0..255; one split, "train".

    Importing this module is what makes `tfds.builder("digits")` find it.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
        label = tfds.features.ClassLabel(names=list("0123456789"))
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels, from sklearn.datasets.load_digits.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for key, (image, label) in enumerate(zip(*load(), strict=True)):
            png = io.BytesIO()  # TFDS itself encodes arrays with TensorFlow only
            Image.fromarray(image).save(png, format="PNG")
            yield key, {"image": io.BytesIO(png.getvalue()), "label": int(label)}


def load() -> tuple[np.ndarray, np.ndarray]:
    """All digits and their classes: uint8 [1797, 8, 8] and int [1797]."""
    from sklearn import datasets  # only to prepare: slow to import

    digits = datasets.load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
