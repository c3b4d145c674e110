"""The hub: process 0's end of the connections that join the processes of a run (meeting.py).

It counts the processes and compares their facts, passes on what they ask of each other, and tells
all of them the end of any one. A process that is killed is noticed when its connection closes, at
once; a machine that is gone by its silence.
"""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Mapping

LOST = 4  # exit code: another process died or never came
PREEMPTED = 75  # exit code: told to end (EX_TEMPFAIL of sysexits.h: try again)
RESUMABLE = "Run the same command again to resume."
SILENCE = 45.0  # seconds without a sign of life after which a process counts as dead
PULSE = 2.0  # seconds between two signs of life
GRACE = 5.0  # seconds for news to reach all processes
FINISHED = "finished"  # the question after which the run is over

Facts = Mapping[str, str]  # what every process of a run must have in common


class ProcessError(RuntimeError):
    """The processes do not come together, or not all of them live; `code` is the exit code."""

    def __init__(self, message: str, code: int = LOST):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where process 0 is.

    Attributes:
      coordinator: HOST:PORT of JAX's own service; the processes meet one port below.
      count, index: number of processes and this one's.
      local_devices: the devices that are this process's, or None for all of its machine.
    """

    coordinator: str
    count: int
    index: int
    local_devices: list[int] | None = None

    @property
    def meeting(self) -> tuple[str, int]:
        """Address where the processes meet."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port) - 1


