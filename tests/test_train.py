"""The training job: it resumes exactly, does nothing twice, and stops on bad numbers."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rin_jax import checkpoints, reports, sharding
from rin_jax import train as train_lib
from rin_jax.experiment import ConfigError, device_mesh, make_experiment
from rin_jax.network import cost
from rin_jax.state import abstract_state
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Keeps compiled steps: most tests here run the same program."""
    known, compile_train_step = {}, train_lib.compile_train_step

    def remember(experiment, mesh):
        key = json.dumps([experiment.config.to_dict()["model"], experiment.config.train.num_steps,
                          experiment.config.optimizer.to_dict()])  # fmt: skip
        if key not in known:
            known[key] = compile_train_step(experiment, mesh)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib, "compile_train_step", remember)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """The workdir of a run that nothing interrupted."""
    workdir = str(tmp_path_factory.mktemp("undisturbed"))
    train_lib.train(tiny.config(data__data_dir=data_dir), workdir)
    return workdir


def restored(workdir: str, data_dir: str, **changes):
    """(step, state) of the newest checkpoint."""
    experiment = make_experiment(tiny.config(data__data_dir=data_dir, **changes))
    abstract = abstract_state(
        experiment.rin, experiment.optimizer, sharding.make_mesh(**experiment.config.mesh)
    )
    step, _ = checkpoints.latest(workdir)
    with checkpoints.Checkpoints(workdir) as saver:
        return step, jax.device_get(saver.restore(abstract, step))


