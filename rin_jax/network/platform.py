"""What a network computes in another form on a CPU; the forms agree within rounding."""

import jax
import jax.numpy as jnp

Array = jax.Array


def on_cpu() -> bool:
    """Whether a program is traced for a CPU: by the mesh which is set, or by JAX's default device.

    A program that is exported for several platforms is traced as for the default one.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return (jax.default_backend() if device is None else device.device_kind) == "cpu"


def project(x: Array, kernel: Array) -> Array:
    """x [..., W] times kernel (W, F): [..., F].

    On a CPU as a product of two matrices: the kernel's gradient sums over all tokens, and XLA
    copies transposed arrays there for a sum over two axes.
    """
    if not on_cpu():
        return jnp.einsum("...w,wf->...f", x, kernel)
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
