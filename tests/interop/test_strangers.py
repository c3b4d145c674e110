"""Exports that anybody may have made: one sentence for each fault, before anything is allocated.

Nothing but the files of the folder is read: no network, no data set, no path that is named in them.
"""

import hashlib
import io
import json
import re
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

import rin_jax
from rin_jax import ConfigError
from rin_jax.interop import export_format, given_clips, loading
from tests.interop import exports
from tests.network import small


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Whatever asks a network or TFDS fails."""

    def asked(*arguments, **_):
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(tfds, "builder", asked)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An export of a network that is given frames: config.json and model.safetensors."""
    model = exports.model(**exports.VIDEO)
    path = tmp_path_factory.mktemp("export")
    return exports.write_weights(path, model.experiment.rin, model.params, model.config.to_dict())


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it that a test may damage."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def rewrite(folder: Path, *path: str, value) -> None:
    """Sets a field of config.json; "config", "model", ... are set in `network` too."""
    content = json.loads((folder / "config.json").read_text())
    places = [path, ("network", *path[2:])] if path[:2] == ("config", "model") else [path]
    for place in places:
        node = content
        for name in place[:-1]:
            node = node[name]
        node[place[-1]] = value
    (folder / "config.json").write_text(json.dumps(content))


def refused(folder: Path) -> str:
    """What loading says, in a few lines."""
    with pytest.raises(ConfigError) as caught:
        rin_jax.load(str(folder))
    message = str(caught.value)
    assert str(folder) in message
    assert len(message) < 1000, message
    return message


def test_what_is_not_changed_loads(folder):
    assert rin_jax.load(str(folder)).step == 7


WRONG = ([], [1], {}, {"frames": 3}, {"a.b": 1}, "", "x", True, 1.5, float("nan"), [None], [[1]])


