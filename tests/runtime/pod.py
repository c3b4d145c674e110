"""Processes that are joined by JAX's service and then do as they are told; nothing is compiled.

They are forked from one process, which has imported JAX once. Each writes its errors to a file.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT = 2


def free_address() -> str:
    """HOST:PORT on the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Pod:
    """A process for each command; an index in `others` overrides what the member is told else.

    Members know `count`, `facts`, `heartbeat`, `delay` (seconds before it starts) and `deaf` (its
    errors go to a pipe that nobody reads).
    """

    def __init__(self, folder: Path, *commands: str, timeout: float = 60.0, others=None):
        folder.mkdir(exist_ok=True)
        self._folder, self._size = folder, len(commands)
        self.address = free_address()
        members = [
            {
                "do": command, "index": index, "count": len(commands), "facts": {}, "delay": 0.0,
                "deaf": False, "heartbeat": HEARTBEAT, "address": self.address,
                "timeout": timeout, "folder": str(folder),
                **(others or {}).get(index, {}),
            }
            for index, command in enumerate(commands)
        ]  # fmt: skip
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.pod", *map(json.dumps, members)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        self.pids = list(map(int, self._parent.stdout.readline().split()))

    def joined(self) -> "Pod":
        """Waits until all are joined."""
        while not all((self._folder / f"in.{index}").exists() for index in range(self._size)):
            assert self._parent.poll() is None, self.errors()
            time.sleep(0.02)
        return self

    def wait_for_end(self, *indices: int) -> None:
        """Waits until these have ended."""
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{self.pids[index]}").exists() for index in indices):
            assert time.monotonic() < deadline, self.errors()
            time.sleep(0.05)

    def errors(self) -> list[str]:
        """What each has written."""
        return [(self._folder / f"err.{index}").read_text() for index in range(self._size)]

    def ends(self, timeout: float = 60.0) -> tuple[list[int], list[float], list[str]]:
        """Exit codes, times (of time.monotonic) and errors of all."""
        try:
            ends = json.loads(self._parent.communicate(timeout=timeout)[0])
        finally:
            for pid in self.pids if self._parent.poll() is None else []:
                os.kill(pid, 9)
        return [code for code, _ in ends], [when for _, when in ends], self.errors()


def main(members: list[dict]) -> None:
    from rin_jax.runtime import preemption  # noqa: F401 - imported once, before the fork

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite's own may be ignored
    children = {}
    for index, member in enumerate(members):
        child = os.fork()
        if not child:
            live(**member)
            return
        children[child] = index
    print(*children, flush=True)
    ends = [None] * len(members)
    for _ in members:
        child, status = os.wait()
        ends[children[child]] = os.waitstatus_to_exitcode(status), time.monotonic()
    print(json.dumps(ends))


def live(do, index, count, facts, heartbeat, delay, deaf, address, timeout, folder) -> None:
    """One member, from its start to its end."""
    from rin_jax import ConfigError
    from rin_jax.runtime import preemption, processes
    from rin_jax.runtime.cluster import VARIABLES

    os.environ.update(zip(VARIABLES, (address, str(count), str(index)), strict=True))
    os.dup2(os.open(f"{folder}/err.{index}", os.O_WRONLY | os.O_CREAT), 2)
    if deaf:
        read, write = os.pipe()
        os.dup2(write, 2)
        for end in (read, write):
            os.close(end)
    time.sleep(delay)
    processes.HEARTBEAT = heartbeat
    codes = {ConfigError: 2, FloatingPointError: 3}
    with preemption.watching() as watch, processes.together(facts, timeout, codes, watch.told):
        processes.agree("in")
        Path(folder, f"in.{index}").touch()
        if do == "sleep":
            time.sleep(60)
        elif do == "late":  # its own work fails while it hears of another's failure
            time.sleep(1.0 + 2.5 * processes.PERIOD)
            raise OSError("connection reset")
        elif do == "differ":
            processes.agree("resuming", seed=0, newest_checkpoint=10 * index)
        elif do == "gather":
            for number in range(3):
                values = processes.gather("number", f"{index} {number}")
                assert values == [f"{other} {number}" for other in range(count)]
        elif do:
            time.sleep(1.0)
            raise {"mistake": ConfigError, "number": FloatingPointError, "disk": OSError}[do](do)


if __name__ == "__main__":
    main([json.loads(text) for text in sys.argv[1:]])
