"""Images per second of the feature networks of measures, beside the same networks in PyTorch.

    python -m benchmarks.features --network=inception --batch=8 --json=features.json

Both run in this process, with the same random weights, one repetition after the other in turn, so
that a change of the machine's load meets both. `--topology=v5e:2x2` also compiles the network for
one chip of a TPU, which need not be there, and prints its roofline. README.md in this folder says
how to read the figures.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

# so that `python benchmarks/features.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.timing import environment, positive
from rin_jax import ConfigError
from rin_jax.evaluation import dinov2, efficientnet, inception, weight_files
from rin_jax.runtime import chips, sharding, tpu_compiler


@dataclasses.dataclass(frozen=True)
class Network:
    """One feature network, here and in PyTorch."""

    shape: tuple[int, ...]  # of one image or clip
    flops: float  # of its products, with padding, an image or clip
    arrays: Callable[[], dict[str, np.ndarray]]  # random weights, as a file of PyTorch has them
    params_of: Callable[[dict[str, np.ndarray]], Any]
    extract: Callable[[Any, jax.Array], dict[str, jax.Array]]
    peer: Callable[[dict[str, np.ndarray]], Callable[[np.ndarray], Any]]  # images -> features


def inception_arrays() -> dict[str, np.ndarray]:
    """Random weights; the norms change nothing but the scale."""
    rng = np.random.default_rng(0)
    arrays = {"fc.weight": rng.normal(size=(1008, 2048)), "fc.bias": np.zeros(1008)}
    for name, _, (height, width, fan_in, fan_out) in inception.places():
        kernel = rng.normal(size=(fan_out, fan_in, height, width))
        arrays[f"{name}.conv.weight"] = kernel * np.sqrt(2 / (height * width * fan_in))
        for part, value in zip(inception.TORCH_NORM, (1, 0, 0, 1), strict=True):
            arrays[f"{name}.bn.{part}"] = np.full(fan_out, value)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def inception_peer(arrays: dict[str, np.ndarray]) -> Callable[[np.ndarray], Any]:
    """torch-fidelity's Inception, resize included."""
    import torch

    from tests.evaluation.peers import import_torchvision

    import_torchvision()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    state = {name: torch.from_numpy(value) for name, value in arrays.items()}
    theirs.load_state_dict_from_url = lambda *_, **__: state  # it downloads where no file is named
    network = theirs.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])

    def features(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2))

    return features


def efficientnet_arrays() -> dict[str, np.ndarray]:
    """The trained weights of the package."""
    return weight_files.read_arrays(efficientnet.installed())


def timm_peer(name: str, arrays: dict[str, np.ndarray], **options: Any) -> Callable:
    """A network of timm's with these arrays, after the resize to 224 pixels."""
    import torch

    from tests.evaluation.peers import import_torchvision

    import_torchvision()
    import timm

    network = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    known = dict(zip(network.state_dict(), arrays.values(), strict=False))  # in network order
    network.load_state_dict({name: torch.from_numpy(array) for name, array in known.items()})

    def features(images: np.ndarray) -> Any:
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2)
            x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
            return network((x - 127) / 128)

    return features


def dinov2_arrays() -> dict[str, np.ndarray]:
    """Random weights under timm's names."""
    from tests.evaluation.peers import import_torchvision

    import_torchvision()
    import timm

    network = timm.create_model(
        "vit_large_patch14_dinov2", pretrained=False, img_size=224, num_classes=0
    )
    return {name: array.numpy() for name, array in network.state_dict().items()}


NETWORKS = {
    "efficientnet": Network(
        shape=(256, 256, 3),
        flops=0.81e9,
        arrays=efficientnet_arrays,
        params_of=efficientnet.params_of,
        extract=efficientnet.extract,
        peer=functools.partial(timm_peer, "tf_efficientnet_lite0"),
    ),
    "dinov2": Network(
        shape=(256, 256, 3),
        flops=162e9,
        arrays=dinov2_arrays,
        params_of=dinov2.params_of,
        extract=dinov2.extract,
        peer=functools.partial(timm_peer, "vit_large_patch14_dinov2", img_size=224),
    ),
    "inception": Network(
        shape=(256, 256, 3),
        flops=11.42e9,
        arrays=inception_arrays,
        params_of=inception.params_of,
        extract=functools.partial(inception.extract, protocol="adm"),
        peer=inception_peer,
    ),
}


