"""The launch scripts against stubs that record what they are called with, argument by argument."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
STUB = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    taken = sys.stdin.read() if sys.argv[1:] == ["apply", "-f", "-"] else None
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], taken]) + "\\n")
print(os.environ.get("STATE", ""))
sys.exit(int(os.environ.get("CODE", "0")))
"""
# Arguments that a careless script would break.
ARGUMENTS = ["--config=configs/digits.py", "--config.data.name=it's \"a\" $HOME *", "--classes=a b"]
POSIX = "--config=configs/digits.py '--config.data.name=it'\\''s \"a\" $HOME *' '--classes=a b'"
MAIN = f"python -u -m rin_jax.main {POSIX}"


@pytest.fixture
def call(tmp_path):
    """call(script, *arguments, **environment): (the commands that it ran, its result)."""
    for name in ("gcloud", "kubectl", "gcluster", "sbatch", "ssh"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(script, *arguments, **environment):
        calls.write_text("")
        result = subprocess.run(
            [LAUNCH / script, *arguments],
            cwd=tmp_path,
            env={
                **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls),
                "PYTHON": sys.executable, **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )  # fmt: skip
        return [json.loads(line) for line in calls.read_text().splitlines()], result

    return run


def recorded(call, *arguments, **environment) -> list[list[str]]:
    """What a script that succeeds calls; its dry run prints exactly that and calls nothing."""
    commands, result = call(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    commands = [command[:-1] for command in commands]
    options = arguments.index("--") if "--" in arguments else len(arguments)
    dry = (*arguments[:options], "--dry-run", *arguments[options:])
    silent, printed = call(*dry, **environment)
    assert silent == []
    words = shlex.split(printed.stdout)
    if commands[0][0] == "ssh":  # they ran side by side
        assert sorted(words) == sorted(word for command in commands for word in command)
    else:
        if words[0] == "git":  # no stub
            words = words[words.index("HEAD") + 1 :]
        assert words == [word for command in commands for word in command]
    return commands


def tpu(call, command, *rest) -> list[list[str]]:
    """What launch/tpu_vm.sh calls for run1 in zone z."""
    return recorded(call, "tpu_vm.sh", command, "run1", "--zone", "z", *rest)


def test_every_script_is_clean_and_has_a_dry_run():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [shellcheck, "--external-sources", *SCRIPTS, ROOT / ".ci" / "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for script in SCRIPTS:
        if script.name not in ("shell.sh", "again.sh"):
            text = script.read_text()
            assert "set -euo pipefail" in text
            assert "\noptions " in text  # which knows --dry-run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--type", "v5litepod-16", "--spot", "--project", "my project"],
            ["--project=my project", "--node-id=run1", "--accelerator-type=v5litepod-16",
             "--runtime-version=v2-alpha-tpuv5-lite", "--spot"],
        ),
        (
            ["--type", "v6e-64", "--reserved", "--slices", "2"],
            ["--node-count=2", "--node-prefix=run1", "--accelerator-type=v6e-64",
             "--runtime-version=v2-alpha-tpuv6e", "--reserved"],
        ),
        (
            ["--type", "v5p-32", "--runtime", "newer"],
            ["--node-id=run1", "--accelerator-type=v5p-32", "--runtime-version=newer"],
        ),
    ],
)  # fmt: skip
def test_create_a_tpu(call, options, expected):
    (command,) = tpu(call, "create", *options)
    start = ["gcloud", "compute", "tpus", "queued-resources", "create", "run1", "--zone=z"]
    assert command == start + expected


