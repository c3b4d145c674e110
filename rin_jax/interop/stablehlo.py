"""Programs that need no rin_jax: denoiser and sampler as StableHLO, serialised by jax.export.

The batch is symbolic and the weights are an argument, {name: array} as model.safetensors has
them: a program is some ten kilobytes, runs on CPU, CUDA and TPU, and serves any weights of its
network. Products are computed at full float32 precision on every platform; a network that computes
in bfloat16 still does.
"""

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from rin_jax.experiment import Experiment
from rin_jax.interop import programs
from rin_jax.interop.export_format import flatten, nest
from rin_jax.network.partitioning import param_shapes

PLATFORMS = ("cpu", "cuda", "tpu")
DENOISER, SAMPLER = "denoiser.stablehlo", "sampler.stablehlo"


def write(folder: epath.Path, experiment: Experiment) -> None:
    """Writes both programs. Their arguments are those of `programs`, with flat parameters."""
    rin = experiment.rin
    (batch,) = export.symbolic_shape("batch")
    params = flatten(param_shapes(rin))
    images = jax.ShapeDtypeStruct((batch, *rin.example_shape), jnp.float32)
    gamma = jax.ShapeDtypeStruct((batch,), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    keys = jax.ShapeDtypeStruct((batch, 2), jnp.uint32)
    denoiser = programs.make_denoiser(experiment), (
        images, gamma, labels, rin.abstract_latents(batch),
    )  # fmt: skip
    sampler = programs.make_sampler(experiment), (images, labels, keys)
    for name, (program, arguments) in ((DENOISER, denoiser), (SAMPLER, sampler)):

        def flat(weights, *rest, program=program):
            with jax.default_matmul_precision("highest"):
                return program(nest(weights), *rest)

        exported = export.export(jax.jit(flat), platforms=PLATFORMS)(params, *arguments)
        (folder / name).write_bytes(exported.serialize())