class Line:
    """A connection that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket):
        self._connection, self._lock = connection, threading.Lock()
        self._file = connection.makefile("r", encoding="utf-8")

    def send(self, **message) -> None:
        """Sends; a connection that is gone is noticed by whoever reads from it."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall((json.dumps(message) + "\n").encode())

    def read(self, timeout: float) -> dict:
        """The next message.

        Raises:
          OSError: nothing came within `timeout` seconds, or the connection is closed.
          ValueError: what came is none of ours.
        """
        self._connection.settimeout(timeout)
        line = self._file.readline()
        if not line.endswith("\n"):
            raise ConnectionError("its connection was closed")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        return message

    def closed(self) -> bool:
        """Whether the other end is gone; for a connection on which nothing is expected."""
        self._connection.settimeout(0)
        try:
            return self._connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: on the loopback if that is the host, else on all interfaces.

    Raises:
      ProcessError: the port is taken.
    """
    try:
        if host in ("localhost", "127.0.0.1"):
            return socket.create_server(("127.0.0.1", port), backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ProcessError(
            f"process 0 cannot listen on port {port}: {error}. Set another port in "
            "JAX_COORDINATOR_ADDRESS, or on a cluster in JAX_COORDINATOR_PORT, on every host."
        ) from error


class Hub(threading.Thread):
    """Process 0's meeting point: counts the processes, compares them, tells each other's end."""

    def __init__(self, place: Place, timeout: float):
        super().__init__(name="rin-hub", daemon=True)
        self._place, self._timeout = place, timeout
        self._lines: dict[int, Line] = {}
        self._hosts: dict[int, str] = {}
        self._heard: dict[int, float] = {}  # when each last gave a sign of life
        self._facts: dict[str, dict[int, Facts]] = {"start": {}}  # of each question put to all
        self._lock = threading.Lock()
        self._over, self._told = False, threading.Event()
        self._socket = listen(*place.meeting)

    def run(self) -> None:
        """Lets all processes in, then watches over them until the run ends."""
        refusal = self._gather() or self._compare("start")
        if refusal:
            self._end(refusal)
            self._socket.settimeout(1.0)
            with contextlib.suppress(TimeoutError):  # those who come now hear it too
                while True:
                    Line(self._socket.accept()[0]).send(failed=str(refusal), code=refusal.code)
            return
        self._heard = dict.fromkeys(self._lines, time.monotonic())
        for index, line in self._lines.items():
            line.send(go=True)
            threading.Thread(target=self._serve, args=(index, line), daemon=True).start()
        while not self._told.wait(PULSE):
            self._tell(alive=True)

    def _gather(self) -> ProcessError | None:
        deadline, count = time.monotonic() + self._timeout, self._place.count
        while len(self._lines) < count:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                line = Line(self._socket.accept()[0])
            except TimeoutError:
                missing = [index for index in range(count) if index not in self._lines]
                return ProcessError(
                    f"{name_processes(missing)} of {count} did not join within "
                    f"{self._timeout:g} s. Start the same command on every host (see there why it "
                    "ended), or wait longer with --join_timeout."
                )
            try:
                hello = line.read(5.0)
                index, host, facts = hello["index"], hello["host"], hello["facts"]
                others = hello["count"]
            except (OSError, ValueError, KeyError):
                continue  # a port scanner, or a process that died at once
            contradiction = None
            if others != count:
                contradiction = (
                    f"process {index} ({host}) is one of {others} processes, process 0 one of "
                    f"{count}; give the same number to all."
                )
            elif index in self._lines and not self._lines[index].closed():
                contradiction = (
                    f"two processes have the index {index}, on {self._hosts[index]} and {host}; "
                    "give each its own."
                )
            if contradiction:
                line.send(failed=contradiction, code=2)
                return ProcessError(contradiction, code=2)
            self._lines[index], self._hosts[index] = line, host
            self._facts["start"][index] = facts
        return None

    def _compare(self, question: str) -> ProcessError | None:
        differences = compare(self._facts.pop(question), self._hosts)
        if not differences:
            return None
        return ProcessError(
            f"the processes differ ({question}):\n  "
            + "\n  ".join(differences)
            + "\nStart the same command with the same code and the same files on every host.",
            code=2,
        )

    def _serve(self, index: int, line: Line) -> None:
        """Listens to one process until the run is over."""
        try:
            while True:
                message = line.read(SILENCE)
                self._heard[index] = time.monotonic()
                if "failed" in message:
                    text = f"process {index} ({self._hosts[index]}): {message['failed']}"
                    self._end(ProcessError(f"{self._silent()}{text}", message["code"]))
                elif "preempted" in message:
                    text = f"process {index} ({self._hosts[index]}): {message['preempted']}"
                    self._tell(preempted=text)
                elif "question" in message:
                    self._answer(index, **message)
        except TimeoutError:
            reason = f"gave no sign of life for {SILENCE:g} s"
        except (OSError, ValueError) as error:
            reason = f"died ({error})"
        self._end(ProcessError(f"process {index} ({self._hosts[index]}) {reason}"))

    def _silent(self) -> str:
        """Names the processes that may be dead: another's error may only follow from it."""
        now = time.monotonic()
        silent = sorted(i for i, heard in self._heard.items() if now - heard > 2 * PULSE)
        if not silent:
            return ""
        return f"{name_processes(silent)} ({self._hosts[silent[0]]}) gave no sign of life; "

    def _answer(self, index: int, question: str, facts: Facts, same: bool) -> None:
        """Notes the facts of one process; lets all go on when those of the last are there.

        With `same` the facts must not differ.
        """
        with self._lock:
            answers = self._facts.setdefault(question, {})
            answers[index] = facts
            if len(answers) < self._place.count:
                return
            if not same:
                del self._facts[question]
        error = self._compare(question) if same else None
        if error or question == FINISHED:
            self._end(error)
        else:
            self._tell(answered=question, facts=[answers[i] for i in range(self._place.count)])

    def _tell(self, **message) -> None:
        for line in self._lines.values():
            line.send(**message)

    def _end(self, error: ProcessError | None) -> None:
        """Ends the run for all processes, once."""
        with self._lock:
            if self._over:
                return
            self._over = True
        if error is None:
            self._tell(end=True)
        else:
            self._tell(failed=str(error), code=error.code)
        self._told.set()


def name_processes(indices: list[int], most: int = 8) -> str:
    """[1, 2] as "processes 1, 2"; a long list is cut."""
    names = ", ".join(map(str, indices[:most])) + (", ..." if len(indices) > most else "")
    return f"process{'es' if len(indices) > 1 else ''} {names}"


def compare(facts: Mapping[int, Facts], hosts: Mapping[int, str], most: int = 20) -> list[str]:
    """A line for each fact in which processes differ, with each value and who has it."""
    lines = []
    for fact in sorted({name for one in facts.values() for name in one}):
        values: dict[str, list[int]] = {}
        for index in sorted(facts):
            values.setdefault(facts[index].get(fact, "nothing"), []).append(index)
        if len(values) > 1:
            having = (
                f"{value} in {name_processes(indices)} ({hosts[indices[0]]})"
                for value, indices in values.items()
            )
            lines.append(f"{fact}: {', '.join(having)}")
    return lines[:most] + (["..."] if len(lines) > most else [])
