"""Folders and buckets behave alike where the package relies on it."""

import pytest
from etils import epath

from rin_jax import ConfigError
from rin_jax.runtime import files
from tests.storage import Fault


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """A folder that is not there yet."""
    if request.param == "folder":
        return epath.Path(tmp_path) / "run"
    request.getfixturevalue("storage")
    return epath.Path("gs://bucket/run")


def test_a_folder_is_moved_with_all_that_is_in_it(place):
    source, target = place / "checkpoints" / "10", place / "damaged" / "10-0"
    for name, text in {"a": "1", "deep/b": "2", "deep/er/c": ""}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    other = place / "checkpoints" / "100"
    other.mkdir(parents=True, exist_ok=True)
    (other / "a").write_text("stays")
    files.move(source, target)
    assert not source.exists()
    assert [(target / x).read_text() for x in ("a", "deep/b", "deep/er/c")] == ["1", "2", ""]
    assert [path.name for path in (place / "checkpoints").iterdir()] == ["100"]
    assert (other / "a").read_text() == "stays"


@pytest.mark.parametrize("kind", ["error", "cut", "lost"])
def test_a_move_in_a_bucket_survives_what_goes_wrong_once(storage, kind):
    for name in "abc":
        storage.put("bucket", f"run/checkpoints/10/{name}", name.encode())
    storage.faults.append(Fault(kind, "10/a/moveTo", count=1))
    files.move(epath.Path("gs://bucket/run/checkpoints/10"), epath.Path("gs://bucket/run/aside"))
    assert storage.happened[-1] == kind
    assert storage.names("bucket") == [f"run/aside/{name}" for name in "abc"]


def test_what_others_write_into_a_bucket_is_seen_at_once(storage):
    folder = epath.Path("gs://bucket/run")
    assert not folder.exists()
    storage.put("bucket", "run/a", b"")
    assert [path.name for path in folder.iterdir()] == ["a"]
    storage.put("bucket", "run/b", b"")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert (folder / "b").exists()


def test_other_buckets_and_missing_libraries_are_refused_with_a_remedy(monkeypatch):
    files.check_address("--workdir", "runs/digits")
    files.check_address("--workdir", "gs://bucket/run")
    with pytest.raises(ConfigError, match=r"--workdir is s3://bucket/run, .* mount the bucket"):
        files.check_address("--workdir", "s3://bucket/run")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"gcsfs and .* pip install -e '\.\[gcs\]'"):
        files.check_address("--workdir", "gs://bucket/run")
