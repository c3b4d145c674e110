"""Checkpoints on disk: damage is found and gone round, other devices and networks are served."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.checkpointing.checkpoints import Policy
from rin_jax.runtime import sharding
from rin_jax.sampling.weights import abstract_params, load_ema
from rin_jax.training import resume
from rin_jax.training.state import abstract_state
from tests import tiny

STEPS = (2, 4, 6)


def state_at(experiment, mesh, step):
    """A state that differs from step to step."""
    return tiny.state(experiment, mesh, step).replace(step=step)


@pytest.fixture(scope="module")
def experiment():
    return tiny.experiment()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def states(experiment, mesh):
    """A state at each of STEPS."""
    return {step: state_at(experiment, mesh, step) for step in STEPS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, experiment, states):
    """A workdir with a checkpoint of each of STEPS."""
    workdir = tmp_path_factory.mktemp("saved")
    tiny.save(workdir, experiment, states)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(step):
    path = largest(step / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete_file(step):
    largest(step / "opt_state").unlink()


def delete_part(step):
    shutil.rmtree(step / "ema_decay_0.9")


def half_written(step):
    for path in list(step.iterdir()):
        if path.name in ("_CHECKPOINT_METADATA", "commit_success.txt", "opt_state"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def change_config(step):
    path = step / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert '"images_read": ' in text
    path.write_text(text.replace('"images_read": ', '"images_read": 1'))


def cut_metadata(step):
    path = step / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text()[:-40])


def flip_bits(step):
    """One bit in the middle of every large file of one part."""
    flipped = 0
    for path in (step / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 4000:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))
            flipped += 1
    assert flipped


DAMAGE = (
    truncate, delete_file, delete_part, half_written, empty, change_config, cut_metadata, flip_bits,
)  # fmt: skip


def resumed(experiment, mesh, workdir):
    found = resume.find_run(experiment, str(workdir))
    return resume.restore_state(experiment, mesh, str(workdir), *found)


def assert_equal(state, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(expected))


def test_the_newest_is_restored_with_its_facts(experiment, mesh, saved, states):
    state, known = resumed(experiment, mesh, saved)
    assert_equal(state, states[6])
    assert known["images_read"] == 96
    assert not (saved / "damaged").exists()


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_skipped_said_and_moved_aside(experiment, mesh, workdir, capsys, damage, states):
    damage(workdir / "checkpoints" / "6")
    state, known = resumed(experiment, mesh, workdir)
    assert_equal(state, states[4])
    assert known["images_read"] == 64
    printed = capsys.readouterr().out
    assert "checkpoint 6 is damaged: its" in printed or "checkpoint 6 is damaged: it" in printed
    assert "resumed from checkpoint 4" in printed
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["6-0"]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    keep_two = Policy(every_steps=1, keep=2, keep_every_steps=None, keep_best=0)
    tiny.save(workdir, experiment, {6: states[6]}, keep_two)  # nothing is there
    assert_equal(resumed(experiment, mesh, workdir)[0], states[6])


def test_flipped_bits_never_reach_the_parameters(experiment, mesh, saved, tmp_path, states):
    """Wherever a bit is flipped, a load fails or gives what was saved."""
    abstract = {"params": abstract_params(experiment.rin, mesh)}
    expected = states[6].params
    rng = np.random.default_rng(0)
    noticed = 0
    for number in range(12):  # each in a new folder: files that were read are cached
        folder = Path(shutil.copytree(saved / "checkpoints" / "6", tmp_path / str(number) / "6"))
        path = largest(folder / "params")
        data = bytearray(path.read_bytes())
        place = int(rng.integers(8 * len(data)))
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        (found,), _ = checkpoints.find(checkpoints.folder(str(tmp_path), str(number)))
        try:
            assert_equal(checkpoints.load(found, abstract)["params"], expected)
        except checkpoints.DamagedError:
            noticed += 1
    assert noticed >= 8


def test_two_damaged_are_both_skipped(experiment, mesh, workdir, states):
    truncate(workdir / "checkpoints" / "6")
    cut_metadata(workdir / "checkpoints" / "4")
    state, _ = resumed(experiment, mesh, workdir)
    assert_equal(state, states[2])
    assert {path.name for path in (workdir / "damaged").iterdir()} == {"6-0", "4-0"}


@pytest.mark.parametrize("damage", [truncate, cut_metadata])
def test_none_usable_is_an_error_and_moves_nothing(experiment, mesh, workdir, damage):
    for step in STEPS:
        damage(workdir / "checkpoints" / str(step))
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be used: checkpoint 6 is dam"):
        resumed(experiment, mesh, workdir)
    assert not (workdir / "damaged").exists()
    assert len(list((workdir / "checkpoints").iterdir())) == 3


def test_a_save_that_was_cut_off_does_not_count(experiment, mesh, workdir, states):
    folder = checkpoints.folder(str(workdir))
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp")
    assert_equal(resumed(experiment, mesh, workdir)[0], states[4])
    tiny.save(workdir, experiment, {6: states[6]})  # clears it away
    assert {path.name for path in folder.iterdir()} == {"2", "4", "6"}
    assert_equal(resumed(experiment, mesh, workdir)[0], states[6])


def test_samples_come_from_the_newest_good_one_and_move_nothing(
    experiment, mesh, workdir, capsys, states
):
    flip = largest(workdir / "checkpoints" / "6" / "ema_power_0.1")
    flip.write_bytes(flip.read_bytes()[:100])
    step, name, params = load_ema(experiment, mesh, str(workdir))
    assert (step, name) == (6, "decay_0.9")  # its own files are good
    assert_equal(params, states[6].emas["decay_0.9"])
    step, _, params = load_ema(experiment, mesh, str(workdir), "power_0.1")
    assert step == 4
    assert "checkpoint 6 is damaged" in capsys.readouterr().out
    assert_equal(params, states[4].emas["power_0.1"])
    assert not (workdir / "damaged").exists()


def test_an_average_that_was_not_kept(experiment, mesh, saved):
    with pytest.raises(ConfigError, match=r"--ema is power_0.2, but .* has decay_0.9, power_0.1"):
        load_ema(experiment, mesh, str(saved), "power_0.2")
    with pytest.raises(ConfigError, match=r"section ema also wants decay_0.5"):
        resume.find_run(tiny.experiment(ema__decays=(0.9, 0.5)), str(saved))
    fewer = tiny.experiment(ema__power_lengths=())
    found = resume.find_run(fewer, str(saved))
    state, _ = resume.restore_state(fewer, mesh, str(saved), *found)
    assert list(state.emas) == ["decay_0.9"]


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 1), (1, 8, 1), (2, 2, 2)])
def test_on_other_devices(experiment, mesh, saved, monkeypatch, shape, states):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2)
    count = int(np.prod(shape))
    other = sharding.make_mesh(*shape, jax.devices()[:count])
    state, _ = resumed(experiment, other, saved)
    assert_equal(state, states[6])
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, other))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
    if shape[1] > 1:
        assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


def test_eight_devices_to_one(experiment, mesh, tmp_path, monkeypatch, states):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2)
    eight = sharding.make_mesh(2, 2, 2)
    tiny.save(tmp_path, experiment, {4: state_at(experiment, eight, 4)})
    assert_equal(resumed(experiment, mesh, tmp_path)[0], states[4])


def test_other_classes_and_another_size(experiment, mesh, saved, capsys, states):
    changed = tiny.experiment(
        data__num_classes=12, data__image_size=16, train__init_from=str(saved)
    )
    beginning = resume.find_beginning(changed)
    state = resume.begin(changed, mesh, beginning)
    given = states[6].params
    np.testing.assert_array_equal(state.params["stem"]["kernel"], given["stem"]["kernel"])
    assert state.params["label"]["kernel"].shape == (12, 16)
    table, old = state.params["stem"]["positions"]["table"], given["stem"]["positions"]["table"]
    assert (old.shape, table.shape) == ((4, 8), (16, 8))
    expected = jax.image.resize(old.reshape(2, 2, 8), (4, 4, 8), "bicubic")
    np.testing.assert_allclose(table.reshape(4, 4, 8), expected, rtol=1e-6)
    for average in state.emas.values():
        assert_equal(average, state.params)
    assert int(state.step) == 0
    printed = capsys.readouterr().out
    assert "resized: stem/positions/table (16, 8) from (4, 8)" in printed
    assert "fresh: label/kernel (12, 16) from (10, 16)" in printed
    assert "arrays are taken over" in printed


def test_nothing_is_left_out_silently(mesh, saved, capsys):
    smaller = tiny.experiment(data__num_classes=0, train__init_from=str(saved))
    resume.begin(smaller, mesh, resume.find_beginning(smaller))
    assert "not used: label/bias, label/kernel" in capsys.readouterr().out


def test_a_beginning_that_is_not_there(tmp_path):
    lost = tiny.experiment(train__init_from=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="train.init_from is .*nothing.*no checkpoint"):
        resume.find_beginning(lost)


def test_positions_of_the_same_size_stay_and_others_are_refused():
    table = jax.random.normal(jax.random.key(0), (16, 3))
    np.testing.assert_allclose(resume.resize_positions(table, (16, 3)), table, atol=1e-6)
    assert resume.resize_positions(table, (15, 3)) is None
    assert resume.resize_positions(table, (4, 5)) is None
    ramp = np.linspace(0, 1, 8)[:, None, None] * np.ones((1, 8, 2))
    larger = resume.resize_positions(ramp.reshape(64, 2).astype(np.float32), (256, 2))
    column = np.asarray(larger).reshape(16, 16, 2)[:, 0, 0]
    assert (np.diff(column[2:-2]) > 0).all()


def test_the_metadata_is_that_of_the_moment_of_the_save(experiment, mesh, tmp_path):
    """Not those that they have become when the file is written."""
    known = {"counts": {"a": 1}}
    with checkpoints.Checkpoints(checkpoints.folder(str(tmp_path))) as saver:
        saver.save(1, {"params": state_at(experiment, mesh, 1).params}, known)
        known["counts"]["a"] = 2
    (found,), damaged = checkpoints.find(checkpoints.folder(str(tmp_path)))
    assert found.metadata == {"counts": {"a": 1}}
    assert not damaged


def test_what_is_kept(experiment, mesh, tmp_path, states):
    parts = {"params": states[2].params}
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 9.0, 5: 8.0, 6: 7.0}
    folder = checkpoints.folder(str(tmp_path))
    with checkpoints.Checkpoints(folder, Policy(1, 2, 3, 1)) as saver:
        for step, loss in losses.items():
            saver.save(step, parts, {}, loss)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {2, 3, 5, 6}  # the best, of every third step, the newest


def test_the_metadata_is_readable(saved):
    text = (saved / "checkpoints" / "6" / "_CHECKPOINT_METADATA").read_text()
    metadata = json.loads(text)["custom_metadata"]
    assert metadata["format"] == checkpoints.FORMAT
    assert metadata["facts"]["config"]["model"]["latent_dim"] == 16
