#!/usr/bin/env bash
# Runs N processes of rin_jax on this machine over loopback, each with fake CPU devices: a pod to
# try things on. The end of one process ends all.
#
#   launch/local_pod.sh N [--devices D] [--dry-run] -- ARGUMENTS OF rin_jax.main
#   launch/local_pod.sh 4 --devices 2 -- --config=configs/digits.py:tiny --workdir=runs/pod
#
# PYTHON picks the interpreter (default: python3). The exit code is that of the first process that
# failed; every line of output starts with the index of its process.
set -euo pipefail

# shellcheck source=launch/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || usage
shift
devices=1 dry_run=''
options "devices" "" "$@"
require_arguments
[[ $devices =~ ^[1-9][0-9]*$ ]] || usage "--devices $devices is not a number"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')

pids=()
prefixes=()
for ((index = 0; index < count; index++)); do
  command=(env JAX_PLATFORMS=cpu
    "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$index"
    "$python" -u -m rin_jax.main "${arguments[@]}")
  if [[ $dry_run ]]; then
    run "${command[@]}"
    continue
  fi
  exec {output}> >(prefix "$index")
  prefixes+=($!)
  "${command[@]}" >&"$output" 2>&1 &
  pids+=($!)
  exec {output}>&-
  echo "[local_pod] process $index is pid ${pids[-1]}"
done
[[ $dry_run ]] && exit

trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM

status=0
guard=
while ((${#pids[@]})); do
  code=0
  wait -n -p ended "${pids[@]}" || code=$?
  for index in "${!pids[@]}"; do
    [[ ${pids[index]} == "$ended" ]] && unset "pids[index]"
  done
  if ((code && !status)); then
    status=$code
    (sleep 60 && kill -KILL "${pids[@]}") > /dev/null 2>&1 & # they end by themselves long before
    guard=$!
  fi
done
[[ $guard ]] && kill "$guard" 2> /dev/null
wait "${prefixes[@]}" || true
exit "$status"
