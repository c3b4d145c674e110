"""What a network computes in a form that suits the device; the forms agree within rounding."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# Where two products of a TPU are the faster one after the other: by the compiler, docs/plan.md.
MANY_WEIGHTS = 2**22  # of one of them at least
FEW_TOKENS = 128  # of an example at most


def traced_for(platform: str) -> bool:
    """Whether a program is traced for "cpu" or "tpu": by the mesh that is set, or JAX's default.

    A program that is exported for several platforms is traced as for the default one.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    kind = jax.default_backend() if device is None else device.device_kind
    return kind.lower().startswith(platform)  # "TPU v5 lite", "TPU7x"


def unroll(layers: int) -> int:
    """How many of the compute layers of a block are written out in a turn of their loop.

    All on a TPU: from a loop inside the loop over blocks the compiler copies weights, gradients and
    what is kept for the backward pass once more (docs/plan.md).
    """
    return layers if traced_for("tpu") else 1


def project(x: Array, kernel: Array) -> Array:
    """x [..., W] times kernel (W, F): [..., F].

    On a CPU as a product of two matrices: the kernel's gradient sums over all tokens, and XLA
    copies transposed arrays there for a sum over two axes.
    """
    if not traced_for("cpu"):
        return jnp.einsum("...w,wf->...f", x, kernel)
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def gelu(x: Array) -> Array:
    """x (1 + erf(x / sqrt(2))) / 2, computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * np.float32(np.sqrt(0.5))))).astype(x.dtype)


def project_gelu(x: Array, kernel: Array) -> Array:
    """gelu(x) times kernel, x [..., W], kernel (W, F): [..., F].

    A TPU's compiler makes one loop of it and of the product that gives x. With many weights for few
    tokens it is told to compute one after the other.
    """
    many = kernel.size >= MANY_WEIGHTS and x.shape[-2] <= FEW_TOKENS
    return _apart(x, kernel) if many and traced_for("tpu") else _project_gelu(x, kernel)


def _project_gelu(x, kernel):
    return project(gelu(x), kernel)


@jax.custom_vjp
def _apart(x, kernel):
    return project(jax.lax.optimization_barrier(gelu(x)), kernel)


def _apart_backward(saved, cotangent):
    return jax.vjp(_project_gelu, *saved)[1](cotangent)


_apart.defvjp(lambda *arrays: (_apart(*arrays), arrays), _apart_backward)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """x [B, T, F] plus bias (F,), both of one dtype; the bias's gradient is summed in float32."""
    return x + bias[None, None]


def _add_bias_forward(x, bias):
    return add_bias(x, bias), None


def _add_bias_backward(_, cotangent):
    def plain(cotangent):
        return cotangent.sum((0, 1))

    if cotangent.dtype != jnp.bfloat16:
        return cotangent, plain(cotangent)
    total = jax.lax.platform_dependent(cotangent, tpu=sum_by_product, default=plain)
    return cotangent, total


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def sum_by_product(x: Array) -> Array:
    """The sum of x [B, T, F] in bfloat16 over examples and tokens: [F].

    Over tokens by a product with ones: XLA:TPU takes many times as long for a plain sum over rows.
    The product has eight equal rows, since one alone would be made a plain sum again.
    """
    ones = jnp.ones((8, x.shape[1]), x.dtype)
    sums = jnp.einsum("rt,btf->rbf", ones, x, preferred_element_type=jnp.float32)
    return sums[0].sum(0).astype(x.dtype)
