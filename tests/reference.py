"""Reference tensors: where they are, how they are read, how errors are measured.

They lie in $RIN_PARITY_DIR, or in ../shared/parity beside the project. Without them the
tests that need them are skipped, unless $RIN_PARITY_DIR says that they must be there.
"""

import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax.interop import pix2seq
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.network.rin import RIN

DIRECTORY = Path(
    os.environ.get("RIN_PARITY_DIR") or Path(__file__).resolve().parents[2] / "shared" / "parity"
)
needed = pytest.mark.skipif(
    not DIRECTORY.is_dir() and "RIN_PARITY_DIR" not in os.environ,
    reason="no reference tensors: set RIN_PARITY_DIR to their folder",
)


@functools.lru_cache(maxsize=8)
def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays by name, meta) of one reference file."""
    arrays = dict(np.load(DIRECTORY / f"{name}.npz"))
    return arrays, json.loads(str(arrays.pop("meta")))


def names(pattern: str) -> list[str]:
    """Reference files that match a pattern."""
    return sorted(path.stem for path in DIRECTORY.glob(f"{pattern}.npz"))


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def error(value, expected) -> float:
    """Largest difference over max(1, largest reference value)."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape, (value.shape, expected.shape)
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def labels_of(one_hot: np.ndarray) -> np.ndarray:
    """One-hot rows to labels; an all-zero row is no label."""
    return np.where(one_hot.any(-1), one_hot.argmax(-1), NO_LABEL).astype(np.int32)


def network(name: str) -> tuple[RIN, dict]:
    """(RIN, params) of an architecture file."""
    arrays, meta = load(name)
    num_classes = arrays["in/cond"].shape[-1] if meta["cond"] == "class" else 0
    rin = pix2seq.network(meta["config"], num_classes)
    return rin, pix2seq.import_params(under(arrays, "w/"), rin)


def denoiser(rin: RIN, params: dict):
    """denoise_fn of a network for samplers and losses; their condition is labels, or None."""

    @jax.jit
    def denoise(xt, gamma, labels, prev_latents):
        cond = {} if labels is None else {"label": labels}
        return rin.apply({"params": params}, xt, gamma, cond, prev_latents)

    return denoise
