"""Exports behind a URL, from a server of this machine."""

import functools
import http.server
import threading

import pytest

import rin_jax
from rin_jax import ConfigError
from tests.interop import exports
from tests.network.small import distance


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a server of `tmp_path`."""
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_model_from_a_url(server, tmp_path):
    model = exports.model()
    path = exports.write(tmp_path / "here", model)
    for ending in ("", "/"):
        loaded = rin_jax.load(f"{server}/here{ending}")
        assert distance(loaded.params, model.params) == 0
        assert (loaded.step, loaded.class_names) == (7, exports.NAMES)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ConfigError, match=r"model.safetensors"):
        rin_jax.load(f"{server}/here")
    weights.unlink()
    with pytest.raises(ConfigError, match=r"here/model.safetensors: .*404.*config.json and model"):
        rin_jax.load(f"{server}/here")


def test_a_server_that_is_not_there(server):
    nobody = server.rsplit(":", 1)[0] + ":1"
    with pytest.raises(ConfigError, match=rf"cannot fetch {nobody}/x/config.json: "):
        rin_jax.load(f"{nobody}/x")
