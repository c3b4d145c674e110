"""Which of how many processes this is, what it was started with, and how it joins the others."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import traverse_util
from jax._src import clusters, distributed  # JAX has no public way to ask without starting

from rin_jax import ConfigError
from rin_jax.runtime import exits

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
ALL_HOSTS = ("Start the same command on every host (see there why it ended), or wait longer with "
             "--join_timeout.")  # fmt: skip


class ProcessError(RuntimeError):
    """The processes do not come together."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Which of how many processes this is, and where process 0 is."""

    coordinator: str  # HOST:PORT of JAX's coordination service, in process 0
    count: int  # of processes
    index: int  # this one's
    local_devices: list[int] | None = None  # this process's; None: all of its machine

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_cluster(timeout: float) -> Cluster | None:
    """This process's cluster, from VARIABLES or one that JAX knows; None if it is alone.

    JAX knows Cloud TPU, GKE, Slurm, Open MPI and Kubernetes jobs. ConfigError: variables that are
    incomplete or contradict each other.
    """
    given = {name: os.environ.get(name) for name in VARIABLES}
    address, count, index = given.values()
    if count == "1":
        return None
    if count or index:
        if not (address and count and index) or not address.rpartition(":")[2].isdigit():
            values = ", ".join(f"{name} is {value!r}" for name, value in given.items())
            raise ConfigError(
                f"{values}; set all three, {VARIABLES[0]} as HOST:PORT of process 0, or "
                f"{VARIABLES[1]}=1 for a process that is alone."
            )
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ConfigError(
                f"{VARIABLES[2]} is {index!r} and {VARIABLES[1]} is {count!r}; processes count "
                "from 0, so the index must be below the number."
            )
        return Cluster(address, int(count), int(index))
    address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        address, None, None, None, None, int(timeout)
    )
    return None if count in (None, 1) else Cluster(address, count, index, devices)


def connect(cluster: Cluster, timeout: float, heartbeat: int) -> None:
    """Joins JAX's coordination service, which process 0 starts; waits until all processes have.

    If one does not come in `timeout` seconds, JAX names it in all others and aborts them; without a
    heartbeat for `heartbeat` seconds it counts as dead. ProcessError: process 0 cannot be reached,
    or cannot listen.
    """
    # JAX's preemption service would take SIGTERM
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    else:  # JAX 0.7
        distributed.State.initialize_preemption_sync_manager = lambda state: None
    host, port = cluster.address
    loopback = host in ("localhost", "127.0.0.1")
    if cluster.index:
        _knock(host, port, timeout)
    else:
        _check_port("127.0.0.1" if loopback else "", port)
    with _naming_who_is_missing(cluster, timeout):
        jax.distributed.initialize(
            *dataclasses.astuple(cluster),
            cluster_detection_method="deactivate",  # it is done
            initialization_timeout=int(timeout) + 10,  # the service is to be first
            heartbeat_timeout_seconds=heartbeat,
            coordinator_bind_address=cluster.coordinator if loopback else None,
        )


def _check_port(host: str, port: int) -> None:
    """Raises ProcessError at a taken port, which two of JAX's services would share in silence."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ProcessError(
            f"process 0 cannot listen on port {port}: {error}. Set another port in "
            f"{VARIABLES[0]}, or on a cluster in JAX_COORDINATOR_PORT, on every host."
        ) from error


def _knock(host: str, port: int, timeout: float) -> None:
    """Waits until process 0 listens: JAX itself would not say what is missing."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"process 0 did not answer at {host}:{port} within {timeout:g} s ({error}). "
                    f"{ALL_HOSTS}"
                ) from error
            time.sleep(0.2)


@contextlib.contextmanager
def _naming_who_is_missing(cluster: Cluster, timeout: float) -> Iterator[None]:
    """Lets the service end the wait, since it knows who is missing; JAX leaves it to the others."""
    module, name = distributed._jax, "get_distributed_runtime_service"
    original = getattr(module, name)
    late = f"not all {cluster.count} processes joined within {timeout:g} s"
    text = f"error: {late}; JAX names those that are missing. {ALL_HOSTS}\n"
    timer = threading.Timer(timeout, exits.write_error, [text])
    timer.daemon = True
    if cluster.index == 0:
        timer.start()
    setattr(module, name, functools.partial(original, cluster_register_timeout=int(timeout) + 1))
    try:
        yield
    finally:
        timer.cancel()
        setattr(module, name, original)


def start_pathways() -> bool:
    """Connects JAX to Pathways if it is to run there, where one process, alone, sees all devices.

    Returns whether it is. ConfigError: the package of Pathways is missing.
    """
    if "proxy" not in os.environ.get("JAX_PLATFORMS", "").split(","):
        return False
    try:
        import pathwaysutils
    except ImportError as error:
        raise ConfigError(
            f"JAX_PLATFORMS is {os.environ['JAX_PLATFORMS']!r}, but the package pathwaysutils is "
            "missing: pip install 'rin-jax[pathways]'"
        ) from error
    pathwaysutils.initialize()
    return True


def started_with(config, **flags: object) -> dict[str, str]:
    """What must be the same in all processes: the configuration's fields, flags, code, versions."""
    fields = traverse_util.flatten_dict(config.to_dict(), sep=".")
    package = Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return {
        **{name: repr(value) for name, value in fields.items()},
        **{f"--{name}": repr(value) for name, value in flags.items()},
        **{f"version of {name}": importlib.metadata.version(name) for name in PACKAGES},
        "code of rin_jax": f"sha256 {source.hexdigest()[:12]}",
    }
