"""The processes of one run: how they agree, and how the end of one ends all.

Several processes (`cluster`) are joined by JAX's coordination service, which runs in process 0.
Before a device is touched, they compare over its key-value store what they were started with; from
then on the end of one, by an error, a signal or a machine that is gone, ends all with its index and
its reason. JAX itself notices by heartbeats that a process is dead. Exit codes: `exits`.
"""

import collections
import contextlib
import hashlib
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import jax
from jax._src import distributed  # there is no public way to the key-value store

from rin_jax.runtime import cluster as clusters
from rin_jax.runtime import exits
from rin_jax.runtime.cluster import Cluster

HEARTBEAT = 30  # seconds without a heartbeat after which JAX counts a process as dead
PERIOD = 0.2  # seconds between two looks at what the other processes tell
GRACE = 30.0  # seconds until a process that failed ends, though it cannot tell the others
DAY_MS = 86_400_000  # to wait for other processes at a barrier: JAX notices those that die

Facts = Mapping[str, str]  # what every process of a run must have in common

_groups: list["Group"] = []  # the one that this process is in, if it is not alone


class Group:
    """This process as one of several that are joined by JAX's coordination service.

    Below "rin_jax/", the first process that fails writes `news/failed`, the first that is told to
    end `news/preempted`; process I answers a failure with `heard/I` and a question with
    `QUESTION/NUMBER/I`.
    """

    def __init__(self, cluster: Cluster, preempted: Callable[[str], None]):
        self._cluster, self._preempted = cluster, preempted
        self._client = distributed.global_state.client
        self._asked: collections.Counter = collections.Counter()
        self._report = ""  # of the failure of this process
        self._ending, self._over = False, threading.Event()
        self._last_words = threading.Lock()  # taken by the thread that ends this process, for good
        self._period = max(PERIOD, cluster.count / 1000)  # process 0 answers 1000 looks a second
        self._hosts = self.gather("hosts", socket.gethostname())
        self._watching = threading.Thread(target=self._watch, name="rin-processes", daemon=True)
        self._watching.start()

    def _set(self, key: str, value: str) -> bool:
        """Writes a key; False if another process was first, or process 0 is gone."""
        try:
            self._client.key_value_set(f"rin_jax/{key}", value)
        except RuntimeError:
            return False
        return True

    def _get(self, folder: str) -> dict[str, str]:
        """The keys in a folder and their values; RuntimeError if process 0 is gone."""
        found = self._client.key_value_dir_get(f"rin_jax/{folder}")
        return {key.rpartition("/")[2]: value for key, value in found}

    def wait(self, question: str) -> str:
        """Waits until all processes are here; the folder of their answers to this question."""
        self._asked[question] += 1
        folder = f"{question}/{self._asked[question]}"
        self._client.wait_at_barrier(f"rin_jax/{folder}", DAY_MS)
        return folder

    def gather(self, question: str, value: str) -> list[str]:
        """The values that the processes give to a question, by their index; waits for all."""
        self._set(f"{question}/{self._asked[question] + 1}/{self._cluster.index}", value)
        values = self._get(self.wait(question))
        return [values[index] for index in sorted(values, key=int)]

    def agree(self, question: str, facts: Facts) -> None:
        """Waits until all processes ask the same; ends them all if their facts differ."""
        if not facts:
            self.wait(question)
            return
        text = json.dumps(dict(facts), sort_keys=True)
        if len(set(self.gather(question, hashlib.sha256(text.encode()).hexdigest()))) > 1:
            everyone = [json.loads(other) for other in self.gather(question, text)]
            differ = "\n  ".join(compare(everyone, self._hosts))
            text = f"the processes differ ({question}):\n  {differ}\n"
            text += "Start the same command with the same code and the same files on every host."
            self.fail(2, text, f"error: {text}\n")

    def tell_preempted(self, reason: str) -> None:
        """Tells all processes, this one too, that the run is to end."""
        self._ending = True
        self._set("news/preempted", f"{self._name([self._cluster.index])}: {reason}")

    def fail(self, code: int, text: str, report: str) -> NoReturn:
        """Ends this process and all others; prints `report` here and `text` there."""
        self._report = report
        self._set("news/failed", json.dumps([self._cluster.index, code, text]))
        time.sleep(GRACE)  # the thread that watches ends this process
        self._exit(code, report)

    def finish(self) -> None:
        """Waits until all processes have done their work, and leaves them."""
        self.wait("finished")
        self._over.set()
        self._watching.join()
        jax.distributed.shutdown()

    def _watch(self) -> None:
        told = False
        while not self._over.wait(self._period):
            try:
                news = self._get("news")
            except RuntimeError:  # process 0 is gone: JAX ends this process
                continue
            if "failed" in news:
                self._follow(*json.loads(news["failed"]))
            if "preempted" in news and not told:
                told = self._ending = True
                reason = news["preempted"]
                threading.Thread(target=self._preempted, args=(reason,), daemon=True).start()

    def _follow(self, index: int, code: int, text: str) -> NoReturn:
        """Ends this process because process `index` failed, when all have heard of it."""
        silent = self._roll_call()
        if self._cluster.index == 0:  # the others end first: they lose the service with this one
            time.sleep(5 * self._period)
        # an unexpected error may only follow from the death of another process
        dead = f"{self._name(silent)} gave no sign of life; " if silent and code == 1 else ""
        remedy = "" if code in (2, 3) else f" {exits.RESUMABLE}"
        if index == self._cluster.index or text in self._report:
            report = self._report + (f"error: {dead}see above.{remedy}\n" if dead else "")
        else:
            report = f"error: {dead}{self._name([index])}: {text}\n"
            report += f"Process {self._cluster.index} ends with it.{remedy}\n"
        self._exit(code, report)

    def _roll_call(self) -> list[int]:
        """The processes that do not say within 10 periods that they have heard of a failure."""
        missing = set(range(len(self._hosts)))
        if not self._set(f"heard/{self._cluster.index}", ""):
            return []
        for _ in range(10):
            with contextlib.suppress(RuntimeError):
                missing -= {int(index) for index in self._get("heard")}
            if not missing:
                break
            time.sleep(self._period)
        return sorted(missing)

    def _name(self, indices: list[int]) -> str:
        return f"{name_processes(indices)} ({self._hosts[indices[0]]})"

    def _exit(self, code: int, text: str) -> NoReturn:
        """Ends this process; only the first thread to come here is heard, another waits."""
        self._last_words.acquire()
        if self._ending and code == 1:
            code = exits.PREEMPTED  # what comes now comes of others having left
        exits.exit_now(code, text)


