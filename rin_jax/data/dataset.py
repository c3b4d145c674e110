"""The section `data` of a configuration, and what a data set fills in where it is silent."""

import dataclasses

from rin_jax import ConfigError, at_least_one
from rin_jax.data import catalog


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images are read, and how."""

    # a data set of TFDS, perhaps with a configuration ("imagenet_resized/64x64"), or one that was
    # prepared from a folder
    name: str
    split: str  # a split of it as TFDS writes them, "train" or "train[:90%]"
    data_dir: str | None  # the folder of prepared data sets; None is TFDS's own default
    image_size: int | None  # height and width to train at; None: that of the data set
    channels: int | None  # 1 (grey, read as 1 or 3) or 3 (colour); None: those of the data set
    num_classes: int | None  # of the labels, 0 for training without labels; None: all there are
    flip: bool  # whether training mirrors each image left to right with probability 1/2
    num_threads: int  # threads that read and decode; never more than processors
    prefetch: int  # batches read ahead

    def __post_init__(self):
        at_least_one("data", self, "image_size", "channels", "num_threads", "prefetch")
        if (self.num_classes or 0) < 0:
            fitting = "it must be at least 0, the number for training without labels."
            raise ConfigError(f"data.num_classes is {self.num_classes}; {fitting}")

    def resolved(self) -> "Data":
        """The same with image size, channels and classes, from the data set where they are None.

        Raises:
          ConfigError: the data set is not known, cannot tell, or has labels that do not fit.
        """
        if None not in (self.image_size, self.channels, self.num_classes):
            return self
        info = catalog.describe(self.name, self.split, self.data_dir, self.image_size)
        size = declared_size(info) if self.image_size is None else self.image_size
        channels = info.image_shape[-1] if self.channels is None else self.channels
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
    height, width, _ = info.image_shape
    if height is None or height != width:
        raise ConfigError(
            f"data.image_size is not set and the images of {info.name!r} have no single "
            f"square size ({height} x {width}); set --config.data.image_size."
        )
    return height
