"""A Google Cloud Storage that runs in this process: the JSON API as far as clients here ask it.

    with Storage() as storage: subprocess.run(command, env=os.environ | storage.environment)

gcsfs, TensorStore and google-cloud-storage are sent to it by `environment`. Buckets exist as soon
as they are named. Faults come on demand:

    storage.faults.append(Fault("error", chance=0.1))

No emulator from pip knows the preconditions on generations, by which TensorStore and the lock of a
workdir decide who writes, and none breaks on demand.
"""

import dataclasses
import itertools
import random
import re
import threading
import time

from tests.storage_api import Handler, Server, Stored


@dataclasses.dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path?query" matches.

    kind: "error" (503), "limit" (429), "denied" (403) or "cut" (the connection ends), with which
      nothing is done; "lost" (it is done, but the connection ends without an answer), "half" (the
      connection ends within the answer), "slow" (`seconds` late), "stale" (listings are `seconds`
      old).
    """

    kind: str
    match: str = ""
    chance: float = 1.0
    count: float = float("inf")  # so many times
    seconds: float = 1.0


class Storage:
    """The server; its objects are in memory. A context manager."""

    def __init__(self, seed: int = 0):
        self.objects: dict[tuple[str, str], list[Stored]] = {}  # all generations
        self.faults: list[Fault] = []
        self.requests: list[tuple[float, str]] = []  # (monotonic seconds, "METHOD path?query")
        self.happened: list[str] = []  # kinds of the faults that came
        self.uploads: dict[str, tuple[dict, bytearray]] = {}  # those in parts, by number
        self.answers: dict[str, tuple] = {}  # by idempotency token
        self.lock = threading.RLock()
        self._numbers = itertools.count(int(time.time() * 1e6))
        self._random = random.Random(seed)
        handler = type("Bound", (Handler,), {"storage": self})
        self._server = Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "GOOGLE_CLOUD_PROJECT": "any",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC
        }

    def __enter__(self) -> "Storage":
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Objects that are there, sorted."""
        with self.lock:
            return sorted(n for b, n in self.objects if b == bucket and n.startswith(prefix)
                          and self.get(b, n))  # fmt: skip

    def get(self, bucket: str, name: str, when: float | None = None) -> Stored | None:
        """An object as it is, or was."""
        now = time.monotonic() if when is None else when
        stored = reversed(self.objects.get((bucket, name), []))
        return next((each for each in stored if each.since <= now < each.until), None)

    def put(self, bucket: str, name: str, data: bytes, content_type="", metadata=None) -> Stored:
        """Writes an object, whatever is there."""
        with self.lock:
            self.delete(bucket, name)
            stored = Stored(
                bytes(data), next(self._numbers), content_type, metadata or {}, time.monotonic()
            )
            self.objects.setdefault((bucket, name), []).append(stored)
            return stored

    def delete(self, bucket: str, name: str) -> None:
        """Deletes an object, if it is there."""
        with self.lock:
            stored = self.objects.get((bucket, name), [])
            if stored and stored[-1].until == float("inf"):
                # content of the past is never read, but listed by a stale listing
                stored[-1] = dataclasses.replace(stored[-1], data=b"", until=time.monotonic())

    def fault(self, request: str) -> Fault | None:
        """The fault that a request is to meet, counted."""
        with self.lock:
            self.requests.append((time.monotonic(), request))
            for fault in self.faults:
                if fault.kind == "stale" and "/o?" not in request:
                    continue
                if (
                    fault.count > 0
                    and re.search(fault.match, request)
                    and self._random.random() < fault.chance
                ):
                    fault.count -= 1
                    self.happened.append(fault.kind)
                    return fault
        return None
