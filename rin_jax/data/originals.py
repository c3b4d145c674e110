"""Where the images of a data set to be prepared come from: TFDS, in whatever format it is there.

`image_folder.py` is the other origin. Both give the same: `name`, `split`, `channels`,
`class_names`, `fingerprint`, a length, and `read(start, stop)`, which gives (what to call it, load)
for each image; load() decodes it and gives (uint8 [H, W, C], class or None).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from rin_jax.data import catalog, preprocessing

Image = tuple[str, Callable[[], tuple[np.ndarray, int | None]]]


@dataclasses.dataclass(frozen=True)
class TfdsOriginal:
    """One split of a data set that TFDS has prepared, in storage order; threads may share it.

    ArrayRecord is read without TensorFlow, other formats (TFRecord, say) with it; ConfigError if it
    is not installed then.
    """

    info: catalog.DatasetInfo
    builder: tfds.core.DatasetBuilder

    def __post_init__(self):
        if not catalog.has_random_access(self.builder):
            catalog.require_tensorflow(f"reading {self.info.name!r} from {self.info.folder}")

    name, split = property(lambda self: self.info.name), property(lambda self: self.info.split)
    class_names = property(lambda self: self.info.class_names)
    channels = property(lambda self: self.info.image_shape[-1] or 3)

    @property
    def fingerprint(self) -> str:
        files = self.builder.info.splits[self.info.split].file_instructions
        what = (self.info.name, [(file.skip, file.take) for file in files], self.class_names)
        return hashlib.sha256(str(what).encode()).hexdigest()

    def __len__(self) -> int:
        return self.info.num_examples

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """The images start, ..., stop - 1; see the module."""
        image_key, label_key = catalog.feature_keys(self.info.name, self.builder)
        for index, record in enumerate(self._records(start, stop), start):
            label = None if label_key is None else int(record[label_key])

            def load(encoded=record[image_key], label=label):
                if label is not None and not 0 <= label < len(self.class_names):
                    raise ValueError(f"label {label} is outside [0, {len(self.class_names)})")
                return preprocessing.decode(encoded, self.channels), label

            yield f"record {index}", load

    def _records(self, start: int, stop: int) -> Iterator[dict]:
        features = self.builder.info.features.items()
        images = [key for key, feature in features if isinstance(feature, tfds.features.Image)]
        skip = dict.fromkeys(images, tfds.decode.SkipDecoding())
        if catalog.has_random_access(self.builder):
            records = self.builder.as_data_source(self.info.split, decoders=skip)
            return (records[index] for index in range(start, stop))
        split = tfds.core.ReadInstruction(self.info.split, from_=start, to=stop, unit="abs")
        return iter(tfds.as_numpy(self.builder.as_dataset(split=split, decoders=skip)))
