"""The parameters of a network as shapes."""

from typing import Any

import jax
import numpy as np

from rin_jax.network.rin import RIN


def param_shapes(rin: RIN) -> dict[str, Any]:
    """The parameter tree of a network as shapes and dtypes, without any array."""
    return jax.eval_shape(
        rin.init,
        jax.random.key(0),
        np.zeros((1, *rin.image_shape), np.float32),
        np.zeros((1,), np.float32),
        np.zeros((1,), np.int32) if rin.num_classes else None,
    )["params"]
