"""The wheel: it needs no repository, and has the experiments and the console command."""

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def installed(tmp_path_factory, root):
    """A folder in which the wheel is installed, without what it depends on."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("wheel")
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "clone"
    files = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in files or pytest.skip("not in a clone"):
        if (root / name).exists() and name.startswith(("rin_jax", "configs", "setup", "pyproject",
                                                       "README", "LICENSE")):  # fmt: skip
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "install", *offline, "--target", folder, source], check=True)
    return folder


def run(installed, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [installed / "bin" / "rin-jax", *arguments],
        cwd=installed, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_console_command_finds_packaged_experiments(installed):
    told = run(installed, "--config=digits:tiny", "--mode=prepare", "--config.data.data_dir=tfds")
    assert told.returncode == 0, told.stderr
    assert (installed / "tfds" / "digits").exists()
    again = run(installed, "--config=imagenet256", "--mode=export", "--workdir=a")
    assert again.returncode == 2
    assert "--mode=export needs --to=DIR" in again.stderr


def test_help_is_that_of_the_module(installed):
    told = run(installed, "--help")
    assert told.returncode == 0
    assert "--workdir" in told.stdout
    assert "Configuration file, or the name of one in configs/" in " ".join(told.stdout.split())