def time_in_turn(
    calls: dict[str, Callable[[], Any]], repetitions: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of each call, one repetition of all after the other; the warm-up is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: times[warmup:] for name, times in seconds.items()}


def run(network: Network, batch: int, repetitions: int, warmup: int) -> dict[str, Any]:
    """Figures of the network here and in PyTorch, and the ratio of each repetition's two times."""
    arrays = network.arrays()
    params = network.params_of(arrays)
    images = np.random.default_rng(1).integers(0, 256, (batch, *network.shape)).astype(np.float32)
    start = time.perf_counter()
    program = jax.jit(network.extract).lower(params, images).compile()
    compile_seconds = time.perf_counter() - start
    peer = network.peer(arrays)
    calls = {"rin_jax": lambda: program(params, images), "PyTorch": lambda: peer(images)}
    times = time_in_turn(calls, repetitions, warmup)
    ratios = [b / a for a, b in zip(times["rin_jax"], times["PyTorch"], strict=True)]
    return {
        "batch": batch,
        "compile_seconds": compile_seconds,
        "speed_of_pytorch": statistics.median(ratios),
        "rows": {name: figures(seconds, network, batch) for name, seconds in times.items()},
    }


def figures(seconds: list[float], network: Network, batch: int) -> dict[str, float]:
    """Figures of the seconds of a batch."""
    median = statistics.median(seconds)
    return {
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "images_per_second": batch / median,
        "gflops_per_second": batch * network.flops / median / 1e9,
    }


def plan(network: Network, batch: int, topology: str) -> str:
    """The network on one chip of a TPU slice: memory, FLOPs and roofline.

    Raises:
      ConfigError: as `runtime.tpu_compiler.topology_devices`.
    """
    chip, devices = chips.by_topology(topology), tpu_compiler.topology_devices(topology, 1)
    # programs for devices that are not there can be written to the cache, but not read
    jax.config.update("jax_enable_compilation_cache", False)
    place = sharding.replicated(Mesh(devices[:1], ("data",)))

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place)

    params = jax.tree.map(abstract, network.params_of(network.arrays()))
    images = abstract(jax.ShapeDtypeStruct((batch, *network.shape), jnp.float32))
    lowered = jax.jit(network.extract).lower(params, images)
    result = tpu_compiler.compiled(lowered.compile, 1, 1, chip)
    head = f"one chip of {topology}, batch {batch}: {result.verdict()}"
    if not result.fits:
        return head
    flops = batch * network.flops
    # a float32 product of full precision is six of bfloat16
    seconds = tpu_compiler.roofline(6 * flops, result, chip)
    times = tpu_compiler.describe_times("features", seconds, batch, flops, chip.peak_flops)
    return f"{head}\n{times}\n{tpu_compiler.describe_assumptions(chip)}"


def table(report: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| program | ms, median [min, max] | images/s | GFLOP/s |",
        "|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        lines.append(
            f"| {name} | {row['median_ms']:.1f} [{row['min_ms']:.1f}, {row['max_ms']:.1f}] | "
            f"{row['images_per_second']:.1f} | {row['gflops_per_second']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="inception", help="which one")
    parser.add_argument("--batch", type=positive, default=8, help="images at once; default 8")
    parser.add_argument("--repetitions", type=positive, default=10, help="timed runs; default 10")
    parser.add_argument("--warmup", type=positive, default=2, help="runs before them; default 2")
    parser.add_argument("--topology", help="a TPU slice, such as v5e:2x2, to compile for as well")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    network, report = NETWORKS[args.network], environment()
    for package in ("torch", "torch-fidelity"):
        report["versions"][package] = metadata.version(package)
    report |= run(network, args.batch, args.repetitions, args.warmup)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(
        f"{args.network}, batch {args.batch}; {report['device']}, {report['threads']} threads of "
        f"{report['cores']} cores, load before {report['load']}; {versions}; {report['date']}\n\n"
        f"{table(report)}\n\n"
        f"{report['speed_of_pytorch']:.2f} times the speed of PyTorch (median of the repetitions' "
        f"ratios); compiled in {report['compile_seconds']:.1f} s"
    )
    if args.topology:
        try:
            print(plan(network, args.batch, args.topology))
        except ConfigError as error:
            parser.error(str(error))
    if args.json:
        args.json.write_text(json.dumps(report | {"network": args.network}, indent=2) + "\n")


if __name__ == "__main__":
    main()
