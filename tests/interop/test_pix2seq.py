"""TensorFlow checkpoints under the reference's variable names become checkpoints of a run."""

import json

import jax
import numpy as np
import pytest
import tensorflow as tf

from rin_jax import ConfigError
from rin_jax.experiment import device_mesh
from rin_jax.interop import pix2seq
from rin_jax.interop.pix2seq import import_params, reference_names
from rin_jax.jobs.import_pix2seq import import_pix2seq
from rin_jax.network.partitioning import param_shapes
from rin_jax.sampling.weights import load_ema
from tests import reference, tiny
from tests.network import test_oracle
from tests.network.small import distance, fill


def by_name(path, arrays) -> str:
    """A file whose keys are the variables' names."""
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(array) for array in arrays.values()],
    )
    return str(path)


class Denoiser(tf.Module):
    """Variables under the reference's names, spread over objects as its layers are."""

    def __init__(self, arrays):
        super().__init__()
        units: dict[str, list] = {}
        for name, array in arrays.items():
            _, unit, *_ = name.split("/")
            units.setdefault(unit, []).append(tf.Variable(array, name=name))
        self.units = units


def by_object(path, params, average, step=1234) -> str:
    """A file of tf.train.Checkpoint with the objects that the reference's trainer saves."""
    model = tf.Module()
    model.denoiser, model.denoiser_ema = Denoiser(params), Denoiser(average)
    moments = tf.Module()
    moments.m = [tf.Variable(tf.zeros_like(a), name=f"LAMB/{n}/m") for n, a in params.items()]
    saver = tf.train.Checkpoint(
        model=model, global_step=tf.Variable(step, dtype=tf.int64), optimizer=moments
    )
    return saver.write(str(path))


def as_reference(params, rin) -> dict[str, np.ndarray]:
    """A parameter tree under the reference's names, layers apart."""
    names, arrays = reference_names(rin), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        theirs = names["/".join(key.key for key in path)]
        layers = np.asarray(leaf).reshape(-1, *leaf.shape[theirs.ndim :])
        arrays |= {f"tape/{n}": a for n, a in zip(theirs.ravel(), layers, strict=True)}
    return arrays


@reference.needed
@pytest.mark.parametrize("kind", ["name", "object"])
@pytest.mark.parametrize("name", reference.names("arch_*"))
def test_an_imported_checkpoint_has_the_parameters_of_the_reference(name, kind, tmp_path):
    """Those under which the network's forward pass is compared with the reference elsewhere."""
    arrays, _ = reference.load(name)
    weights = reference.under(arrays, "w/")
    if kind == "name":
        found = pix2seq.read(by_name(tmp_path / "ckpt", weights))
        assert found.step is None
        imported = found.params
    else:
        zeros = {k: np.zeros_like(v) for k, v in weights.items()}
        found = pix2seq.read(by_object(tmp_path / "ckpt", zeros, weights))
        assert found.step == 1234
        imported = found.average
        assert all(not array.any() for array in found.params.values())
    rin, params = reference.network(name)
    assert distance(import_params(imported, rin), params) == 0


def test_a_convolution_has_either_name_of_its_kernel(monkeypatch):
    """Keras calls the kernel of a depthwise convolution by one name or the other."""
    arrays, meta = test_oracle.file_of("convolution")
    monkeypatch.setattr(reference, "load", lambda _: (arrays, meta))
    rin, params = reference.network("convolution")
    renamed = {
        name.replace("/depthwise_kernel", "/kernel"): array
        for name, array in reference.under(arrays, "w/").items()
    }
    assert renamed.keys() != reference.under(arrays, "w/").keys()
    assert distance(import_params(renamed, rin), params) == 0


@pytest.fixture(scope="module")
def trees():
    rin = tiny.experiment().rin
    return rin, fill(param_shapes(rin), 1), fill(param_shapes(rin), 2)


@pytest.mark.slow
def test_the_job_writes_a_checkpoint_and_accounts_for_every_variable(
    trees, storage, tmp_path, capsys, one_device
):
    rin, params, average = trees
    weights, averages = (as_reference(tree, rin) for tree in (params, average))
    source = by_object(tmp_path / "ckpt-1234", weights, averages)
    workdir = "gs://bucket/run"
    assert import_pix2seq(tiny.config(), workdir, source) == 1234
    experiment = tiny.experiment()
    step, _, loaded = load_ema(experiment, device_mesh(experiment), workdir)
    assert step == 1234
    assert distance(loaded, average) == 0
    report = json.loads(storage.get("bucket", "run/import.json").data)
    keys = set(tf.train.load_checkpoint(source).get_variable_to_shape_map())
    assert set(report["used"]) | set(report["unused"]) == keys
    assert not set(report["used"]) & set(report["unused"])
    assert len(report["used"]) == 2 * len(weights)
    assert all("optimizer" in k or "step" in k or "save_counter" in k or "OBJECT_GRAPH" in k
               for k in report["unused"])  # fmt: skip
    said = capsys.readouterr().out
    assert all(key in said for key in keys)
    with pytest.raises(ConfigError, match="has a checkpoint of step 1234 already"):
        import_pix2seq(tiny.config(), workdir, source)


def test_what_does_not_fit_is_named(trees, tmp_path):
    rin, params, _ = trees
    weights = as_reference(params, rin)
    workdir = str(tmp_path / "run")

    def importing(arrays):
        source = by_name(tmp_path / "ckpt", arrays)
        return import_pix2seq(tiny.config(), workdir, source)

    with pytest.raises(ConfigError, match=r"stem/bias: missing tape/stem/bias"):
        importing({k: v for k, v in weights.items() if k != "tape/stem/bias"})
    with pytest.raises(ConfigError, match=r"tape/other: not used"):
        importing(weights | {"tape/other": np.ones(3, np.float32)})
    with pytest.raises(ConfigError, match=r"stem/bias: shape \(9,\) instead of \(8,\)"):
        importing(weights | {"tape/stem/bias": np.ones(9, np.float32)})
    with pytest.raises(ConfigError, match=r"has no variable tape/.* It has vgg/w"):
        importing({"vgg/w": np.ones(3, np.float32)})
    with pytest.raises(ConfigError, match="there is no such folder and no file .*index"):
        import_pix2seq(tiny.config(), workdir, str(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()
