"""Damaged workdirs: each damage is repaired, gone round or refused with a sentence."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.checkpointing.checkpoints import Checkpoints, Policy, folder
from rin_jax.runtime import workdir_lock
from rin_jax.sampling.weights import load_ema
from rin_jax.training import curves, resume
from tests import tiny

LOSSES = {2: 0.5, 4: 0.25, 6: 0.75}


@pytest.fixture(scope="module")
def experiment():
    return tiny.experiment()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, experiment):
    """A workdir with checkpoints of LOSSES, which have a single array, the step."""
    workdir = tmp_path_factory.mktemp("saved")
    metadata = {"config": experiment.config.to_dict(), "emas": list(experiment.averages)}
    with Checkpoints(folder(str(workdir))) as saver:
        for step, loss in LOSSES.items():
            saver.save(step, {"params": {"w": jax.numpy.full(3, step)}}, metadata, loss)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def found(workdir: Path) -> tuple[list[int], dict[int, str]]:
    good, damaged = checkpoints.find(folder(str(workdir)))
    return [one.step for one in good], damaged


def test_a_checkpoint_under_another_number_is_not_taken_for_it(workdir):
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "8")
    (workdir / "checkpoints" / "6").rename(workdir / "checkpoints" / "7")
    good, damaged = found(workdir)
    assert good == [4, 2]
    renamed = "its folder was renamed or copied: it was saved at step"
    assert damaged == {8: f"{renamed} 2", 7: f"{renamed} 6"}


def test_two_checkpoints_that_were_exchanged_are_both_noticed(workdir):
    place = workdir / "checkpoints"
    for old, new in (("4", "aside"), ("6", "4"), ("aside", "6")):
        (place / old).rename(place / new)
    good, damaged = found(workdir)
    assert good == [2]
    assert set(damaged) == {4, 6}


def test_the_step_of_a_checkpoint_cannot_be_changed_with_its_name(workdir):
    path = workdir / "checkpoints" / "6" / "_CHECKPOINT_METADATA"
    assert path.read_text().count('"step": 6') == 1
    path.write_text(path.read_text().replace('"step": 6', '"step": 8'))
    (workdir / "checkpoints" / "6").rename(workdir / "checkpoints" / "8")
    assert found(workdir) == ([4, 2], {8: "its metadata was changed after it was saved"})


def test_checkpoints_that_do_not_say_their_step_are_read_as_before(workdir):
    path = workdir / "checkpoints" / "6" / "_CHECKPOINT_METADATA"
    whole = json.loads(path.read_text())
    custom = whole["custom_metadata"]
    del custom["step"], custom["sha256"]
    custom["sha256"] = checkpoints._hash(custom)
    path.write_text(json.dumps(whole))
    assert found(workdir) == ([6, 4, 2], {})
    shutil.copytree(path.parent, path.parent.parent / str(2**31))  # a step is int32
    good, damaged = found(workdir)
    assert (good, set(damaged)) == ([6, 4, 2], {2**31})


@pytest.mark.parametrize("name", ["0150", "²", "1e3", "6 ", "-6", "6.orbax-checkpoint-tmp"])
def test_a_folder_whose_name_is_not_a_step_is_not_a_checkpoint(workdir, name):
    shutil.copytree(workdir / "checkpoints" / "6", workdir / "checkpoints" / name)
    assert found(workdir) == ([6, 4, 2], {})


def test_a_step_that_no_run_reaches_is_damage(workdir):
    (workdir / "checkpoints" / "99999999999999999999").mkdir()
    good, damaged = found(workdir)
    assert good == [6, 4, 2]
    assert set(damaged) == {99999999999999999999}


ODD = [
    b"\xff\xfe", b"", b"{", b"5", b"null", b"[0.5]", b"{}", b'{"loss": "0.5"}', b'{"loss": null}',
    b'{"loss": NaN}', b"[" * 100_000, b'{"loss": 1' + b"0" * 400 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("odd", [*ODD, None, "folder", "file"])
def test_a_loss_that_cannot_be_read_stops_nothing(workdir, odd, capsys):
    """Of an older checkpoint, whose rank among the best is asked at each save."""
    path = workdir / "checkpoints" / "2" / "metrics" / "metrics"
    path.unlink()
    if odd == "folder":
        path.mkdir()
    elif odd == "file":
        path.parent.joinpath("commit_success.txt").unlink(missing_ok=True)
        path.parent.rmdir()
        path.parent.write_text("x")
    elif odd is not None:
        path.write_bytes(odd)
    policy = Policy(every_steps=1, keep=1, keep_every_steps=None, keep_best=1)
    with Checkpoints(folder(str(workdir)), policy) as saver:
        saver.save(8, {"params": {"w": jax.numpy.full(3, 8)}}, {}, 0.5)
    kept = {int(entry.name) for entry in (workdir / "checkpoints").iterdir()}
    assert kept == {2, 4, 8}  # without a loss, the best, the newest
    said = "the loss of checkpoint 2" in capsys.readouterr().out
    assert said == (odd not in (None, "file"))  # Orbax takes these as none


@pytest.mark.parametrize("name", ["best", "reconstructed/power_0.2"])
def test_averages_kept_elsewhere_that_are_damaged_are_refused(experiment, workdir, name):
    shutil.copytree(workdir / "checkpoints" / "2", workdir / name / "7")
    with pytest.raises(ConfigError, match=rf"no checkpoint in .*{name} can be used: .* at step 2"):
        load_ema(experiment, None, str(workdir), Path(name).name)


LINES = [
    "5", "null", "{}", "[]", '"step"', '{"step": "3"}', '{"step": null}', '{"step": 1.5}',
    '{"step": true}', '{"loss": 1.0}', "[" * 100_000, '{"step": 2, "lo', "", "\0\0",
]  # fmt: skip


def test_lines_that_are_not_of_curves_are_dropped_and_said(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "samples/a": step / 8}) for step in (1, 2, 3)]
    lines = [*good[:1], *LINES, *good[1:]]
    path.write_bytes(b"\xff\xfe\n" + "".join(f"{line}\n" for line in lines).encode())
    assert curves.last_step(tmp_path, "samples/") == 3
    curves.Writer(str(tmp_path), 2, active=True).close()
    assert path.read_text().splitlines() == good[:2]
    assert f"damaged lines are dropped ({len(LINES) + 1})" in capsys.readouterr().out


def test_curves_that_are_gone_are_said(tmp_path, capsys):
    curves.Writer(str(tmp_path), 0, active=True).close()
    assert not capsys.readouterr().out
    curves.Writer(str(tmp_path), 2, active=True).close()
    assert "metrics.jsonl is not there; it begins at step 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*resume.FOLDERS, "metrics.jsonl"])
def test_a_file_for_a_folder_is_refused(experiment, workdir, name):
    if name in resume.FOLDERS:
        shutil.rmtree(workdir / name, ignore_errors=True)
        (workdir / name).write_text("")
    else:
        (workdir / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is a f.*; move it away"):
        resume.find_run(experiment, str(workdir))


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/*"])
def test_curves_without_checkpoints_are_not_started_anew(experiment, workdir, gone):
    writer = curves.Writer(str(workdir), 0, active=True)
    writer.scalars(1, {"loss": 1.0})
    writer.close()
    for path in workdir.glob(gone):
        shutil.rmtree(path)
    with pytest.raises(ConfigError, match=r"has metrics.jsonl and events of a run, but none of"):
        resume.find_run(experiment, str(workdir))
    resume.mark_of_unsaved(str(workdir)).write_text("")  # was killed before its first checkpoint
    assert resume.find_run(experiment, str(workdir)) == ([], {})


def test_half_a_picture_is_drawn_again(tmp_path):
    writer = curves.Writer(str(tmp_path), 0, active=True)
    writer.image(7, "progress", np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    path = curves.image_path(tmp_path, "progress", 7)
    whole = path.read_bytes()
    assert not writer.lacks(7, "progress")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for odd in (b"", whole[:4], whole[: len(whole) // 2], whole[:-12], bytes(len(whole)), flipped):
        path.write_bytes(odd)
        assert writer.lacks(7, "progress")
    writer.close()


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"{}", b"5", b"null", b""])
def test_a_lock_file_that_another_holds_may_hold_anything(tmp_path, text):
    with workdir_lock.hold(str(tmp_path)):
        (tmp_path / "lock.json").write_bytes(text)
        with (
            pytest.raises(ConfigError, match=r"another run writes .* it has only just begun"),
            workdir_lock.hold(str(tmp_path)),
        ):
            pass
