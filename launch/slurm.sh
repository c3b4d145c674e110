#!/usr/bin/env bash
# Runs on the GPUs of a Slurm cluster: one process for each GPU.
#
#   launch/slurm.sh NAME --nodes N --gpus GPUS_OF_A_NODE [--time LIMIT] [--partition PARTITION]
#       [--dry-run] -- ARGUMENTS OF rin_jax.main
#
# Start it where the code is installed, on a file system that all nodes see; PYTHON picks the
# interpreter (default: .venv/bin/python). Logs: tail -F NAME-JOB.log. End: scancel JOB.
set -euo pipefail
# shellcheck source=launch/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

name=${1:-}
[[ $name && $name != -* ]] || usage
shift
nodes='' gpus='' time='' partition='' dry_run=''
options "nodes gpus time partition" "" "$@"
require_arguments
require nodes gpus

# A node that fails puts the job back into the queue; any other end restarts in place.
run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" \
  ${time:+--time="$time"} ${partition:+--partition="$partition"} --requeue --open-mode=append \
  --output="$name-%j.log" \
  --wrap="srun --label --kill-on-bad-exit=0 launch/again.sh $(quote "${PYTHON:-.venv/bin/python}" -u -m rin_jax.main "${arguments[@]}")"
