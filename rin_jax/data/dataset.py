"""The section `data` of a configuration, and what a data set fills in where it is silent."""

import dataclasses
from typing import Any

from rin_jax import ConfigError, at_least_one, of_mapping, one_of
from rin_jax.data import catalog

WINDOWS = ("first", "random")


@dataclasses.dataclass(frozen=True)
class Clip:
    """What an example is where examples are clips: the field `data.clip`."""

    frames: int  # of an example, at least 2, those that are given to the network included
    cond_frames: int  # the first so many frames are given to the network; 0: it generates all
    stride: int  # the data set was prepared with every stride-th frame of a file
    window: str  # which frames of a file it was prepared with: the "first" or "random" ones

    def __post_init__(self):
        if self.frames < 2:
            raise ConfigError(f"data.clip.frames is {self.frames}; it must be at least 2.")
        if not 0 <= self.cond_frames < self.frames:
            raise ConfigError(
                f"data.clip.cond_frames is {self.cond_frames}, but data.clip.frames is "
                f"{self.frames}; it must be at least 0 and less than that."
            )
        at_least_one("data.clip", self, "stride")
        one_of("data.clip.window", self.window, WINDOWS)

    @property
    def prepared(self) -> dict[str, Any]:
        """What a data set must have been prepared with."""
        return {"frames": self.frames, "stride": self.stride, "window": self.window}


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images or clips are read, and how."""

    # a data set of TFDS, perhaps with a configuration ("imagenet_resized/64x64"), or one that was
    # prepared from a folder
    name: str
    split: str  # a split of the data set as TFDS writes them, "train" or "train[:90%]"
    # the folder of prepared data sets, perhaps in a bucket; None is TFDS's own default
    data_dir: str | None
    # the folder that gets a copy of a data set in a bucket; None is TFDS's own default
    cache_dir: str | None
    image_size: int | None  # height and width to train at; None: that of the data set
    clip: Clip | None  # what a clip is, given as a mapping; None: examples are images
    channels: int | None  # 1 (grey, read as 1 or 3) or 3 (colour); None: those of the data set
    num_classes: int | None  # classes; 0: training without labels; None: those of the data set
    flip: bool  # whether training mirrors each example left to right with probability 1/2
    num_threads: int  # threads that read and decode; never more than processors
    prefetch: int  # batches read ahead

    def __post_init__(self):
        object.__setattr__(self, "clip", of_mapping("data.clip", Clip, self.clip))
        at_least_one("data", self, "image_size", "channels", "num_threads", "prefetch")
        if (self.num_classes or 0) < 0:
            fitting = "it must be at least 0, the number for training without labels."
            raise ConfigError(f"data.num_classes is {self.num_classes}; {fitting}")

    @property
    def frames(self) -> int | None:
        """Frames of an example; None if it is an image."""
        return None if self.clip is None else self.clip.frames

    @property
    def cond_frames(self) -> int:
        """How many frames are given to the network."""
        return 0 if self.clip is None else self.clip.cond_frames

    @property
    def example_shape(self) -> tuple[int, ...]:
        """What is denoised: (S, S, C) or, of a clip, (frames - cond_frames, S, S, C)."""
        image = (self.image_size, self.image_size, self.channels)
        return image if self.clip is None else (self.frames - self.cond_frames, *image)

    def describe(self) -> catalog.DatasetInfo:
        """What is known of the data set; see `catalog.describe`."""
        where = self.name, self.split, self.data_dir, self.image_size, self.frames
        return catalog.describe(*where)

    def resolved(self) -> "Data":
        """The same with image size, channels and classes, from the data set where they are None.

        Raises:
          ConfigError: the data set is not known, cannot tell, or has labels that do not fit.
        """
        if None not in (self.image_size, self.channels, self.num_classes):
            return self
        info = self.describe()
        size = declared_size(info) if self.image_size is None else self.image_size
        channels = info.example_shape[-1] if self.channels is None else self.channels
        if channels is None:
            raise ConfigError(
                f"data.channels is not set and {info.name!r} does not tell those of its images; "
                "set --config.data.channels to 1 (grey) or 3 (colour)."
            )
        classes = info.num_classes if self.num_classes is None else self.num_classes
        filled = dataclasses.replace(self, image_size=size, channels=channels, num_classes=classes)
        filled.check_labels(info.num_classes)
        return filled

    def check_labels(self, classes: int) -> None:
        """Raises ConfigError if a data set with labels of so many classes does not fit."""
        wrong = f"data.num_classes is {self.num_classes}, but {self.name!r} has"
        if self.num_classes and not classes:
            raise ConfigError(f"{wrong} no labels; set it to 0.")
        if self.num_classes and classes > self.num_classes:
            fitting = f"set at least {classes}, or 0 for an unconditional model."
            raise ConfigError(f"{wrong} labels 0..{classes - 1}; {fitting}")


def declared_size(info: catalog.DatasetInfo) -> int:
    """The height and width of all images of a data set; ConfigError if they are not one number."""
    *_, height, width, _ = info.example_shape
    if height is None or height != width:
        raise ConfigError(
            f"data.image_size is not set and the images of {info.name!r} have no single "
            f"square size ({height} x {width}); set --config.data.image_size."
        )
    return height
