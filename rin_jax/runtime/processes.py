"""The processes of one run: how a process finds its place among them, and how they end.

Each process is started by the same command. Its surroundings tell whether it is alone or one of
several (`find_place`); several meet (`meeting`) before JAX starts, and from then on the end of one,
by an error, a signal or a machine that is gone, ends all with its index and its reason.

Exit codes, the same in all processes: 1 for an unexpected error, 2 for a mistake in the
configuration or the command, 3 for a number that is not finite, 4 for a process that died or never
came, 75 for a run that was told to end (`preemption`), 130 for an interrupt. After all but 2 and 3
the same command resumes.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from rin_jax.runtime.meeting import Group
from rin_jax.runtime.process_hub import GRACE, PREEMPTED, Facts, Place, ProcessError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

_groups: list[Group] = []  # the one that this process is in, if it is not alone


@contextlib.contextmanager
def together(
    facts: Facts,
    timeout: float,
    codes: Mapping[type[BaseException], int],
    preempted: Callable[[str], None],
) -> Iterator[None]:
    """Runs its body as one of the processes of a run; does nothing if this one is alone.

    Args:
      facts: what must be the same in all processes, by name.
      timeout: seconds to wait at the start until all processes are there.
      codes: exit codes of the exceptions that are a user's to mend; others are 1.
      preempted: called with the reason, in a thread of its own, when one of several processes is
        told to end.

    Raises:
      ProcessError: before JAX starts, if a process does not come in time or was started with other
        facts. Afterwards nothing is raised: an error in any process ends them all.
    """
    place = find_place(timeout)
    if place is None:
        if pathways():
            start_pathways()
        yield
        return
    group = Group(place, facts, timeout, preempted)
    _groups.append(group)
    if hasattr(jax.config, "jax_enable_preemption_service"):  # not in 0.7
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            place.local_devices,
            cluster_detection_method="deactivate",  # it is done
        )
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code == PREEMPTED):
            end(group, error, codes)
        group.finish()  # all processes leave, by one decision
        raise
    group.finish()


def agree(question: str, **facts: object) -> None:
    """Waits until all processes are here; if their facts differ, all end and name them."""
    for group in _groups:
        group.agree(question, **facts)


def gather(question: str, value: str) -> list[str]:
    """The values of all processes by their index, waiting for all; [value] of one alone."""
    return _groups[0].gather(question, value) if _groups else [value]


def tell_preempted(reason: str) -> bool:
    """Tells all processes that the run is to end; False if this one is alone."""
    for group in _groups:
        group.tell_preempted(reason)
    return bool(_groups)


def finish() -> None:
    """Waits until all processes have done their work."""
    for group in _groups:
        group.finish()


def end(group: Group, error: BaseException, codes: Mapping[type[BaseException], int]) -> None:
    """Ends all processes because of an exception in this one."""
    codes = {**codes, KeyboardInterrupt: 128 + signal.SIGINT}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    text = str(error) or type(error).__name__
    if code == 1:
        time.sleep(GRACE)  # it may follow the death of another process, whose news end this one
        text, report = f"{type(error).__name__}: {text}", traceback.format_exception(error)
    else:
        report = [f"error: {text}\n"]
    group.fail(code, text, "".join(report))


def find_place(timeout: float) -> Place | None:
    """This process's place from VARIABLES or a cluster that JAX knows; None if it is alone.

    Clusters are Cloud TPU, GKE, Slurm, Open MPI and Kubernetes jobs. Under Pathways one process
    sees all devices and is alone.

    Raises:
      ProcessError: the variables are incomplete or contradict each other.
    """
    if pathways():
        return None
    given = {name: os.environ.get(name) for name in VARIABLES}
    address, count, index = given.values()
    if count == "1":
        return None
    if count or index:
        if not (address and count and index) or not address.rpartition(":")[2].isdigit():
            values = ", ".join(f"{name} is {value!r}" for name, value in given.items())
            raise ProcessError(
                f"{values}; set all three, {VARIABLES[0]} as HOST:PORT of process 0, or "
                f"{VARIABLES[1]}=1 for a process that is alone.",
                code=2,
            )
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ProcessError(
                f"{VARIABLES[2]} is {index!r} and {VARIABLES[1]} is {count!r}; processes count "
                "from 0, so the index must be below the number.",
                code=2,
            )
        return Place(address, int(count), int(index))
    from jax._src import clusters  # JAX has no public way to ask without starting

    address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        address, None, None, None, None, int(timeout)
    )
    return None if count in (None, 1) else Place(address, count, index, devices)


def pathways() -> bool:
    """Whether JAX is to run through Pathways' proxy."""
    return "proxy" in os.environ.get("JAX_PLATFORMS", "").split(",")


def start_pathways() -> None:
    """Connects JAX to Pathways.

    Raises:
      ProcessError: its package is missing.
    """
    try:
        import pathwaysutils
    except ImportError as error:
        raise ProcessError(
            f"JAX_PLATFORMS is {os.environ['JAX_PLATFORMS']!r}, but the package pathwaysutils is "
            "missing: pip install pathwaysutils",
            code=2,
        ) from error
    pathwaysutils.initialize()


def started_with(config, **flags: object) -> dict[str, str]:
    """The facts of a process: every field of its configuration, its flags, its code."""

    def fields(tree, path: str) -> dict[str, str]:
        if not isinstance(tree, Mapping):
            return {path: repr(tree)}
        pairs = (fields(value, f"{path}.{key}" if path else key) for key, value in tree.items())
        return {name: value for part in pairs for name, value in part.items()}

    package = Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return {
        **fields(config.to_dict(), ""),
        **{f"--{name}": repr(value) for name, value in flags.items()},
        **{f"version of {name}": importlib.metadata.version(name) for name in PACKAGES},
        "code of rin_jax": f"sha256 {source.hexdigest()[:12]}",
    }
