"""Time until the training step of each configuration is compiled: cold, and with a kept program.

    python -m benchmarks.compile digits imagenet64 --json=compile.json

compiles each step twice in a new process for each, with a new folder of compiled programs. The
times are from the command to the compiled step: imports and tracing count. Without names all
configurations are compiled; NAME:tiny is the form for tests. Nothing is allocated or run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted({x.stem for x in (ROOT / "configs").glob("[!_]*.py")} - {"modern", "released"})
CHILD = """
    import importlib
    import json
    import sys
    import time

    from rin_jax.experiment import device_mesh, make_experiment
    from rin_jax.runtime import compile_cache
    from rin_jax.training.step import compile_train_step

    name, _, variant = sys.argv[1].partition(":")
    compile_cache.use(sys.argv[2])
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    experiment = make_experiment(config)
    compile_train_step(experiment, device_mesh(experiment))
    print(json.dumps({"processor": time.process_time()}))
"""


def compiled(name: str, folder: str) -> dict[str, float]:
    """Seconds of one process that compiles the step of a configuration, and its processor's."""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), name, folder],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **json.loads(result.stdout.splitlines()[-1])}


def measured(name: str) -> dict[str, dict[str, float]]:
    """The times of a configuration, cold and then with the program that is kept."""
    with tempfile.TemporaryDirectory() as folder:
        return {which: compiled(name, folder) for which in ("cold", "warm")}


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown."""
    lines = ["| configuration | cold, s | of the processor | warm, s | of the processor |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        cells = (f"{row[which][kind]:.1f}" for which in row for kind in ("seconds", "processor"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=CONFIGS, metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {name: measured(name) for name in options.names}
    print(f"jax {jax.__version__}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
