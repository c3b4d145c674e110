"""Exports and the hub: local folders, the offline cache, and a hub on this machine's loopback."""

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest

import rin_jax
from rin_jax import ConfigError
from rin_jax.interop import hub
from tests import xla
from tests.interop import exports
from tests.network.small import distance
from tests.test_configs import CONFIGS

REPO = "someone/digits"
COMMIT = "a" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = exports.model()
    path = tmp_path_factory.mktemp("export")
    config = model.config.to_dict()
    return exports.write_weights(path, model.experiment.rin, model.params, config)


def python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"XLA_FLAGS": xla.FAST, "PYTHONPATH": str(CONFIGS.parent), **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def pulling(cache, **environment) -> subprocess.CompletedProcess:
    """Prints where a pull put the repository; imports nothing heavy."""
    code = f"from rin_jax.interop import hub; print(hub.pull({REPO!r}))"
    return python(code, HF_HUB_CACHE=str(cache), HF_HUB_DISABLE_XET="1", **environment)


def test_an_id_that_is_not_in_the_cache_is_named_offline(tmp_path):
    done = pulling(tmp_path, HF_HUB_OFFLINE="1")
    assert f"ConfigError: there is no folder {REPO}, and from the hub:" in done.stderr


def test_what_is_not_here_is_asked_of_the_hub(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", {REPO: str(folder)}.get)
    assert rin_jax.load(REPO).step == 7


def test_a_web_address_is_neither_a_folder_nor_an_id():
    with pytest.raises(ConfigError, match="is a web address; download the folder and name that"):
        rin_jax.load("https://example.org/exports/digits")


def test_what_is_no_id_never_asks_the_hub(monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    for source in ("runs/my/export", "./digits", "digits", "a/b/c", ""):
        with pytest.raises(ConfigError, match="there is no folder|is not an export"):
            rin_jax.load(source)


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'needs huggingface_hub: pip install "rin-jax\[hub\]"'):
        rin_jax.load(REPO)
    with pytest.raises(ConfigError, match=r"--push needs huggingface_hub"):
        hub.check_push(REPO)


class Hub(http.server.BaseHTTPRequestHandler):
    """The few routes of a hub that a push and a pull use; `store` of the server holds the files.

    A server with `fail_after` n refuses the n-th upload of a large file, once.
    """

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        server, body = self.server, self.body()
        server.asked.append(f"{self.command} {self.path}")
        host = f"http://127.0.0.1:{server.server_port}"
        if self.path == "/api/repos/create":
            server.private = json.loads(body).get("private") or (
                json.loads(body).get("visibility") == "private"
            )
            self.answer({"url": f"{host}/{REPO}", "id": REPO})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            mode = [("lfs" if f["path"].endswith("safetensors") else "regular") for f in files]
            rows = zip(files, mode, strict=True)
            answer = [{"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in rows]
            self.answer({"files": answer})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = []
            for wanted in json.loads(body)["objects"]:
                entry = {"oid": wanted["oid"], "size": wanted["size"]}
                if wanted["oid"] not in server.large:
                    entry["actions"] = {"upload": {"href": f"{host}/lfs/{wanted['oid']}"}}
                objects.append(entry)
            content = {"objects": objects, "transfer": "basic"}
            self.answer(content, Content_Type="application/vnd.git-lfs+json")
        elif "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    server.store[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    server.store[value["path"]] = server.large[value["oid"]]
            address = f"{host}/{REPO}/commit/{COMMIT}"
            self.answer({"commitUrl": address, "commitOid": COMMIT, "commitMessage": "Export"})
        else:
            self.answer({"error": self.path}, 404)

    def do_PUT(self):
        server, data = self.server, self.body()
        server.asked.append(f"PUT {self.path}")
        if server.fail_uploads:
            server.fail_uploads -= 1
            self.answer({"error": "interrupted"}, 403)
            return
        server.large[self.path.removeprefix("/lfs/")] = data
        self.answer({})

    def do_GET(self):
        server = self.server
        server.asked.append(f"{self.command} {self.path}")
        if match := re.fullmatch(rf"/{REPO}/resolve/\w+/(.+)", self.path):
            data = server.store[match[1]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(data, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="none")
        elif "/tree/" in self.path:
            files = server.store.items()
            self.answer([{"type": "file", "path": k, "size": len(v), "oid": k} for k, v in files])
        elif self.path.startswith(f"/api/models/{REPO}"):
            self.answer({"id": REPO, "sha": COMMIT, "private": True, "tags": [], "downloads": 0,
                         "siblings": [{"rfilename": name} for name in server.store]})  # fmt: skip
        else:
            self.answer({"error": self.path}, 404)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def local_hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.store, server.large, server.fail_uploads = [], {}, {}, 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def pushing(server, folder, cache) -> subprocess.CompletedProcess:
    return python(
        f"from rin_jax.interop import hub; print(hub.push({str(folder)!r}, {REPO!r}))",
        HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_TOKEN="hf_none",
        HF_HUB_CACHE=str(cache), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
    )  # fmt: skip


def test_push_then_pull(local_hub, folder, tmp_path):
    """What one machine pushes another loads; a push that was cut off sends only what is missing."""
    local_hub.fail_uploads = 1
    broken = pushing(local_hub, folder, tmp_path / "a")
    assert broken.returncode != 0
    assert f"ConfigError: --push={REPO}" in broken.stderr
    assert not local_hub.store

    pushed = pushing(local_hub, folder, tmp_path / "a")
    assert pushed.returncode == 0, pushed.stderr
    assert f"/commit/{COMMIT}" in pushed.stdout
    assert local_hub.private
    assert set(local_hub.store) == {path.name for path in folder.iterdir()}
    uploads = [line for line in local_hub.asked if line.startswith("PUT")]
    assert pushing(local_hub, folder, tmp_path / "a").returncode == 0
    assert [line for line in local_hub.asked if line.startswith("PUT")] == uploads

    address = f"http://127.0.0.1:{local_hub.server_port}"
    pulled = pulling(tmp_path / "b", HF_ENDPOINT=address)
    again = pulling(tmp_path / "b", HF_HUB_OFFLINE="1")
    assert pulled.stdout == again.stdout, pulled.stderr + again.stderr
    path = Path(pulled.stdout.strip())
    for file in folder.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()


def test_an_export_alone_asks_no_hub(folder, monkeypatch, tmp_path):
    """Nothing is sent without --push, and a folder is loaded without the library."""

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", asked)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", asked)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = rin_jax.load(str(folder))
    again = rin_jax.load(str(exports.write(tmp_path, model)))
    assert distance(again.params, model.params) == 0