@contextlib.contextmanager
def together(
    facts: Facts, timeout: float, codes: exits.Codes, preempted: Callable[[str], None]
) -> Iterator[None]:
    """Runs its body as one of the processes of a run; does nothing if this one is alone.

    All processes must have the same `facts` and be there in `timeout` seconds. `codes` are the exit
    codes of exceptions; others are 1. `preempted` is called with the reason, in its own thread,
    when one of several is told to end. ConfigError and ProcessError as `find_cluster` and
    `connect`; afterwards nothing is raised: an error in any process ends them all.
    """
    cluster = None if clusters.start_pathways() else clusters.find_cluster(timeout)
    if cluster is None:
        yield
        return
    clusters.connect(cluster, timeout, HEARTBEAT)
    group = Group(cluster, preempted)
    group.agree("start", {"number of processes": str(cluster.count), **facts})
    _groups.append(group)
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code == exits.PREEMPTED):
            code = exits.exit_code(error, codes)
            text, report = str(error) or type(error).__name__, f"error: {error}\n"
            if code == 1:
                text = f"{type(error).__name__}: {text}"
                report = "".join(traceback.format_exception(error))
            group.fail(code, text, report)
        group.finish()  # all processes leave, by one decision
        raise
    group.finish()


def agree(question: str, **facts: object) -> None:
    """Waits until all processes are here; if their facts differ, all end and name them."""
    for group in _groups:
        group.agree(question, {name.replace("_", " "): repr(x) for name, x in facts.items()})


def gather(question: str, value: str) -> list[str]:
    """The values of all processes by their index, waiting for all; [value] of one alone."""
    return _groups[0].gather(question, value) if _groups else [value]


def tell_preempted(reason: str) -> bool:
    """Tells all processes that the run is to end; False if this one is alone."""
    for group in _groups:
        group.tell_preempted(reason)
    return bool(_groups)


def finish() -> None:
    """Waits until all processes have done their work, and leaves them."""
    for group in _groups:
        group.finish()


def name_processes(indices: Sequence[int]) -> str:
    """[1, 2] as "processes 1, 2"; a list of more than 8 is cut."""
    names = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return f"process{'es' if len(indices) > 1 else ''} {names}"


def compare(everyone: Sequence[Facts], hosts: Sequence[str]) -> list[str]:
    """A line for each fact, up to 20, in which processes differ: each value and who has it."""
    lines = []
    for fact in sorted({name for facts in everyone for name in facts}):
        values: dict[str, list[int]] = {}
        for index, facts in enumerate(everyone):
            values.setdefault(facts.get(fact, "nothing"), []).append(index)
        if len(values) > 1:
            having = [f"{value} in {name_processes(indices)} ({hosts[indices[0]]})"
                      for value, indices in values.items()]  # fmt: skip
            lines.append(f"{fact}: {', '.join(having)}")
    return lines[:20] + (["..."] if len(lines) > 20 else [])
