"""The trace of a few steps: those steps and no others, in a folder and in a bucket."""

import jax
import jax.numpy as jnp
import pytest

from rin_jax import ConfigError
from rin_jax.runtime.machine import Runtime
from rin_jax.runtime.profiler import Profiler

PATH = "events/plugins/profile/00000003/0.xplane.pb"


def steps_of(trace: bytes) -> list[int]:
    """The numbers of the steps in a trace."""
    planes = jax.profiler.ProfileData.from_serialized_xspace(trace).planes
    events = (event for plane in planes for line in plane.lines for event in line.events)
    return sorted(dict(event.stats)["step_num"] for event in events if event.name == "train")


def take(profiler: Profiler, last: int) -> None:
    for step in range(1, last + 1):
        assert profiler.step(step, lambda x: x + 1, jnp.float32(step)) == step + 1
    profiler.close()


def test_the_steps_that_are_named(tmp_path):
    take(Profiler(Runtime("", 3, 2), str(tmp_path)), last=6)
    assert steps_of((tmp_path / PATH).read_bytes()) == [3, 4]


def test_a_run_that_ends_before_the_last(tmp_path):
    take(Profiler(Runtime("", 3, 5), str(tmp_path)), last=4)
    assert steps_of((tmp_path / PATH).read_bytes()) == [3, 4]


def test_in_a_bucket(storage):
    take(Profiler(Runtime("", 3, 2), "gs://bucket/run"), last=4)
    assert steps_of(storage.get("bucket", f"run/{PATH}").data) == [3, 4]


def test_none_is_named(tmp_path):
    take(Profiler(Runtime("", None, 2), str(tmp_path)), last=4)
    assert not list(tmp_path.iterdir())


def test_a_step_before_the_first():
    with pytest.raises(ConfigError, match=r"runtime\.profile_first_step is 0; it must be at least"):
        Runtime("", 0, 2)
