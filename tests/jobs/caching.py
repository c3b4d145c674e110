"""rin_jax.main as a process of a pod that keeps its compiled programs: JAX lets process 0 alone.

At the end it tells whether TensorFlow was imported, and how often JAX asked for a program and how
often one was kept.
"""

import atexit
import collections
import json
import os
import sys
import threading

from jax import monitoring
from jax._src import compiler, distributed

from rin_jax.evaluation import classifier
from rin_jax.runtime import processes

ONE_AT_A_TIME = threading.Lock()
COUNTS: collections.Counter = collections.Counter()


def write(*args, original=compiler._cache_write, **kwargs) -> None:
    """As if this was process 0; the keys of other processes are other ones."""
    state = distributed.global_state
    with ONE_AT_A_TIME:  # devices compile at the same time
        own, state.process_id = state.process_id, 0
        try:
            original(*args, **kwargs)
        finally:
            state.process_id = own


@atexit.register
def tell() -> None:
    if "tensorflow" in sys.modules:
        print("tensorflow was imported", flush=True)
    print("counts:", json.dumps(COUNTS), flush=True)


compiler._cache_write = write
monitoring.register_event_listener(lambda name, **_: COUNTS.update([name.split("/")[-1]]))
classifier.EPOCHS, classifier.FEWEST_STEPS, classifier.WARMUP = 1, 20, 5  # it need not be good
processes.HEARTBEAT = int(os.environ["POD_HEARTBEAT"] or processes.HEARTBEAT)

if __name__ == "__main__":
    from rin_jax import main

    main.start()
