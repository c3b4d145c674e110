"""The storage that tests run against, asked by each of the clients that the package has."""

import os

import fsspec
import pytest
import tensorstore as ts
from google.cloud import storage as google

from tests.storage import Fault

ANY = os.urandom(700_000) + b"\r\n--==0==\n\n"  # what looks like the end of an upload's part


def test_each_client_reads_what_each_has_written(storage):
    gcsfs, kept = fsspec.filesystem("gcs"), ts.KvStore.open("gs://bucket/").result()
    blobs = google.Client().bucket("bucket")
    gcsfs.pipe_file("bucket/a b", ANY)
    with gcsfs.open("bucket/large", "wb", block_size=2**18) as file:
        file.write(ANY)
    kept.write("c", ANY).result()
    blobs.blob("d").upload_from_string(ANY)
    for name in ("a b", "large", "c", "d"):
        assert storage.get("bucket", name).data == ANY
        assert gcsfs.cat_file(f"bucket/{name}") == ANY
        assert gcsfs.cat_file(f"bucket/{name}", 5, 99) == ANY[5:99]
        assert kept.read(name).result().value == ANY
        assert blobs.blob(name).download_as_bytes() == ANY
    names = [f"bucket/{name}" for name in ("a b", "c", "d", "large")]
    assert gcsfs.ls("bucket", detail=False) == names
    assert kept.list().result() == [b"a b", b"c", b"d", b"large"]


def test_only_one_of_two_writes_on_the_same_condition_is_done(storage):
    kept = ts.KvStore.open("gs://bucket/").result()
    nothing = kept.read("a").result().stamp.generation
    first = kept.write("a", b"1", if_equal=nothing).result().generation
    assert first
    assert not kept.write("a", b"2", if_equal=nothing).result().generation
    assert kept.write("a", b"3", if_equal=first).result().generation
    assert not kept.write("a", None, if_equal=first).result().generation
    assert storage.get("bucket", "a").data == b"3"


def test_listings_have_pages_folders_and_a_past(storage):
    gcsfs = fsspec.filesystem("gcs")
    for number in range(1203):
        storage.put("bucket", f"run/{number:04d}/x", b"")
    assert len(gcsfs.ls("bucket/run")) == len(gcsfs.find("bucket/run")) == 1203
    storage.faults.append(Fault("stale", seconds=60.0))
    assert not gcsfs.exists("bucket/run")


@pytest.mark.parametrize("kind", ["error", "lost"])
def test_clients_survive_one_fault_of_each_kind(storage, kind):
    gcsfs, kept = fsspec.filesystem("gcs"), ts.KvStore.open("gs://bucket/").result()
    for write, read in (
        (lambda: gcsfs.pipe_file("bucket/a", ANY), lambda: gcsfs.cat_file("bucket/a")),
        (lambda: kept.write("a", ANY).result(), lambda: kept.read("a").result().value),
    ):
        for action in (write, read):
            storage.faults[:] = [Fault(kind, count=1)]
            found = action()
            assert storage.happened[-1] == kind
            assert storage.faults[0].count == 0
        assert found == ANY
