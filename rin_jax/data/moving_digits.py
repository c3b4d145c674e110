"""The data set "moving_digits": clips of two handwritten digits that move and bounce.

As Moving MNIST (Srivastava et al., arXiv 1502.04681), from the digits of 8x8 pixels that
scikit-learn carries: both digits of a clip are of one class, which is its label, so that there is
something to condition on. A digit moves at a constant speed and is reflected at the edges; where
two overlap, the brighter pixel is seen. A digit is as small as eight pixels, so that it is drawn
between pixels: rounded to whole ones, its speed could not be told from a few frames.
"""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from rin_jax import ConfigError
from rin_jax.data import digits, preprocessing

NAME = "moving_digits"
SIDE = 8  # pixels of a digit
CLIPS = {"train": 10_000, "test": 2048}
TRAINING_DIGITS = 1500  # the first so many of 1,797; the test clips show the others
SLOWEST, FASTEST = 1.0, 2.0  # pixels a frame
SMALLEST = 12  # pixels of a frame


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Grey clips of one shape; record i of a split depends on the split and i alone.

    Importing this module is what makes `tfds.builder("moving_digits")` find it.
    """

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, image_size: int | None = None, frames: int | None = None, **options):
        """16 frames of 24x24 pixels where nothing is said; ConfigError at no room to move."""
        self.image_size, self.frames = image_size or 24, frames or 16
        if self.image_size < SMALLEST:
            raise ConfigError(
                f"data.image_size is {image_size}, but {NAME!r} shows digits of {SIDE} pixels that "
                f"move; set it to at least {SMALLEST}."
            )
        self.name = f"{NAME}_{self.frames}x{self.image_size}px"  # of the folder
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self.image_size, self.image_size, 1)
        image = tfds.features.Image(shape=shape, encoding_format="png")
        features = {
            "video": tfds.features.Sequence(image, length=self.frames),
            "label": tfds.features.ClassLabel(names=list("0123456789")),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips of two handwritten digits of one class that move and bounce.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("video", "label"),
            disable_shuffling=True,  # their order is random
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in CLIPS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        shapes = load_shapes(split)
        for index in range(CLIPS[split]):
            scene = draw_scene(split, index, self.image_size, [len(kind) for kind in shapes])
            pair = shapes[scene.label][list(scene.shapes)]
            frames = render(pair, scene.path(self.frames), self.image_size)
            video = [io.BytesIO(preprocessing.encode(frame)) for frame in frames]
            yield index, {"video": video, "label": scene.label}


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is seen in a clip."""

    label: int  # the class of both digits
    shapes: tuple[int, int]  # which two of the handwritten digits of that class
    start: np.ndarray  # float [2, 2]: row and column of each digit's corner in frame 0
    velocity: np.ndarray  # float [2, 2], pixels a frame, before it bounces
    room: int  # the largest row and column at which a digit is inside

    def path(self, frames: int) -> np.ndarray:
        """Row and column of each digit's corner in each frame, float [frames, 2, 2] in [0, room].

        A reflected path is a straight one, folded: |((p + room) mod 2 room) - room|.
        """
        straight = self.start + np.arange(frames)[:, None, None] * self.velocity
        return np.abs((straight + self.room) % (2 * self.room) - self.room)


def draw_scene(split: str, index: int, image_size: int, num_shapes: list[int]) -> Scene:
    """The scene of a clip, where class c has num_shapes[c] handwritten digits to choose from."""
    rng = np.random.default_rng([list(CLIPS).index(split), index])
    label = int(rng.integers(len(num_shapes)))
    first, second = rng.choice(num_shapes[label], 2, replace=False).tolist()
    room = image_size - SIDE
    start, angle = rng.uniform(0, room, (2, 2)), rng.uniform(0, 2 * np.pi, 2)
    speed = rng.uniform(SLOWEST, FASTEST, 2)
    velocity = speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return Scene(label, (first, second), start, velocity, room)


def load_shapes(split: str) -> list[np.ndarray]:
    """The handwritten digits of a split, by class: uint8 [N, 8, 8] each."""
    images, labels = digits.load()
    own = slice(TRAINING_DIGITS) if split == "train" else slice(TRAINING_DIGITS, None)
    images, labels = images[own], labels[own]
    return [images[labels == label] for label in range(10)]


def render(pair: np.ndarray, path: np.ndarray, image_size: int) -> np.ndarray:
    """Two digits uint8 [2, 8, 8] along `path` [T, 2, 2], bilinear: uint8 [T, S, S, 1]."""
    places = path[..., None, None] + np.arange(SIDE)  # of the rows and columns of each digit
    weights = np.maximum(0, 1 - np.abs(np.arange(image_size)[:, None] - places))
    rows, columns = weights[:, :, 0], weights[:, :, 1]  # [T, 2, S, 8]
    seen = rows @ pair.astype(np.float64) @ columns.swapaxes(2, 3)
    return np.rint(seen.max(axis=1)).astype(np.uint8)[..., None]