@pytest.mark.parametrize(("state", "code"), [("ACTIVE", 0), ("FAILED", 1), ("SUSPENDED", 1)])
def test_wait_for_a_tpu(call, state, code):
    ((*command, _),), result = call("tpu_vm.sh", "wait", "run1", "--zone", "z", STATE=state)
    assert command == [
        *("gcloud", "compute", "tpus", "queued-resources", "describe", "run1", "--zone=z"),
        "--format=value(state.state)",
    ]
    assert result.returncode == code
    assert state in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("slices", "nodes"), [([], ["run1"]), (["--slices", "2"], ["run1-0", "run1-1"])]
)
def test_set_up_and_run_on_all_hosts(call, slices, nodes):
    commands = tpu(call, "setup", *slices)
    archive = "/tmp/rin_jax.tar.gz"
    assert [c[:7] for c in commands[: len(nodes)]] == [
        ["gcloud", "compute", "tpus", "tpu-vm", "scp", archive, f"{node}:{archive}"]
        for node in nodes
    ]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert [c[:-1] for c in commands[len(nodes) :]] == [
        [*ssh, node, "--zone=z", "--worker=all"] for node in nodes
    ]
    assert "uv pip install --quiet --python=.venv/bin/python" in commands[-1][-1]

    commands = tpu(call, "run", *slices, "--", *ARGUMENTS)
    assert [c[:-1] for c in commands] == [
        [*ssh, node, "--zone=z", "--worker=all"] for node in nodes
    ]
    for command in commands:
        assert command[-1].startswith("--command=cd rin_jax\nnohup launch/again.sh .venv/bin/")
        assert f"{MAIN} > ~/rin_jax.log" in command[-1]


def test_logs_stop_and_delete(call):
    (logs,) = tpu(call, "logs", "--slices", "2")
    assert logs[4:] == [
        "ssh", "run1-0", "--zone=z", "--worker=0", "--command=tail -n 200 -F ~/rin_jax.log",
    ]  # fmt: skip
    (stop,) = tpu(call, "stop")
    assert stop[4:] == [
        *("ssh", "run1", "--zone=z", "--worker=all"),
        "--command=kill -TERM $(cat ~/rin_jax.pid)",
    ]
    (delete,) = tpu(call, "delete", "--slices", "2")
    assert delete[3:] == ["queued-resources", "delete", "run1", "--zone=z", "--force", "--quiet"]


def test_cluster_toolkit_and_pathways(call):
    options = ["--cluster", "c", "--location", "z", "--image", "i:1", "--type", "v5e-16"]
    start = ["gcluster", "job", "submit", "--name", "run1", "--cluster", "c", "--location", "z"]
    (command,) = recorded(call, "gcluster.sh", "run1", *options, "--", *ARGUMENTS)
    assert command == [
        *start, "--image", "i:1", "--compute-type", "v5e-16", "--num-slices", "1", "--restarts",
        "50", "--command", MAIN,
    ]  # fmt: skip
    more = ["--slices", "2", "--restarts", "3", "--project", "p", "--pathways", "gs://b/tmp"]
    (command,) = recorded(call, "gcluster.sh", "run1", *options, *more, "--", *ARGUMENTS)
    assert command == [
        *start, "--project", "p", "--image", "i:1", "--compute-type", "v5e-16", "--num-slices",
        "2", "--restarts", "3", "--pathways", "--pathways-gcs-location", "gs://b/tmp",
        "--command", MAIN,
    ]  # fmt: skip


