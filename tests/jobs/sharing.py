"""rin_jax.main as a process of a pod in which one process compiles each program for all.

JAX has that (`jax_share_binary_between_hosts`), but on CPUs its cache's key tells a program's
processes apart by the devices that are their own.
"""

import os

import jax
from jax._src import cache_key

from rin_jax.runtime import processes

assert hasattr(cache_key, "_hash_accelerator_config")
cache_key._hash_accelerator_config = cache_key._hash_devices
processes.HEARTBEAT = 100  # the machine may be busy with other tests
jax.config.update("jax_compilation_cache_dir", os.environ["POD_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_share_binary_between_hosts", True)
jax.config.update("jax_share_binary_between_hosts_timeout_ms", 300_000)

if __name__ == "__main__":
    from absl import app, flags

    from rin_jax import main

    flags.mark_flags_as_required(["config"])
    app.run(main.main)
