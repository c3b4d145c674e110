"""Times one training step, its parts and one sampler step on one device.

    python -m benchmarks.step --size=s64 --json=s64.json
    python -m benchmarks.step --size=s64 --peers

Each part is compiled, run until warm, then timed N times until its results are ready; the table
gives the median and the range. Rates hold model FLOPs (network/cost.py) against the device's own
matrix product. With --peers it is timed beside others instead (peers.py). README.md in this folder
says how to read it.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# so that `python benchmarks/step.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers
from benchmarks.sizes import SIZES, make_config
from rin_jax import ConfigError
from rin_jax.experiment import Experiment, make_experiment
from rin_jax.network import attention, conditioning, cost, layers
from rin_jax.runtime import chips, sharding
from rin_jax.sampling.denoiser import denoiser
from rin_jax.training import ema
from rin_jax.training.state import TrainState, create_state
from rin_jax.training.step import compile_train_step, make_loss, prepare_images

DTYPES = ("float32", "bfloat16")
PARTS = ("forward_backward", "optimizer_update", "ema_update", "training_step", "sampler_step")
ATTENTIONS = ("device", "xla", "cudnn")

# call(carry) -> carry, and the first carry: what an iteration hands to the next
Part = tuple[Callable[[Any], Any], Any]


def measure(part: Part, repetitions: int, warmup: int) -> list[float]:
    """Seconds of each repetition, until the result is ready; the first warm-up run compiles."""
    call, carry = part
    seconds = []
    for _ in range(warmup + repetitions):
        start = time.perf_counter()
        carry = jax.block_until_ready(call(carry))
        seconds.append(time.perf_counter() - start)
    return seconds[warmup:]


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """A batch of random images and, if the model has classes, labels."""
    rng = np.random.default_rng(0)
    size, classes = experiment.train.batch_size, experiment.rin.num_classes
    shape = (size, *experiment.rin.example_shape)
    batch = {"image": rng.integers(0, 256, shape, dtype=np.uint8)}
    if classes:
        batch["label"] = rng.integers(0, classes, size, dtype=np.int32)
    return batch


def forward_backward(experiment: Experiment, params: Any, batch: dict[str, jax.Array]) -> Part:
    """Loss and gradients of a batch, both passes."""
    key = jax.random.key(0)
    images = prepare_images(batch["image"], key, flip=False)
    draws = experiment.objective.draw(key, images.shape)
    compute = jax.jit(jax.value_and_grad(make_loss(experiment)))
    return lambda _: compute(params, images, conditioning.of_batch(batch), draws, key), None


def optimizer_update(experiment: Experiment, state: TrainState) -> Part:
    """The optimizer's update added to the parameters; both are donated, as in the step."""

    def update(carry, grads):
        params, opt_state = carry
        updates, opt_state = experiment.optimizer.update(grads, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    compiled = jax.jit(update, donate_argnums=0)
    grads = jax.jit(lambda tree: jax.tree.map(lambda p: jnp.full_like(p, 1e-3), tree))(state.params)
    carry = copy((state.params, state.opt_state))
    return lambda carry: compiled(carry, grads), carry


def ema_update(experiment: Experiment, state: TrainState) -> Part:
    """The running average of the parameters, donated."""
    compiled = jax.jit(
        lambda emas, params, t: ema.update(emas, params, experiment.averages, t), donate_argnums=0
    )
    return lambda emas: compiled(emas, state.params, jnp.int32(1000)), copy(state.emas)


def copy(tree: Any) -> Any:
    """Arrays that may be donated in place of those given."""
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(tree)


def sampler_step(experiment: Experiment, params: Any, cond: conditioning.Cond) -> Part:
    """One sampler step that carries images and latents, half-way through the noise."""
    rin, sampler = experiment.rin, experiment.sampler
    times = jnp.float32(0.5), jnp.float32(0.49)

    @jax.jit
    def step(params, carry, cond):
        xt, latents = carry
        denoise_fn = denoiser(rin, params)
        xt, latents, _ = sampler.step(
            denoise_fn, xt, latents, cond, *times, fresh=jnp.zeros_like(xt)
        )
        return xt, latents

    size = experiment.train.batch_size
    noise = jax.random.normal(jax.random.key(0), (size, *rin.example_shape))
    latents = jax.tree.map(lambda z: jnp.zeros(z.shape, z.dtype), rin.abstract_latents(size))
    return lambda carry: step(params, carry, cond), (noise, latents)


def make_parts(experiment: Experiment) -> dict[str, Callable[[], Part]]:
    """What makes each part, on the first device; the batch lies on the device already.

    The training step is the last, since it gives the state away.
    """
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    state = create_state(experiment, mesh, experiment.seed)
    batch = sharding.global_batch(random_batch(experiment), mesh)
    ema_params = next(iter(state.emas.values()))

    def training_step() -> Part:
        train_step = compile_train_step(experiment, mesh)
        return lambda carry: train_step(carry[0], batch), (state, None)

    return {
        "forward_backward": lambda: forward_backward(experiment, state.params, batch),
        "optimizer_update": lambda: optimizer_update(experiment, state),
        "ema_update": lambda: ema_update(experiment, state),
        "sampler_step": lambda: sampler_step(experiment, ema_params, conditioning.of_batch(batch)),
        "training_step": training_step,
    }


def time_parts(
    experiment: Experiment, parts: Sequence[str], repetitions: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of `parts`."""
    makers = make_parts(experiment)
    chosen = (name for name in makers if name in parts)
    return {name: measure(makers[name](), repetitions, warmup) for name in chosen}


def matmul_sides() -> tuple[int, ...]:
    """Sides of the square matrix products among which the fastest is the ceiling."""
    return (512, 1024, 2048) if jax.default_backend() == "cpu" else (2048, 4096, 8192)


def use_attention(form: str) -> None:
    """Computes all attention from now on in that form of ATTENTIONS."""
    if form != "device":
        layers.attend = functools.partial(attention.plain, implementation=form)


def matmul_rates(
    sides: Sequence[int], dtype: str, repetitions: int, warmup: int
) -> dict[str, float]:
    """GFLOP/s of one square matrix product of each side, at its fastest."""
    product = jax.jit(jnp.matmul)
    rates = {}
    for side in sides:
        a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
        times = measure((lambda _, a=a, b=b: product(a, b), None), repetitions, warmup)
        rates[str(side)] = 2 * side**3 / min(times) / 1e9
    return rates


def figures(
    seconds: Sequence[float], images: int | None, flops: int | None, ceiling: float
) -> dict[str, Any]:
    """Figures of one part; `images` and `flops` are of a call, None where they do not apply.

    `ceiling` is in GFLOP/s.
    """
    median = statistics.median(seconds)
    gflops = None if flops is None else flops / median / 1e9
    return {
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "flops": flops,
        "gflops_per_second": gflops,
        "share_of_ceiling": None if gflops is None else gflops / ceiling,
        "images_per_second": None if images is None else images / median,
    }


def run(
    experiment: Experiment,
    matmul_sides: Sequence[int],
    parts: Sequence[str],
    repetitions: int,
    warmup: int,
) -> dict[str, Any]:
    """Times `parts`; returns the ceilings and the figures of each part."""
    dtype, batch = experiment.rin.dtype, experiment.train.batch_size
    matmul = {
        name: matmul_rates(matmul_sides, name, repetitions, warmup)
        for name in dict.fromkeys(("float32", dtype))
    }
    ceiling = max(matmul[dtype].values())
    times = time_parts(experiment, parts, repetitions, warmup)
    training = batch * cost.training_flops(experiment.rin, self_cond=True)
    forward = batch * cost.forward_flops(experiment.rin)
    work = {  # images and FLOPs of a call
        "forward_backward": (batch, training),
        "optimizer_update": (None, None),
        "ema_update": (None, None),
        "training_step": (batch, training),
        "sampler_step": (batch, forward),
    }
    return {
        "dtype": dtype,
        "batch": batch,
        "matmul_gflops_per_second": matmul,
        "ceiling_gflops_per_second": ceiling,
        "peak_memory_gib": peak_memory(),
        "parts": {
            name: figures(times[name], *work[name], ceiling) for name in work if name in parts
        },
    }


def peak_memory() -> float | None:
    """GiB that the first device held at most; None where it does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / chips.GIB if "peak_bytes_in_use" in stats else None


def environment() -> dict[str, Any]:
    """The device, the threads, what else runs, the versions and the date."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    load = getattr(os, "getloadavg", None)
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "cores": os.cpu_count(),
        "threads": len(affinity(0)) if affinity else None,
        "load": round(load()[0], 2) if load else None,  # of the last minute, before the run
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def table(report: dict[str, Any]) -> str:
    """The parts as a Markdown table."""

    def cell(value, form):
        return "" if value is None else format(value, form)

    lines = [
        "| part | ms, median [min, max] | GFLOP | GFLOP/s | of ceiling | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in report["parts"].items():
        gflop = None if part["flops"] is None else part["flops"] / 1e9
        cells = (
            name.replace("_", " "),
            "{median_ms:.2f} [{min_ms:.2f}, {max_ms:.2f}]".format(**part),
            cell(gflop, ".2f"),
            cell(part["gflops_per_second"], ".1f"),
            cell(part["share_of_ceiling"], ".0%"),
            cell(part["images_per_second"], ".1f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(report: dict[str, Any]) -> str:
    """The report for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    matmul = "; ".join(
        f"{dtype} " + ", ".join(f"{side}: {rate:.1f}" for side, rate in rates.items())
        for dtype, rates in report["matmul_gflops_per_second"].items()
    )
    peak = report["peak_memory_gib"]
    memory = "" if peak is None else f"; at most {peak:.1f} GiB of memory"
    return (
        f"{report['command']}\n"
        f"{report['device']}, {report['threads']} threads of {report['cores']} cores, "
        f"load before {report['load']}; {versions}; {report['date']}\n"
        f"batch {report['batch']}, {report['dtype']}; matrix product, GFLOP/s by side: {matmul}; "
        f"ceiling {report['ceiling_gflops_per_second']:.1f}{memory}\n\n"
        f"{table(report)}"
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="s64", help="the model; default s64")
    parser.add_argument("--batch", type=positive, help="images a step instead of the size's own")
    parser.add_argument("--dtype", choices=DTYPES, help="compute dtype instead of the size's own")
    parser.add_argument("--remat", help="none, full or dots instead of the size's own")
    parser.add_argument(
        "--attention", choices=ATTENTIONS, default="device",
        help="the form of the code, or one of jax.nn.dot_product_attention; default device",
    )  # fmt: skip
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what is timed; default all"
    )
    parser.add_argument("--repetitions", type=positive, default=20, help="timed runs; default 20")
    parser.add_argument(
        "--warmup", type=positive, default=3, help="runs before them, the first compiles; default 3"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--peers", nargs="*", choices=peers.PEERS, metavar="NAME",
        help=f"beside these networks, one after the other in turn: {', '.join(peers.PEERS)}",
    )  # fmt: skip
    peers.add_arguments(parser)
    args = parser.parse_args()
    if args.peers is not None:
        peers.main(args)
        return
    try:
        experiment = make_experiment(make_config(args.size, args.batch, args.dtype, args.remat))
    except ConfigError as error:
        parser.error(str(error))
    use_attention(args.attention)
    command = (
        f"python -m benchmarks.step --size={args.size} "
        f"--batch={experiment.train.batch_size} --dtype={experiment.rin.dtype} "
        f"--remat={experiment.rin.remat} --attention={args.attention} "
        f"--parts {' '.join(args.parts)} --repetitions={args.repetitions} --warmup={args.warmup}"
    )
    report = {
        "command": command,
        "size": args.size,
        "repetitions": args.repetitions,
        "warmup": args.warmup,
        **environment(),
        **run(experiment, matmul_sides(), args.parts, args.repetitions, args.warmup),
    }
    print(summary(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
