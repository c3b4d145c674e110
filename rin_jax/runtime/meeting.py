"""Where the processes of a run meet: who is there, what each was started with, how each ended.

One TCP connection joins every process to process 0 for the whole run, apart from JAX and before it
starts.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from rin_jax.runtime import process_hub
from rin_jax.runtime.process_hub import Facts, Hub, Line, Place, ProcessError


class Group:
    """This process's membership in the run.

    `preempted` is called, in a thread of its own, with what told one of the processes to end.
    """

    def __init__(
        self,
        place: Place,
        facts: Facts,
        timeout: float,
        preempted: Callable[[str], None] = lambda reason: None,
    ):
        self._place, self._preempted = place, preempted
        self._leaving, self._over = threading.Event(), threading.Event()
        self._ending = threading.Event()  # the run has been told to end
        self._last_words = threading.Lock()  # taken by the thread that ends this process, for good
        self._answers: dict[str, list[Facts]] = {}
        self._answered = threading.Condition()
        self._hub = Hub(place, timeout) if place.index == 0 else None
        if self._hub:
            self._hub.start()
        self._line = self._join(facts, timeout)
        for task in (self._listen, self._pulse):
            threading.Thread(target=task, name="rin-processes", daemon=True).start()

    def _join(self, facts: Facts, timeout: float) -> Line:
        """Waits until all processes are there.

        Raises:
          ProcessError: this process or another is not let in.
        """
        deadline = time.monotonic() + timeout
        address = self._place.meeting
        while True:
            try:
                line = Line(socket.create_connection(address, timeout=5.0))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ProcessError(
                        f"process 0 did not answer at {address[0]}:{address[1]} within "
                        f"{timeout:g} s ({error}). Start the same command on every host (see "
                        "there why it ended), or wait longer with --join_timeout."
                    ) from error
                time.sleep(0.2)
        line.send(
            index=self._place.index,
            count=self._place.count,
            host=socket.gethostname(),
            facts=dict(facts),
        )
        try:
            answer = line.read(timeout + 10.0)
        except (OSError, ValueError) as error:
            raise ProcessError(f"process 0 went away before all had joined ({error})") from error
        if "failed" in answer:
            if self._hub:  # it still tells the others
                self._hub.join(process_hub.GRACE)
            raise ProcessError(answer["failed"], answer["code"])
        return line

    def _listen(self) -> None:
        """Ends this process when the run has failed elsewhere."""
        try:
            while True:
                message = self._line.read(process_hub.SILENCE)
                if "failed" in message:
                    self._end(message["code"], message["failed"])
                    return
                if "answered" in message:
                    with self._answered:
                        self._answers[message["answered"]] = message["facts"]
                        self._answered.notify_all()
                if "preempted" in message:
                    self._ending.set()
                    told = (message["preempted"],)
                    threading.Thread(target=self._preempted, args=told, daemon=True).start()
                if "end" in message:
                    self._over.set()
                    return
        except TimeoutError:
            reason = f"gave no sign of life for {process_hub.SILENCE:g} s"
        except (OSError, ValueError) as error:
            reason = f"died ({error})"
        self._end(process_hub.LOST, f"process 0 ({self._place.meeting[0]}) {reason}")

    def _pulse(self) -> None:
        while not self._over.wait(process_hub.PULSE):
            self._line.send(alive=True)

    def _end(self, code: int, reason: str) -> None:
        self._over.set()
        if self._leaving.is_set():  # the news is this process's own
            return
        remedy = "" if code in (2, 3) else f" {process_hub.RESUMABLE}"
        self._exit(code, f"error: {reason}\nProcess {self._place.index} ends with it.{remedy}\n")

    def _exit(self, code: int, text: str) -> None:
        """Ends at once: an orderly exit would wait for processes that are gone.

        Only the first thread to come here is heard; another waits for the end.
        """
        self._last_words.acquire()
        if self._ending.is_set() and code in (1, process_hub.LOST):
            code = process_hub.PREEMPTED  # what comes now comes of others having left
        with contextlib.suppress(OSError):  # nobody may read it any more
            os.write(sys.stderr.fileno(), text.encode())
        if self._hub:  # the others lose their connection with this process
            self._hub.join(process_hub.GRACE)
            time.sleep(1.0)
        os._exit(code)

    def fail(self, code: int, text: str, report: str) -> None:
        """Ends this process and all others; prints `report` here and `text` there."""
        self._leaving.set()
        self._line.send(failed=text, code=code)
        self._over.wait(process_hub.GRACE)
        self._exit(code, report)

    def agree(self, question: str, **facts: object) -> None:
        """Waits until all processes ask the same; ends them all if their facts differ."""
        values = {name.replace("_", " "): repr(value) for name, value in facts.items()}
        self._ask(question, values, same=True)

    def gather(self, question: str, value: str) -> list[str]:
        """The values that the processes give to a question, by their index; waits for all."""
        return [facts["value"] for facts in self._ask(question, {"value": value}, same=False)]

    def _ask(self, question: str, facts: Facts, same: bool) -> list[Facts]:
        self._line.send(question=question, facts=facts, same=same)
        with self._answered:
            self._answered.wait_for(lambda: question in self._answers)
            return self._answers.pop(question)

    def tell_preempted(self, reason: str) -> None:
        """Tells all processes, this one too, that the run is to end."""
        self._ending.set()
        self._line.send(preempted=reason)

    def finish(self) -> None:
        """Waits until all processes have done their work."""
        self._line.send(question=process_hub.FINISHED, facts={}, same=True)
        self._over.wait()
        if self._hub:  # the others must hear it before their connection closes
            self._hub.join(process_hub.GRACE)
