#!/usr/bin/env bash
# Runs on a plain list of machines by ssh: one process on each, the first is process 0.
#
#   launch/hosts.sh "HOST0 HOST1 ..." [--dir DIR] [--port PORT] [--dry-run] -- ARGUMENTS OF rin_jax.main
#
# DIR is where the code is on every host (default: rin_jax, below the home), with its packages in
# DIR/.venv. PORT (default: 8482) must be open between the hosts. Every line of output starts with
# the index of its process. Ctrl-C ends the run.
set -euo pipefail
# shellcheck source=launch/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

read -ra hosts <<< "${1:-}"
[[ ${#hosts[@]} -gt 0 && ${hosts[0]} != -* ]] || usage
shift
dir=rin_jax port=8482 dry_run=''
options "dir port" "" "$@"
require_arguments

pids=()
trap 'kill "${pids[@]}" 2> /dev/null || true' INT TERM
for index in "${!hosts[@]}"; do
  # -tt: the process on the host ends with the connection
  ssh_command=(ssh -tt -o BatchMode=yes "${hosts[index]}"
    "cd $(quote "$dir") && exec env JAX_COORDINATOR_ADDRESS=${hosts[0]##*@}:$port JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$index .venv/bin/python -u -m rin_jax.main $(quote "${arguments[@]}")")
  if [[ $dry_run ]]; then
    run "${ssh_command[@]}"
  else
    "${ssh_command[@]}" < /dev/null > >(prefix "$index") 2>&1 &
    pids+=($!)
  fi
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
