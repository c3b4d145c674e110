"""How processes and devices share the work on many images, and go on with what is left of it.

Every process takes its share of the images of which a folder of parts has nothing yet, and each of
its devices a batch at a time; what they make goes into the parts, and nothing holds all of it.
"""

import concurrent.futures
import json
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from rin_jax.evaluation.parts import Parts, missing
from rin_jax.runtime import console, processes

SAY_SECONDS = 10.0
Made = TypeVar("Made")


def rounds(
    make: Callable[[jax.Device, np.ndarray], Made], size: int, count: int, parts: Parts, mesh: Mesh
) -> Iterator[list[tuple[np.ndarray, Made]]]:
    """What this process makes of its share of the images 0..count-1 that `parts` lacks.

    Each round has (indices [B], make(device, indices)) for each device, in the order of the
    images; the indices of a batch have the same i // `size`. All processes begin together.
    """
    ranges = json.loads(processes.gather("images so far", json.dumps(parts.ranges()))[0])
    todo = missing(ranges, count)
    batches = np.split(todo, np.flatnonzero(np.diff(todo // size)) + 1) if todo.size else []
    members = sorted({device.process_index for device in mesh.devices.flat})
    own = np.array_split(np.arange(len(batches)), len(members))[members.index(jax.process_index())]
    own = [batches[i] for i in own]
    devices = mesh.local_devices
    progress = console.Progress(count - len(todo), count, 1)
    share = len(todo) / max(sum(map(len, own)), 1)  # of all processes, for one image of this one
    done, said = 0, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        for first in range(0, len(own), len(devices)):
            batch = own[first : first + len(devices)]
            yield list(zip(batch, pool.map(make, devices, batch), strict=False))
            done += sum(map(len, batch))
            if first + len(devices) >= len(own) or time.monotonic() - said > SAY_SECONDS:
                reached = count - len(todo) + int(done * share)
                progress.update(reached)
                console.say(progress.line("sample", "images"))
                said = time.monotonic()