def test_every_field_of_another_type_is_refused(written):
    """A value that is taken has the type of the one before, which may have been None."""
    original = (written / "config.json").read_text()
    config = json.loads(original)["config"]
    fields = [(name, field) for name in config if name != "seed" for field in config[name]]
    assert len(fields) > 90
    for section, field in fields:
        for value in WRONG if section not in loading.ANY_MACHINE else ():
            sections = json.loads(original)["config"]
            sections[section][field] = value
            before = config[section][field]
            kinds = (str, float) if before is None else (type(before),)
            try:
                loading.stored_experiment(sections)
            except ConfigError:
                continue
            assert type(value) in kinds, (section, field, value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["config"], [], "config is []; it must be a mapping."),
        (["network"], "RIN", "network is 'RIN'; it must be a mapping."),
        (["step"], "7", "step is '7'; it must be a whole number."),
        (["class_names"], [1], "class_names is [1]; it must be a tuple of any number of entries, "
         "each text or None."),
        (["sha256"], None, "sha256 is None; it must be text."),
        (["config", "data"], [], "data is []; it must be a section of fields."),
        (["config", "ema"], None, "ema is None; it must be a section of fields."),
        (["config", "model", "depth"], [2, "2"], "model.depth is [2, '2']; it must be a whole "
         "number or a tuple of any number of entries, each a whole number."),
        (["config", "model", "num_latents"], "6", "model.num_latents is '6'; it must be a whole"),
        (["config", "model", "time_scale"], 2**31, "time_scale is 2147483648; it must be a number"),
        (["config", "data", "clip"], [1], "data.clip is [1]; it must be a mapping or None."),
        (["config", "data", "clip", "frames"], "5", "data.clip.frames is '5'"),
        (["config", "diffusion", "schedule"], [], "diffusion.schedule is []; it must have a name."),
        (["config", "sampler", "schedule"], {"name": []}, "sampler.schedule is {'name': []}"),
        (["config", "diffusion", "schedule", "tau"], "1", "diffusion.schedule: tau is '1'; it must "
         "be a number."),
        (["config", "sampler", "guidance_interval"], [0, 1, 2], "sampler.guidance_interval is [0, "
         "1, 2]; it must be a tuple of 2 entries, each a number."),
        (["config", "optimizer", "decay"], {}, "optimizer.decay.name is None"),
        (["config", "seed"], -1, "seed is -1; it must be in 0..4294967295."),
        (["config", "seed"], True, "seed is True; it must be a whole number."),
        (["config", "a.b"], {}, "unknown field a.b"),
        # sizes of terabytes
        (["config", "data", "image_size"], 10**6, "of shape (3, 1000000, 1000000, 1) has"),
        (["config", "data", "channels"], 10**12, "1000000000000) has"),
        (["config", "data", "clip", "frames"], 10**9, "more than 2147483648 in all"),
        (["config", "model", "interface_dim"], 2**30, "features of interface tokens"),
        (["config", "model", "num_blocks"], 10**9, "at most 1024 blocks"),
        (["config", "model", "depth"], 10**9, "at most 1024 blocks"),
        (["config", "sampler", "num_steps"], 10**8, "sampler.num_steps is 100000000; float32 does"),
        (["config", "sampler", "num_steps"], 10**12, "sampler.num_steps is 1000000000000"),
        (["config", "sampler", "images_per_device"], 10**9, "images_per_device is 1000000000"),
        (["config", "train", "num_steps"], 10**12, "train.num_steps is 1000000000000; steps are"),
        # what would be asked elsewhere
        (["config", "data", "num_classes"], None, "data.num_classes is not set; an export tells"),
        (["config", "sampler", "guide"], "/etc", "sampler.guide is set, but an export holds one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, path, value, words):
    rewrite(folder, *path, value=value)
    assert words in refused(folder)


def test_a_section_that_is_missing(written):
    config = json.loads((written / "config.json").read_text())["config"]
    for name in set(config) - set(loading.ANY_MACHINE):
        sections = {other: fields for other, fields in config.items() if other != name}
        with pytest.raises(ConfigError, match=f"missing field '{name}'"):
            loading.stored_experiment(sections)


def test_a_data_set_is_a_name_and_nothing_else(folder):
    """TFDS would look such names up on a hub, or import a folder."""
    config = json.loads((folder / "config.json").read_text())["config"]
    for name in ("someone/data", "/etc", "gs://bucket/data"):
        config["data"] |= {"name": name, "data_dir": "gs://bucket"}
        assert loading.stored_experiment(config).data.name == name
    rewrite(folder, "config", "data", "name", value="huggingface:someone/data")
    assert rin_jax.load(str(folder)).config.data.name == "huggingface:someone/data"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "config.json is damaged: "),
        ('{"a":' * 100_000, "config.json is damaged: "),
        ("[" * 500 + "]" * 500, "nested deeper than 10 levels"),
        ("1" * 10_000, "config.json is damaged: "),
        ("[]", "config.json has format None"),
        ('{"format": [2]}', "config.json has format [2]"),
        ("\x00", "config.json is damaged: "),
        (" " * (2**24 + 1), "config.json has 16777217 bytes"),
    ],
    ids=["lists", "mappings", "levels", "digits", "a list", "a format", "a zero", "large"],
)
def test_json_that_is_no_description(folder, text, words):
    (folder / "config.json").write_text(text)
    assert words in refused(folder)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def of_header(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


MALFORMED = {
    "nothing": b"",
    "half a length": b"\x08\x00\x00",
    "a length alone": struct.pack("<Q", 100),
    "a length of 0": of_header(b"", b"", 0),
    "a length beyond the file": of_header({"w": F32}, length=10**6),
    "a length of 2**63": of_header({"w": F32}, length=2**63),
    "a length of 2**64 - 1": of_header({"w": F32}, length=2**64 - 1),
    "a length that is too short": of_header({"w": F32}, length=5),
    "not JSON": of_header(b"{'w': 1}"),
    "not UTF-8": of_header(b'{"\xff": 1}'),
    "a list": of_header([F32]),
    "a number": of_header(b"12345678"),
    "deep": of_header(b'{"w":' * 10_000),
    "a tensor that is a number": of_header({"w": 3}),
    "a tensor without a dtype": of_header({"w": {"shape": [2], "data_offsets": [0, 8]}}),
    "a tensor without a shape": of_header({"w": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "a tensor without offsets": of_header({"w": {"dtype": "F32", "shape": [2]}}),
    "a dtype that does not exist": of_header({"w": F32 | {"dtype": "F33"}}),
    "a dtype of numbers": of_header({"w": F32 | {"dtype": 32}}),
    "a shape that is negative": of_header({"w": F32 | {"shape": [-2]}}),
    "a shape of text": of_header({"w": F32 | {"shape": ["2"]}}),
    "a shape of terabytes": of_header({"w": F32 | {"shape": [2**40, 2**40]}}),
    "offsets beyond the file": of_header({"w": F32 | {"shape": [4], "data_offsets": [0, 16]}}),
    "offsets backwards": of_header({"w": F32 | {"data_offsets": [8, 0]}}),
    "three offsets": of_header({"w": F32 | {"data_offsets": [0, 4, 8]}}),
    "bytes of no tensor": of_header({"w": F32}, bytes(80)),
    "tensors that overlap": of_header({"w": F32, "v": F32}),
    "metadata of numbers": of_header({"w": F32, "__metadata__": {"step": 7}}),
    "tensors of another network": of_header({"w": F32}),
}


@pytest.fixture(scope="module")
def network():
    return small.small()


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_one_sentence(network, tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(ConfigError, match="not a safetensors file: |does not fit the network") as e:
        export_format.read_weights(epath.Path(tmp_path), digest, network, np.asarray)
    assert str(tmp_path / "model.safetensors") in str(e.value)


def of_arrays(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def of_member(content: bytes) -> bytes:
    """frames.npz whose frames are these bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", content)
        archive.writestr("labels.npy", b"")
    return stream.getvalue()


def of_npy_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


FRAMES, LABELS = np.zeros((2, 2, 8, 8, 1), np.uint8), np.zeros(2, np.int32)
CLIPS = {
    "not a zip": (b"PK", "not a zip file"),
    "no labels": (of_arrays(frames=FRAMES), "no item named 'labels.npy'"),
    "other frames": (of_arrays(frames=FRAMES[:, :, :4], labels=LABELS), "instead of uint8"),
    "of another type": (of_arrays(frames=FRAMES * 1.0, labels=LABELS), "float64"),
    "pickles": (of_arrays(frames=np.array([{}]), labels=LABELS), "object"),
    "no clips": (of_arrays(frames=FRAMES[:0], labels=LABELS[:0]), "(0, 2, 8, 8, 1)"),
    "fewer labels": (of_arrays(frames=FRAMES, labels=LABELS[:1]), "2 clips have 1 labels"),
    "a bomb": (of_member(bytes(2**28 + 1)), "has 268435457 bytes, more than"),
    "terabytes": (of_member(of_npy_header("(1000000000000, 2, 8, 8, 1)")), "not those of uint8"),
    "deep": (of_member(of_npy_header("(" * 9000)), "copy the file again"),
}


@pytest.fixture(scope="module")
def with_frames():
    return exports.tiny.experiment(**exports.VIDEO)


@pytest.mark.parametrize(("content", "words"), CLIPS.values(), ids=CLIPS)
def test_frames_that_are_not_of_the_network(with_frames, tmp_path, content, words):
    (tmp_path / "frames.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=f"frames.npz is damaged: .*{re.escape(words)}"):
        given_clips.read(epath.Path(tmp_path) / "frames.npz", with_frames.rin)


def test_frames_of_the_network(with_frames, tmp_path):
    (tmp_path / "frames.npz").write_bytes(of_arrays(frames=FRAMES + np.uint8(7), labels=LABELS))
    read = given_clips.read(epath.Path(tmp_path) / "frames.npz", with_frames.rin)
    np.testing.assert_array_equal(read["frames"], FRAMES + 7)
    assert read["labels"].dtype == np.int32