def metrics(workdir) -> list[dict]:
    """Lines of metrics.jsonl without the timing."""
    with open(f"{workdir}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    timing = ("images_per_second", "time_")
    return [{k: v for k, v in line.items() if not k.startswith(timing)} for line in lines]


class InterruptedRunError(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_interrupted_and_resumed_is_bit_identical(
    undisturbed, data_dir, tmp_path, monkeypatch, stop
):
    workdir = str(tmp_path / "run")
    open_batches = train_lib.open_batches

    def broken(config, start_step):
        for number, batch in enumerate(open_batches(config, start_step), start=start_step + 1):
            yield batch
            if number == stop:
                raise InterruptedRunError

    config = tiny.config(data__data_dir=data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(train_lib, "open_batches", broken)
        with pytest.raises(InterruptedRunError):
            train_lib.train(config, workdir)
    saved = checkpoints.latest(workdir)
    assert (saved[0] if saved else 0) == stop // 2 * 2  # a checkpoint every two steps
    train_lib.train(config, workdir)

    step, state = restored(workdir, data_dir)
    expected_step, expected = restored(undisturbed, data_dir)
    assert step == expected_step == 6
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert metrics(workdir) == metrics(undisturbed)


def test_a_finished_run_does_nothing_twice(undisturbed, data_dir, tmp_path, capsys):
    def files():
        return {
            str(path): path.stat().st_mtime_ns
            for path in tmp_path.parent.parent.glob("**/*")
            if undisturbed in str(path) and path.is_file()
        }

    before = files()
    train_lib.train(tiny.config(data__data_dir=data_dir), undisturbed)
    assert "is trained to step 6" in capsys.readouterr().out
    assert files() == before


def test_a_longer_run_goes_on(undisturbed, data_dir, tmp_path):
    workdir = str(tmp_path / "copy")
    shutil.copytree(undisturbed, workdir)
    train_lib.train(tiny.config(data__data_dir=data_dir, train__num_steps=8), workdir)
    assert checkpoints.latest(workdir)[0] == 8
    assert [line["step"] for line in metrics(workdir)] == [2, 4, 6, 8]


def test_clipping_can_be_switched_on_in_the_middle(undisturbed, data_dir, tmp_path):
    workdir = str(tmp_path / "copy")
    shutil.copytree(undisturbed, workdir)
    config = tiny.config(data__data_dir=data_dir, train__num_steps=8, optimizer__clip_norm=1.0)
    train_lib.train(config, workdir)
    assert checkpoints.latest(workdir)[0] == 8


def test_the_share_of_time_that_waits_for_data_is_logged(data_dir, tmp_path, monkeypatch):
    open_batches = train_lib.open_batches

    def slow(config, start_step):
        for batch in open_batches(config, start_step):
            time.sleep(0.3)
            yield batch

    monkeypatch.setattr(train_lib, "open_batches", slow)
    config = tiny.config(
        data__data_dir=data_dir, train__sample_every_steps=6, checkpoint__every_steps=6
    )
    train_lib.train(config, str(tmp_path))
    waits = [json.loads(line)["time_input_wait"] for line in (tmp_path / "metrics.jsonl").open()]
    assert all(0.5 < wait < 1 for wait in waits)


def test_processes_compare_the_data_that_they_read(data_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(
        train_lib.processes, "agree", lambda question, **facts: asked.append((question, facts))
    )
    for split in ("train", "train[:100]", "train"):
        config = tiny.config(data__data_dir=data_dir, data__split=split)
        train_lib.open_batches(make_experiment(config).config, 0)
    assert asked[0] == asked[2]
    assert asked[0][0] == asked[1][0] == "reading digits"
    assert all(asked[0][1][fact] != asked[1][1][fact] for fact in ("records", "fingerprint"))


ALL_JOBS = """
    import sys
    import rin_jax.evaluate, rin_jax.main, rin_jax.prepare, rin_jax.sample
    from rin_jax.train import train
    from tests import tiny
    train(tiny.config(data__data_dir={data_dir!r}, train__num_steps=3), {workdir!r})
    found = [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
    assert not found, found
"""


@pytest.mark.slow
def test_training_imports_no_tensorflow(tmp_path, root):
    script = ALL_JOBS.format(
        data_dir=str(tmp_path / "tfds"), workdir=str(tmp_path / "run")
    )
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "trained to step 3" in result.stdout


def test_what_a_run_leaves(undisturbed):
    lines = metrics(undisturbed)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"step", "loss", "grad_norm", "param_norm", "learning_rate"}
    for step in (3, 6):
        image = Image.open(f"{undisturbed}/progress/{step:08d}.png")
        assert image.size == (10 * 50 + 2, 10 * 50 + 2)  # ten classes down, ten samples across
        assert np.asarray(image).std() > 10
    events = EventAccumulator(f"{undisturbed}/events").Reload()
    assert {"loss", "grad_norm", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("loss")] == [2, 4, 6]
    assert np.isclose([p.value for p in events.Scalars("loss")], [r["loss"] for r in lines]).all()
    assert "progress" in events.Tags()["images"]
    with open(f"{undisturbed}/config.json") as file:
        assert json.load(file)["model"]["depth"] == 1


def test_the_same_noise_every_time(undisturbed, data_dir):
    """The grid at the last step is what sampling that checkpoint gives again."""
    from rin_jax import gallery
    from rin_jax.sample import GRID_COLUMNS, grid_labels, load_ema, make_generate

    config = tiny.config(data__data_dir=data_dir)
    experiment = make_experiment(config)
    mesh = device_mesh(experiment.config)
    _, params, *_ = load_ema(experiment, mesh, undisturbed)
    generate = make_generate(experiment, mesh, config.seed)
    again = generate(params, np.arange(100), grid_labels(10))
    expected = np.asarray(Image.open(f"{undisturbed}/progress/00000006.png"))
    np.testing.assert_array_equal(reports.grid(again, GRID_COLUMNS)[..., 0], expected)
    folder = gallery.sample(
        config, undisturbed, num=10, classes=["0"], ema=None, checkpoint=None, show=False
    )
    one = np.load(folder / "samples.npz")["images"]
    np.testing.assert_array_equal(one, again[:10])  # class 0 alone: the grid's first row


def test_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(undisturbed, data_dir, tmp_path):
    workdir = str(tmp_path / "copy")
    shutil.copytree(undisturbed, workdir)
    changes = {"train__num_steps": 9, "optimizer__learning_rate": 1e38}
    with pytest.raises(FloatingPointError, match=r"is (inf|nan) at step [78]; training stops"):
        train_lib.train(tiny.config(data__data_dir=data_dir, **changes), workdir)
    step, state = restored(workdir, data_dir)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, state, restored(undisturbed, data_dir)[1])


def test_the_step_of_a_bad_number_is_named():
    fine = {"loss": np.float32(1), "grad_norm": np.float32(2)}
    assert train_lib.read_metrics([fine, fine | {"loss": np.float32(3)}], 9)["loss"] == 2
    bad = fine | {"grad_norm": np.float32(np.nan)}
    with pytest.raises(FloatingPointError, match="grad_norm is nan at step 8"):
        train_lib.read_metrics([fine, bad, fine], 9)


def test_another_architecture_is_refused(undisturbed, data_dir):
    config = tiny.config(data__data_dir=data_dir, model__latent_dim=32, train__num_steps=9)
    with pytest.raises(ConfigError, match=r"model.latent_dim: checkpoint 16, now 32"):
        train_lib.train(config, undisturbed)
    assert checkpoints.latest(undisturbed)[1]["model"]["latent_dim"] == 16
    with open(f"{undisturbed}/config.json") as file:
        assert json.load(file)["model"]["latent_dim"] == 16


def test_a_checkpoint_of_another_format_is_refused(undisturbed, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    with pytest.raises(ValueError, match="has format 1; this version reads format 2"):
        checkpoints.latest(undisturbed)


def test_where_checkpoints_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(checkpoints.folder("gs://bucket/run")) == "gs://bucket/run/checkpoints"
    assert str(checkpoints.folder("runs/a")) == f"{tmp_path}/runs/a/checkpoints"


def test_restores_on_other_meshes(undisturbed, data_dir, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2)
    _, expected = restored(undisturbed, data_dir)
    for mesh in ({"data": 1, "fsdp": 8, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        _, state = restored(undisturbed, data_dir, mesh=mesh)
        jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_an_unwritable_workdir_is_an_error(data_dir, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot write to --workdir"):
        train_lib.train(tiny.config(data__data_dir=data_dir), str(tmp_path / "file" / "run"))


def test_the_description_counts(data_dir):
    experiment = make_experiment(tiny.config(data__data_dir=data_dir))
    mesh = sharding.make_mesh(**experiment.config.mesh)
    text = train_lib.describe(experiment, mesh)
    params = abstract_state(experiment.rin, experiment.optimizer, mesh).params
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert f"parameters: {count:,}" in text
    assert "tokens: 4 interface, 6 latents" in text
    assert "blocks_0/compute/attention/query/kernel" in text
    assert "FLOPs per image" in text


def test_utilisation_is_of_the_chips_peak():
    experiment = tiny.experiment()
    flops = cost.training_flops(experiment.rin, True)

    class Chips:
        size = 8
        devices = np.array([SimpleNamespace(device_kind="TPU v5 lite")] * 8)

    figures = train_lib.utilisation(experiment, Chips, images_per_second=4e6)
    assert figures["images_per_second_per_chip"] == 5e5
    assert figures["mfu_percent"] == pytest.approx(100 * 4e6 * flops / (8 * 197e12))
    here = train_lib.utilisation(experiment, sharding.make_mesh(8, 1, 1), 8.0)
    assert here == {"images_per_second_per_chip": 1.0}