def test_jobset(call):
    options = [
        *("--image", "eu.pkg.dev/p/rin&jax:1", "--accelerator", "tpu-v5-lite-podslice"),
        *("--topology", "4x4", "--hosts", "4", "--slices", "2"),
    ]
    commands, result = call("jobset.sh", "run1", *options, "--", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    ((*command, manifest),) = commands
    assert command == ["kubectl", "apply", "-f", "-"]
    (slices,) = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert slices["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 4
    assert container["command"] == ["python", "-u", "-m", "rin_jax.main", *ARGUMENTS]
    assert container["image"] == "eu.pkg.dev/p/rin&jax:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert "@" not in manifest.partition("\n")[2]
    silent, dry = call("jobset.sh", "run1", "--dry-run", *options, "--", *ARGUMENTS)
    assert silent == []
    assert dry.stdout.partition("\n")[0] == "kubectl apply -f -"
    assert yaml.safe_load(dry.stdout.partition("\n")[2]) == yaml.safe_load(manifest)


def test_slurm(call):
    options = ["--nodes", "2", "--gpus", "8", "--time", "1-00:00:00", "--partition", "a b"]
    (command,) = recorded(
        call, "slurm.sh", "run1", *options, "--", *ARGUMENTS, PYTHON="my env/python"
    )
    assert command[:-1] == [
        "sbatch", "--job-name=run1", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8",
        "--time=1-00:00:00", "--partition=a b", "--requeue", "--open-mode=append",
        "--output=run1-%j.log",
    ]  # fmt: skip
    start = "--wrap=srun --label --kill-on-bad-exit=0 launch/again.sh 'my env/python' -u -m "
    assert command[-1] == f"{start}rin_jax.main {POSIX}"


def test_plain_hosts(call):
    commands = recorded(call, "hosts.sh", "me@a b", "--dir", "my code", "--", *ARGUMENTS)
    assert sorted(commands) == [
        [
            *("ssh", "-tt", "-o", "BatchMode=yes", host),
            "cd 'my code' && exec env JAX_COORDINATOR_ADDRESS=a:8482 JAX_NUM_PROCESSES=2 "
            f"JAX_PROCESS_ID={index} .venv/bin/{MAIN}",
        ]
        for index, host in ((1, "b"), (0, "me@a"))
    ]
    assert call("hosts.sh", "a b", "--", "x", CODE="3")[1].returncode == 3


def test_local_pod_prints_its_processes(call):
    _, dry = call("local_pod.sh", "2", "--devices", "4", "--dry-run", "--", *ARGUMENTS)
    lines = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert [line[-3:] for line in lines] == [ARGUMENTS] * 2
    assert ["JAX_PROCESS_ID=0" in lines[0], "JAX_PROCESS_ID=1" in lines[1]] == [True, True]
    assert all("device_count=4" in line[2] and "JAX_NUM_PROCESSES=2" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tpu_vm.sh"], "launch/tpu_vm.sh create"),
        (["tpu_vm.sh", "create", "run1", "--type", "v6e-8"], "--zone is missing"),
        (["tpu_vm.sh", "create", "run1", "--zone", "z", "--type", "tpu7x-8"], "GKE only"),
        (["tpu_vm.sh", "run", "run1", "--zone", "z"], "arguments of rin_jax.main are missing"),
        (["tpu_vm.sh", "start", "run1", "--zone", "z"], "unknown command start"),
        (["gcluster.sh", "run1", "--cluster", "c", "--", "x"], "--location is missing"),
        (["jobset.sh", "run1", "--image"], "--image needs a value"),
        (["slurm.sh", "run1", "--nodes", "2", "--gpu", "8"], "unknown option --gpu"),
        (["hosts.sh", "a b", "--port", "1"], "arguments of rin_jax.main are missing"),
        (["local_pod.sh", "0"], "launch/local_pod.sh N"),
        (["local_pod.sh", "2", "--devices", "no", "--", "x"], "--devices no is not a number"),
    ],
)
def test_a_wrong_call_changes_nothing(call, arguments, message):
    commands, result = call(*arguments)
    assert commands == []
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(("codes", "expected"), [("1 134 75 0", 0), ("134 2", 2), ("3", 3)])
def test_again_until_it_makes_no_sense(tmp_path, codes, expected):
    (tmp_path / "codes").write_text(codes)
    script = 'set -- $(cat codes); first=$1; shift; echo "$*" > codes; exit $first'
    done = subprocess.run(
        [LAUNCH / "again.sh", "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PAUSE": "0"},
        timeout=60,
        check=False,
    )
    assert done.returncode == expected
    assert (tmp_path / "codes").read_text().strip() == ""
