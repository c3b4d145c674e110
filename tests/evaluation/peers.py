"""Libraries that the feature networks are compared with, imported beside PyTorch's CPU build."""

import functools
import importlib
from types import ModuleType


@functools.cache
def import_torchvision() -> tuple[ModuleType, object]:
    """Imports torchvision: (the module, the library object that must outlive it).

    The wheel of a package index has operators for one build of PyTorch. Beside another build they
    do not load, and the import ends because it describes operators that are not there: their names
    are defined first, without an implementation. Whatever needs torchvision for an import calls
    this before it.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision"), library
