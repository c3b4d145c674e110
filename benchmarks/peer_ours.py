"""Our step as one of the processes that `benchmarks.peers` starts."""

import json
import sys

import jax

from benchmarks import parts, timing, turns
from benchmarks.sizes import make_config
from rin_jax.experiment import make_experiment
from rin_jax.network import cost
from rin_jax.network.partitioning import param_shapes


def main() -> None:
    """The process; its argument is the options as JSON."""
    options = json.loads(sys.argv[1])
    answers = turns.start(options["threads"])
    parts.use_attention(options["attention"])
    names = ("size", "batch", "dtype", "remat")
    experiment = make_experiment(make_config(*(options[name] for name in names)))
    dtype, batch = experiment.rin.dtype, experiment.train.batch_size
    rates = timing.matmul_rates(timing.matmul_sides(), dtype, repetitions=5, warmup=2)
    forward = batch * cost.forward_flops(experiment.rin)
    training = batch * cost.training_flops(experiment.rin, self_cond=True)
    makers = parts.make_parts(experiment)
    about = timing.environment() | {
        "batch": batch,
        "dtype": dtype,
        "remat": experiment.rin.remat,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(param_shapes(experiment.rin))),
        "ceiling_gflops_per_second": max(rates.values()),
        "flops": {"forward_backward": training, "training_step": training,
                  "sampler_step": forward},
    }  # fmt: skip

    def make(name: str):
        call, carry = makers[name]()

        def advance():
            nonlocal carry
            carry = jax.block_until_ready(call(carry))

        return advance

    turns.serve(answers, about, make)


if __name__ == "__main__":
    main()
