"""The training job: it resumes exactly, does nothing twice, and stops on bad numbers."""

import dataclasses
import json
import operator
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints, restore
from rin_jax.data.source import Source
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.jobs import sample
from rin_jax.jobs import train as train_lib
from rin_jax.network import cost
from rin_jax.runtime import sharding
from rin_jax.sampling import grids
from rin_jax.sampling.generate import make_generate
from rin_jax.sampling.weights import load_ema
from rin_jax.training import curves, loop
from rin_jax.training.metrics import SCALARS, NotFiniteError
from rin_jax.training.state import abstract_state, items_of, state_of
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def compiled_once(one_device):
    """Keeps compiled steps and samplers: most tests here run the same programs."""

    def remembering(make, *fields):
        known = {}

        def remember(experiment, *arguments):
            key = str(operator.attrgetter(*fields)(experiment.config))
            if key not in known:
                known[key] = make(experiment, *arguments)
            return known[key]

        return remember

    with pytest.MonkeyPatch.context() as patch:
        step = remembering(train_lib.compile_train_step, "model", "optimizer", "train.num_steps")
        patch.setattr(train_lib, "compile_train_step", step)
        patch.setattr(loop, "make_generate", remembering(loop.make_generate, "model", "sampler"))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """The workdir of a run that nothing interrupted."""
    workdir = str(tmp_path_factory.mktemp("undisturbed"))
    train_lib.train(tiny.config(data__data_dir=data_dir), workdir)
    return workdir


def restored(workdir: str, data_dir: str, **changes):
    """(step, state) of the newest checkpoint."""
    experiment = make_experiment(tiny.config(data__data_dir=data_dir, **changes))
    mesh = sharding.make_mesh(**experiment.config.mesh)
    abstract = abstract_state(experiment, mesh)
    found, _ = restore.find(workdir)
    saved, items, damaged = restore.load_newest(found, items_of(abstract), workdir)
    assert not damaged
    state = state_of(items, saved.step, abstract)
    return saved.step, jax.device_get(state)


def newest(workdir) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    found, _ = checkpoints.find(checkpoints.folder(workdir))
    return found[0].step if found else 0


