"""The weights' file: the safetensors library reads it, and a bucket gets and gives the same."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file

from rin_jax import ConfigError
from rin_jax.interop import export_format
from tests.network import small


@pytest.fixture(scope="module")
def network():
    rin = small.small()
    return rin, small.random_params(rin)


def test_the_file_is_one_of_the_formats_own_library(network, tmp_path):
    _, params = network
    params = params | {"view": np.arange(12, dtype=np.float32).reshape(3, 4).T}  # not in C order
    export_format.write_weights(epath.Path(tmp_path), params, {"step": "7"})
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"step": "7"}
    read = load_file(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert read.keys() == export_format.flatten(params).keys()
    assert "blocks_0.read.mlp.norm.scale" in read
    assert small.distance(export_format.nest(read), params) == 0


def test_a_bucket_gets_and_gives_the_same_file(network, tmp_path, storage):
    rin, params = network
    local, bucket = epath.Path(tmp_path), epath.Path("gs://bucket/export")
    sha256 = export_format.write_weights(local, params, {})
    assert export_format.write_weights(bucket, params, {}) == sha256
    name = "model.safetensors"
    assert (bucket / name).read_bytes() == (local / name).read_bytes()
    read = export_format.read_weights(bucket, sha256, rin, jnp.asarray)
    assert small.distance(read, params) == 0


def test_other_types_are_refused(network, tmp_path):
    params = {"a": {"w": jnp.ones(2, jnp.bfloat16)}}
    with pytest.raises(ConfigError, match=r"a\.w is bfloat16; an export has float32 tensors only"):
        export_format.write_weights(epath.Path(tmp_path), params, {})
    assert not list(tmp_path.iterdir())


def test_what_is_not_of_the_format_is_named(network, tmp_path):
    content = b"PK\x03\x04 something else entirely"
    (tmp_path / "model.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    with pytest.raises(ConfigError, match="model.safetensors is not a safetensors file: "):
        export_format.read_weights(epath.Path(tmp_path), sha256, network[0], jnp.asarray)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no model.safetensors"):
        export_format.read_weights(epath.Path(tmp_path), sha256, network[0], jnp.asarray)
