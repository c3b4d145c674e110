"""The section `data` of a configuration: which data set is read, and as what."""

import dataclasses

from rin_jax import ConfigError, at_least_one
from rin_jax.data import catalog


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
      name: of a TFDS data set, or of one prepared from a folder.
      split: a TFDS split, "train" or "train[:90%]".
      data_dir: folder of prepared data sets; None is TFDS's own default.
      image_size: height and width; None: those of the data set.
      channels: 1 (grey) or 3 (colour); None: those of the data set.
      num_classes: 0 for an unconditional model; None: those of the data set.
      flip: whether images are mirrored at random.
      num_threads: threads that read and decode.
      prefetch: batches prepared ahead.
    """

    name: str
    split: str
    data_dir: str | None
    image_size: int | None
    channels: int | None
    num_classes: int | None
    flip: bool
    num_threads: int
    prefetch: int

    def __post_init__(self):
        at_least_one("data", self, "num_threads", "prefetch")

    def resolved(self) -> "Data":
        """The same with image size, channels and classes filled in from the data set.

        Raises:
          ConfigError: the data set is not known, or does not suit what is set.
        """
        if None not in (self.image_size, self.channels, self.num_classes):
            return self
        info = catalog.describe(self.name, self.split, self.data_dir, self.image_size)
        known = {
            "image_size": self.image_size,
            "channels": self.channels,
            "num_classes": self.num_classes,
        }
        if self.image_size is None:
            known["image_size"] = declared_size(info)
        if self.channels is None:
            known["channels"] = info.image_shape[-1]
        if self.num_classes is None:
            known["num_classes"] = info.num_classes
        data = dataclasses.replace(self, **known)
        data.check_labels(info.num_classes)
        return data

    def check_labels(self, labels: int) -> None:
        """Raises ConfigError if a data set with `labels` classes does not fit num_classes."""
        if self.num_classes and not labels:
            raise ConfigError(
                f"data.num_classes is {self.num_classes}, but {self.name!r} has no labels; set it "
                "to 0."
            )
        if self.num_classes and labels > self.num_classes:
            raise ConfigError(
                f"data.num_classes is {self.num_classes}, but {self.name!r} has labels "
                f"0..{labels - 1}; set at least {labels}, or 0 for an unconditional model."
            )


def declared_size(info: catalog.DatasetInfo) -> int:
    """The height and width of all images of a data set; ConfigError if they are not one number."""
    height, width, _ = info.image_shape
    if height is None or height != width:
        raise ConfigError(
            f"data.image_size is not set and the images of {info.name!r} have no single "
            f"square size ({height} x {width}); set --config.data.image_size."
        )
    return height