def metrics(workdir) -> list[dict]:
    """Lines of metrics.jsonl without the timing."""
    with open(f"{workdir}/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


# means over the steps between two log lines
NOISY = (*SCALARS.values(), "train/loss_by_logsnr/")


class InterruptedRunError(Exception):
    """Stands for whatever ends a run."""


def test_nothing_goes_to_a_device_that_nobody_put_there(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.sharding, "global_batch", lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train_lib.train(tiny.config(data__data_dir=data_dir), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_interrupted_and_resumed_is_bit_identical(
    undisturbed, data_dir, tmp_path, monkeypatch, stop
):
    workdir = str(tmp_path / "run")
    open_batches = train_lib.open_batches

    def broken(experiment, mesh, source, images_read):
        batches = open_batches(experiment, mesh, source, images_read)
        for number, batch in enumerate(batches, start=1):
            if number > stop:
                raise InterruptedRunError
            yield batch

    config = tiny.config(data__data_dir=data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(train_lib, "open_batches", broken)
        with pytest.raises(InterruptedRunError):
            train_lib.train(config, workdir)
    resumed = newest(workdir)
    assert resumed == {1: 0, 3: 3, 4: 4}[stop]  # every two, before samples
    assert Path(workdir, "unsaved").exists() == (not resumed)  # else it is not started anew
    train_lib.train(config, workdir)

    step, state = restored(workdir, data_dir)
    expected_step, expected = restored(undisturbed, data_dir)
    assert step == expected_step == 6
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    lines, expected_lines = metrics(workdir), metrics(undisturbed)
    if resumed % 2:  # between two log lines: the means of the next are of the steps since then
        for line in (lines[resumed // 2], expected_lines[resumed // 2]):
            for name in [name for name in line if name.startswith(NOISY)]:
                del line[name]
    assert lines == expected_lines


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


def test_a_longer_run_goes_on_and_may_clip_gradients_from_there(undisturbed, data_dir, tmp_path):
    workdir = str(tmp_path / "copy")
    shutil.copytree(undisturbed, workdir)
    config = tiny.config(data__data_dir=data_dir, train__num_steps=8, optimizer__clip_norm=1.0)
    train_lib.train(config, workdir)
    assert newest(workdir) == 8
    assert [line["step"] for line in metrics(workdir)] == [2, 4, 6, 8]


def test_the_share_of_time_that_waits_for_data_is_logged(data_dir, tmp_path, monkeypatch):
    open_batches = train_lib.open_batches

    def slow(*args):
        for batch in open_batches(*args):
            time.sleep(0.3)
            yield batch

    monkeypatch.setattr(train_lib, "open_batches", slow)
    config = tiny.config(
        data__data_dir=data_dir, train__sample_every_steps=6, checkpoint__every_steps=6
    )
    train_lib.train(config, str(tmp_path))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").open())
    assert all(50 < line["time/input_wait_percent"] < 100 for line in lines)


def test_processes_compare_the_data_that_they_read(data_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(
        train_lib.processes, "agree", lambda question, **facts: asked.append((question, facts))
    )
    for split in ("train", "train[:100]", "train"):
        config = tiny.config(data__data_dir=data_dir, data__split=split)
        train_lib.open_data(make_experiment(config))
    assert asked[0] == asked[2]
    assert asked[0][0] == asked[1][0] == "reading digits"
    assert all(asked[0][1][fact] != asked[1][1][fact] for fact in ("records", "fingerprint"))


def test_what_a_run_leaves(undisturbed):
    lines = metrics(undisturbed)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert list(lines[0])[:2] == ["step", "train/loss"]
    figures = {name for name in lines[0] if name.count("/") < 2}
    assert figures == {
        "step", "train/loss", "train/lr", "train/skipped_steps",
        "norms/grad", "norms/update", "norms/param",
    }  # fmt: skip
    modules = {name.split("/")[2] for name in lines[0] if name.startswith("norms/grad/")}
    assert {"stem", "blocks_0.read", "blocks_0.compute", "blocks_0.write", "readout"} <= modules
    assert {f"norms/update_ratio/{module}" for module in modules} <= set(lines[-1])
    squares = sum(lines[1][f"norms/grad/{module}"] ** 2 for module in modules)
    assert squares > 0
    for step in (3, 6):
        image = Image.open(f"{undisturbed}/progress/{step:08d}.png")
        assert image.size == (10 * 50 + 2, 10 * 50 + 2)  # ten classes down, ten samples across
        assert np.asarray(image).std() > 10
    events = EventAccumulator(f"{undisturbed}/events").Reload()
    assert {name for name in lines[-1] if "/" in name} <= set(events.Tags()["scalars"])
    groups = {name.split("/")[0] for kind in ("scalars", "images") for name in events.Tags()[kind]}
    assert groups == {"train", "norms", "time", "samples"}
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == [2, 4, 6]
    assert np.isclose([p.value for p in points], [line["train/loss"] for line in lines]).all()
    assert events.Tags()["images"] == ["samples/progress"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text.split("```")[1].removeprefix("json")) == json.loads(
        Path(undisturbed, "config.json").read_text()
    )
    with open(f"{undisturbed}/config.json") as file:
        assert json.load(file)["model"]["depth"] == 1
    assert not Path(undisturbed, "unsaved").exists()


def test_the_held_out_loss_is_a_curve_that_a_killed_run_makes_up_for(
    undisturbed, data_dir, tmp_path, monkeypatch
):
    def other_split(source, name):
        return Source(source._builder, dataclasses.replace(source.data, split="train[64:100]"))

    monkeypatch.setattr(Source, "other_split", other_split)
    workdir, name = tmp_path / "copy", curves.HELD_OUT
    shutil.copytree(undisturbed, workdir)
    config = tiny.config(data__data_dir=data_dir, train__num_steps=8,
                         evaluation__held_out_every_steps=7)  # fmt: skip
    train_lib.train(config, str(workdir))
    found = {line["step"]: line[name] for line in metrics(workdir) if name in line}
    assert list(found) == [7, 8]
    path = workdir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    train_lib.train(config, str(workdir))
    assert {line["step"]: line[name] for line in metrics(workdir) if name in line} == found


def test_the_same_noise_every_time(undisturbed, data_dir):
    """The grid at the last step is what sampling that checkpoint gives again."""
    config = tiny.config(data__data_dir=data_dir)
    experiment = make_experiment(config)
    mesh = device_mesh(experiment)
    params = load_ema(experiment, mesh, undisturbed).params
    generate = make_generate(experiment, mesh, config.seed)
    again = generate(params, np.arange(100), {"label": grids.grid_labels(10)})
    expected = np.asarray(Image.open(f"{undisturbed}/progress/00000006.png"))
    np.testing.assert_array_equal(grids.grid(again, grids.COLUMNS)[..., 0], expected)
    folder = sample.sample(
        config, undisturbed, num=10, classes=["0"], ema=None, checkpoint=None, export=None,
        show=False, windows=None, rollout_latents="reset",
    )  # fmt: skip
    one = np.load(folder / "samples.npz")["images"]
    np.testing.assert_array_equal(one, again[:10])  # class 0 alone: the grid's first row


def test_bad_numbers_are_skipped_then_stop_the_run(undisturbed, data_dir, tmp_path, capsys):
    workdir = str(tmp_path / "copy")
    shutil.copytree(undisturbed, workdir)
    changes = {"train__num_steps": 12, "optimizer__learning_rate": 1e38}
    message = r"step (\d+): .* learning rate .*. 3 steps in a row were not finite"
    with pytest.raises(NotFiniteError, match=message):
        train_lib.train(tiny.config(data__data_dir=data_dir, **changes), workdir)
    printed = capsys.readouterr().out
    assert printed.count("; the step is skipped") == 2
    assert "modules have such gradients" in printed or "all gradients" in printed
    _, state = restored(workdir, data_dir, **changes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_another_architecture_is_refused(undisturbed, data_dir):
    config = tiny.config(data__data_dir=data_dir, model__latent_dim=32, train__num_steps=9)
    with pytest.raises(ConfigError, match=r"model.latent_dim: checkpoint 16, now 32"):
        train_lib.train(config, undisturbed)
    found, _ = checkpoints.find(checkpoints.folder(undisturbed))
    assert found[0].config["model"]["latent_dim"] == 16
    with open(f"{undisturbed}/config.json") as file:
        assert json.load(file)["model"]["latent_dim"] == 16


def test_a_checkpoint_of_another_format_is_refused(undisturbed, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 3)
    with pytest.raises(ValueError, match="has checkpoint format 2; this version reads format 3"):
        checkpoints.find(checkpoints.folder(undisturbed))


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
    params = abstract_state(experiment, mesh).params
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert "tokens: 4 interface, 6 latents" in text
    assert "FLOPs per image" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("|") and "%" in line]
    sizes = {name: int(size.replace(",", "")) for _, name, _, size, *_ in rows}
    assert sizes.pop("all") == sum(sizes.values()) == count
    compute = params["blocks_0"]["compute"]
    assert sizes["blocks_0.compute"] == sum(leaf.size for leaf in jax.tree.leaves(compute))


def test_utilisation_is_of_the_chips_peak():
    experiment = tiny.experiment()
    flops = cost.training_flops(experiment.rin, True)

    class Chips:
        size = 8
        devices = np.array([SimpleNamespace(device_kind="TPU v5 lite")] * 8)

    figures = loop.utilisation(experiment, Chips, images_per_second=4e6)
    assert figures["time/images_per_second_per_chip"] == 5e5
    assert figures["time/mfu_percent"] == pytest.approx(100 * 4e6 * flops / (8 * 197e12))
    here = loop.utilisation(experiment, sharding.make_mesh(8, 1, 1), 8.0)
    assert here == {"time/images_per_second_per_chip": 1.0}


def test_a_log_line_fits_and_is_aligned(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.console.time, "monotonic", lambda: now[0])
    lines = []
    for seconds, loss, mfu, skipped in ((0.001, 0.00321, 41.7, 0), (90.0, 98.7, 3.2, 99)):
        progress = loop.console.Progress(0, 300_000, 1024)
        with progress.spending("input_wait"):
            now[0] += seconds
        now[0] += 1.0
        figures = progress.update(100) | {"train/loss": loss, "train/skipped_steps": skipped}
        lines.append(loop.log_line(progress, figures | {"time/mfu_percent": mfu}))
    assert lines[0].startswith("loss  0.0032  left ")
    assert max(map(len, lines)) <= 100
    for word in (" left", " step", "images/s", " wait", " mfu"):
        assert lines[0].index(word) == lines[1].index(word), lines
    assert "wait  99 %  mfu   3 %  99 skipped" in lines[1]
    numbers = re.findall(r"[\d.,:]+", lines[0])
    assert len(set(numbers)) == len(numbers)  # none is there twice


@pytest.mark.parametrize("last", [False, True])
def test_what_was_lost_after_a_save_is_made_up_for(undisturbed, data_dir, tmp_path, last):
    """Killed when the checkpoint was complete and the samples of its step were not, or half."""
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    if not last:
        shutil.rmtree(workdir / "checkpoints" / "6")
    step = newest(str(workdir))
    config = tiny.config(data__data_dir=data_dir, train__sample_every_steps=step)
    picture = workdir / "progress" / f"{step:08d}.png"
    if last:
        picture.write_bytes(picture.read_bytes()[:99])
    assert last or not picture.exists()
    train_lib.train(config, str(workdir))
    assert picture.exists()
    if last:
        assert picture.read_bytes() == Path(undisturbed, "progress", picture.name).read_bytes()
