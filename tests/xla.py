"""XLA's flags for tests: most of their time is compiling, and each program runs a few times."""

import importlib.metadata
from pathlib import Path

CACHE = str(Path(__file__).resolve().parents[1] / ".cache" / "jax")  # of compiled programs
FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FAST += " --xla_cpu_use_fusion_emitters=false"  # half of the time; newer ones lack the flag
