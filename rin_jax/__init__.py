"""Recurrent Interface Networks in JAX/Flax (arXiv 2212.11972)."""


def load(source: str):
    """An exported model from a folder, URL or hub id; see `rin_jax.interop.loading.load`."""
    from rin_jax.interop import loading  # here, so that `import rin_jax` alone imports nothing

    return loading.load(source)
