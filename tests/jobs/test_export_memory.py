"""The memory of an export of 70 million parameters, measured in a process of its own."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from rin_jax.network.partitioning import param_shapes
from rin_jax.training.state import TrainState
from tests import test_configs, tiny

LARGE = {"model__latent_dim": 1024, "model__interface_dim": 256, "model__latent_mlp_ratio": 4,
         "model__depth": 2}  # fmt: skip
MEASURE = r"""
import re, sys
from rin_jax.jobs import export
from tests import tiny
from tests.jobs.test_export_memory import LARGE
def kilobytes(of):  # of this program alone: ru_maxrss would count the process that started it too
    return int(re.search(rf"{of}:\s*(\d+) kB", open("/proc/self/status").read())[1])
before = kilobytes("VmRSS")
export.export(tiny.config(**LARGE), sys.argv[1], sys.argv[2], None, with_grid=False,
              with_onnx=False, push=None)
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_are_in_memory_once(tmp_path):
    """What Orbax holds while it reads is counted too; the writing adds next to nothing."""
    experiment = tiny.experiment(**LARGE)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.random(leaf.shape, np.float32)), param_shapes(experiment.rin)
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size > 2.5e8
    rest = {"none": jnp.zeros(1)}  # parameters and moments, which no export reads
    emas = {"decay_0.9": params}
    state = TrainState(step=jnp.int32(1), params=rest, emas=emas, opt_state=rest)
    tiny.save(tmp_path / "run", experiment, {1: state})
    del params, state, emas
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "run"), str(tmp_path / "to")],
        cwd=test_configs.CONFIGS.parent, env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = epath.Path(tmp_path / "to" / "model.safetensors").stat().length
    for name in ("run", "to"):  # a quarter of a gigabyte each
        epath.Path(tmp_path / name).rmtree()
    assert written >= size
    # 120 MB go to libraries and programs; Orbax reads with half the weights beside them
    assert size < 1024 * int(done.stdout.splitlines()[-1]) < 1.6 * size + 200e6
