"""The JSON API of Google Cloud Storage, as far as `tests/storage.py` answers it."""

import base64
import dataclasses
import hashlib
import json
import re
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

CODES = {"error": 503, "limit": 429, "denied": 403}
PAGE = 1000  # objects in one listing at most
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")


@dataclasses.dataclass(frozen=True)
class Stored:
    """One generation of an object."""

    data: bytes
    generation: int
    content_type: str
    metadata: dict
    since: float
    until: float = float("inf")  # when it was replaced or deleted


class RefusedError(Exception):
    """An answer that is an error of the API."""

    def __init__(self, code: int, reason: str):
        super().__init__(code, reason)


class Server(ThreadingHTTPServer):
    """One thread a connection."""

    daemon_threads, request_queue_size = True, 128

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection; a subclass has the `storage` that it is of."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_) -> None:
        pass

    def _any(self) -> None:
        url = urlsplit(self.path)
        self.query, self.when = dict(parse_qsl(url.query, keep_blank_values=True)), None
        self.body = self._read_body()
        fault = self.storage.fault(f"{self.command} {unquote(self.path)}")
        self.kind = fault.kind if fault else ""
        if self.kind == "cut":
            self.close_connection = True
            return
        if self.kind == "slow":
            time.sleep(fault.seconds)
        if self.kind == "stale":
            self.when = time.monotonic() - fault.seconds
        try:
            if self.kind in CODES:
                raise RefusedError(CODES[self.kind], "on demand")
            with self.storage.lock:
                answer = self._once(url.path)
        except RefusedError as refused:
            code, reason = refused.args
            error = {"code": code, "message": reason, "errors": [{"reason": reason}]}
            answer = code, {}, b"" if code == 304 else json.dumps({"error": error}).encode()
        self._send(*answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, code: int, headers: dict, body: bytes | dict) -> None:
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        if self.kind == "lost":
            self.close_connection = True
            return
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.kind == "half":
            self.close_connection, body = True, body[: len(body) // 2]
        self.end_headers()
        self.wfile.write(body)

    def _once(self, path: str) -> tuple[int, dict, bytes | dict]:
        """The answer, for a token that was seen before the same again."""
        token = self.headers.get("X-Goog-GCS-Idempotency-Token")
        if token is None:
            return self._answer(path)
        if token not in self.storage.answers:
            self.storage.answers[token] = self._answer(path)
        return self.storage.answers[token]

    def _answer(self, path: str) -> tuple[int, dict, bytes | dict]:
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            return self._upload(unquote(match[1]))
        if match := re.fullmatch(r"/storage/v1/b(?:/([^/]+))?", path):
            name = match[1] or json.loads(self.body)["name"]
            return 200, {}, {"kind": "storage#bucket", "id": name, "name": name}
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return 200, {}, self._listing(unquote(match[1]))
        if not (match := OBJECT.match(path)):
            raise RefusedError(404, "notFound")
        bucket, name = map(unquote, match.groups())
        stored = self.storage.get(bucket, name)
        source = path[match.end():].startswith(("/rewriteTo", "/copyTo", "/moveTo"))
        if not source:
            self._check(stored)
        if stored is None:
            raise RefusedError(404, "notFound")
        if source:
            return 200, {}, self._copy(bucket, name, stored, path[match.end():])
        if self.command == "DELETE":
            self.storage.delete(bucket, name)
            return 204, {}, b""
        if self.query.get("alt") == "media":
            return self._media(stored)
        return 200, {}, resource(bucket, name, stored)

    def _check(self, stored: Stored | None) -> None:
        """The preconditions on the generation; 0 is that of an object which is not there."""
        generation = stored.generation if stored else 0
        if "generation" in self.query and int(self.query["generation"]) != generation:
            raise RefusedError(404, "notFound")
        if int(self.query.get("ifGenerationMatch", generation)) != generation:
            raise RefusedError(412, "conditionNotMet")
        if int(self.query.get("ifGenerationNotMatch", -1)) == generation:
            raise RefusedError(304 if self.command == "GET" else 412, "conditionNotMet")

    def _media(self, stored: Stored) -> tuple[int, dict, bytes]:
        data, code = stored.data, 200
        headers = {
            "Content-Type": stored.content_type or "application/octet-stream",
            "x-goog-generation": str(stored.generation), "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={crc32c(data)},md5={md5(data)}",
        }  # fmt: skip
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            size = len(data)
            first, last = (int(part) if part else None for part in match.groups())
            if first is None:
                first, last = max(size - (last or 0), 0), size - 1
            last = min(size - 1 if last is None else last, size - 1)
            if first >= size:
                raise RefusedError(416, "requestedRangeNotSatisfiable")
            data, code = data[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return code, headers, data

    def _listing(self, bucket: str) -> dict:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after, end = self.query.get("pageToken", ""), self.query.get("endOffset")
        most = min(int(self.query.get("maxResults", PAGE)), PAGE)
        found: dict[str, dict | None] = {}  # an item, or None for a prefix
        for name in sorted(name for b, name in self.storage.objects if b == bucket):
            stored = self.storage.get(bucket, name, self.when)
            inside = name.startswith(prefix) and name >= self.query.get("startOffset", "")
            if stored is None or not inside or (end and name >= end):
                continue
            head, mark, _ = name[len(prefix):].partition(delimiter or "\0")
            key = prefix + head + mark if delimiter and mark else name
            if key > after:
                found[key] = None if delimiter and mark else resource(bucket, name, stored)
        keys = list(found)[:most]
        answer = {
            "kind": "storage#objects",
            "items": [found[key] for key in keys if found[key]],
            "prefixes": [key for key in keys if found[key] is None],
        }
        return answer | ({"nextPageToken": keys[-1]} if len(found) > most else {})

    def _copy(self, bucket: str, name: str, stored: Stored, to: str) -> dict:
        match = re.fullmatch(r"/(\w+)To(?:/b/([^/]+))?/o/([^/]+)", to)
        target = unquote(match[2] or bucket), unquote(match[3])
        self._check(self.storage.get(*target))
        copied = self.storage.put(*target, stored.data, stored.content_type, stored.metadata)
        if match[1] == "move":
            self.storage.delete(bucket, name)
        found = resource(*target, copied)
        return {"done": True, "resource": found} if match[1] == "rewrite" else found

    def _upload(self, bucket: str) -> tuple[int, dict, bytes | dict]:
        kind, body = self.query.get("uploadType"), self.body
        described = {"name": self.query.get("name"), "contentType": self.headers["Content-Type"]}
        if "upload_id" in self.query:
            return self._upload_part(bucket)
        if kind == "resumable":
            number = f"{len(self.storage.uploads)}"
            described["contentType"] = self.headers.get("X-Upload-Content-Type", "")
            self.storage.uploads[number] = (described | json.loads(body or b"{}"), bytearray())
            return 200, {"Location": f"{self.storage.url}{self.path}&upload_id={number}"}, b""
        if kind == "multipart":
            mark = re.search(r'boundary="?([^";]+)', described["contentType"])[1].encode()
            _, about, content = body.split(b"--" + mark, 2)
            described = described | json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])
            content = content[: content.rindex(b"--" + mark)]
            head, body = re.split(rb"\r?\n\r?\n", content, maxsplit=1)
            described["contentType"] = re.search(rb"(?i)content-type: *(\S+)", head)[1].decode()
            body = re.sub(rb"\r?\n\Z", b"", body)
        return 200, {}, self._store(bucket, described, body)

    def _upload_part(self, bucket: str) -> tuple[int, dict, bytes | dict]:
        described, data = self.storage.uploads[self.query["upload_id"]]
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
        if match[1]:
            data[int(match[1]) :] = self.body
        if match[2] == "*" or len(data) < int(match[2]):
            return 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {}, b""
        return 200, {}, self._store(bucket, described, bytes(data))

    def _store(self, bucket: str, described: dict, data: bytes) -> dict:
        name = described["name"]
        self._check(self.storage.get(bucket, name))
        metadata = described.get("metadata")
        stored = self.storage.put(bucket, name, data, described["contentType"], metadata)
        return resource(bucket, name, stored)


def resource(bucket: str, name: str, stored: Stored) -> dict:
    """What the API says of an object."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.generation / 1e6))
    return {
        "kind": "storage#object", "id": f"{bucket}/{name}/{stored.generation}", "name": name,
        "bucket": bucket, "generation": str(stored.generation), "metageneration": "1",
        "size": str(len(stored.data)), "contentType": stored.content_type,
        "metadata": stored.metadata, "timeCreated": moment, "updated": moment,
        "md5Hash": md5(stored.data), "crc32c": crc32c(stored.data), "storageClass": "STANDARD",
    }  # fmt: skip


def md5(data: bytes) -> str:
    """As the API writes it."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def crc32c(data: bytes) -> str:
    """As the API writes it."""
    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()
