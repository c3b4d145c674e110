"""How processes that are measured beside each other take turns, and what they answer.

A process says what it is in one line of JSON. Then it reads the name of a part from each line of
its standard input, calls that part for a while, and answers with the seconds of a call. Neither
JAX nor PyTorch is imported here.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

LEAST = 0.3  # seconds of a turn


def start(threads: int) -> TextIO:
    """Where answers go; the process keeps to its first `threads` cores.

    What anything else prints to the standard output goes to the errors from now on.
    """
    if hasattr(os, "sched_setaffinity"):  # not on every system
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(
    answers: TextIO, about: dict[str, Any], make: Callable[[str], Callable[[], Any]],
    after: Callable[[], Any] = lambda: None,
) -> None:  # fmt: skip
    """Answers until the input ends.

    `make(part)` returns a call that ends when its result is ready; its first two calls, which
    compile, are not counted. `after` follows each turn. A part that cannot be made or called is
    answered with the error.
    """
    call, current = None, None
    _say(answers, about)
    for line in sys.stdin:
        try:
            if (part := line.strip()) != current:
                call, current = None, part  # what the part before holds is free
                call = make(part)
                call(), call()
            answer = turn(call)
        except Exception as error:  # a library's compiler may not take the part
            call, current = None, None
            text = str(error).strip() or "-"
            answer = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
        after()
        _say(answers, answer)


def turn(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call, by the clock and of all processor cores; the first is not counted.

    What ran on the machine before has emptied its caches.
    """
    call()
    calls, cpu, begin = 0, time.process_time(), time.perf_counter()
    while (seconds := time.perf_counter() - begin) < LEAST:
        call()
        calls += 1
    return {"seconds": seconds / calls, "cpu_seconds": (time.process_time() - cpu) / calls}


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
