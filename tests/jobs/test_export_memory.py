"""An export of 412 million parameters, measured in a process of its own."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from rin_jax.experiment import make_experiment
from rin_jax.network.partitioning import param_shapes
from rin_jax.training.state import TrainState
from tests import test_configs, tiny

MEASURE = r"""
import re, sys
from rin_jax.jobs import export
from tests import test_configs
config = test_configs.load("imagenet1024").get_config()
export.export(config, sys.argv[1], sys.argv[2], None, with_grid=False, with_onnx=False, push=None)
# the peak of this program alone: ru_maxrss would count the process that started it too
print(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_within_twice_the_size(tmp_path):
    """Python, its libraries and what Orbax holds while it reads are counted too."""
    experiment = make_experiment(test_configs.load("imagenet1024").get_config())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)),
        param_shapes(experiment.rin),
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size > 1.6e9
    rest = {"none": jnp.zeros(1)}  # parameters and moments, which no export reads
    emas = {"decay_0.9999": params}
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
    for name in ("run", "to"):  # gigabytes
        epath.Path(tmp_path / name).rmtree()
    assert written >= size
    assert 1024 * int(done.stdout.splitlines()[-1]) < 2 * size
