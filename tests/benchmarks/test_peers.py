"""Programs that are measured beside each other take turns; no absolute time is checked."""

import argparse
import sys

import jax
import pytest
import torch

from benchmarks import peer_torch, peers, sizes
from rin_jax.experiment import make_experiment
from rin_jax.network.partitioning import param_shapes

SLEEPER = """
import time
from benchmarks import turns

def make(part):
    print("a library says something")
    if part == "bad":
        raise ValueError("it cannot be compiled\\nfor a reason")
    return lambda: time.sleep(float(part))

turns.serve(turns.start(1), {"parameters": 3}, make)
"""


def test_a_process_answers_with_the_seconds_of_a_call_or_with_its_error():
    process = peers.Process([sys.executable, "-c", SLEEPER], str(sizes.ROOT), {})
    assert process.read() == {"parameters": 3}
    slow = process.turn("0.1")
    fastest = min(process.turn("0.01")["seconds"] for _ in range(5))  # the machine may be busy
    assert 0.01 <= fastest < 0.1 <= slow["seconds"]
    assert slow["cpu_seconds"] < slow["seconds"]  # it slept
    assert process.turn("bad") == {"error": "ValueError: it cannot be compiled"}
    assert process.turn("0.01")["seconds"] >= 0.01
    process.end()


class Program:
    """A process that answers with given seconds."""

    def __init__(self, name, log, seconds):
        self.name, self.log, self.seconds = name, log, iter(seconds)

    def turn(self, part):
        self.log.append(self.name)
        seconds = next(self.seconds)
        if seconds is None:
            return {"error": "out of memory"}
        return {"seconds": seconds, "cpu_seconds": 2 * seconds}


def test_turns_go_forwards_and_backwards_and_a_ratio_is_of_one_round():
    log = []
    programs = {
        "ours": Program("A", log, [1.0, 4.0, 9.0]),
        "twin": Program("B", log, [2.0, 8.0, 3.0]),
        "rin-pytorch": Program("C", log, [1.0, None]),
    }
    answers = peers.measure(programs, "sampler_step", rounds=3)
    assert "".join(log) == "ABC" + "CBA" + "AB"
    # rounds of 0.5, 0.5 and 3: the medians of the programs would give 4 / 3
    assert peers.compare(answers, "twin", "seconds") == "0.50 (0.50 to 3.00)"
    abouts = {name: {"ceiling_gflops_per_second": 1.0} for name in programs}
    abouts["ours"]["flops"] = {"sampler_step": 2e9}
    rows = list(peers.rows("sampler_step", answers, abouts))
    assert rows[0] == "| sampler step | ours | 4000.0 | 50% |  |  |"
    assert rows[2].startswith("| sampler step | rin-pytorch | out of memory |")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    args = argparse.Namespace(size="digits", batch=3, dtype=None, remat=None)
    return peers.describe(args, tmp_path_factory.mktemp("twin"))


def test_the_twin_has_our_parameters_and_trains_all_of_them(options):
    twin = peer_torch.Twin(options, "cpu")
    parameters = list(twin.network.parameters())
    ours = param_shapes(make_experiment(sizes.make_config("digits", 3, None)).rin)
    count = sum(leaf.size for leaf in jax.tree.leaves(ours))
    assert sum(parameter.numel() for parameter in parameters) == count
    for parameter in parameters:  # the latents of the first pass pass a norm of scale zero
        torch.nn.init.normal_(parameter, std=0.1)
    twin.loss().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters)


def test_the_twin_carries_what_a_sampler_step_returns(options):
    twin = peer_torch.Twin(options, "cpu")
    carried = []
    twin.network.register_forward_hook(
        lambda _, given, found: carried.append((given[3]["latents"], found[1]["latents"]))
    )
    step = twin.sampler()
    step(), step()
    assert torch.equal(carried[1][0], carried[0][1])
    assert not torch.equal(carried[0][0], carried[0][1])
