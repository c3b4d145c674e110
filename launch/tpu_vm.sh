#!/usr/bin/env bash
# Cloud TPU VMs by queued resources: one slice, or several as one multislice.
#
#   launch/tpu_vm.sh create NAME --zone ZONE --type TYPE [--spot | --reserved] [--runtime VERSION]
#   launch/tpu_vm.sh wait   NAME --zone ZONE                 until the TPU is there, or is not coming
#   launch/tpu_vm.sh setup  NAME --zone ZONE                 this commit and its packages, on all hosts
#   launch/tpu_vm.sh run    NAME --zone ZONE -- ARGUMENTS OF rin_jax.main      on all hosts
#   launch/tpu_vm.sh logs   NAME --zone ZONE                 of process 0, as they come
#   launch/tpu_vm.sh stop   NAME --zone ZONE                 the run, not the TPU
#   launch/tpu_vm.sh delete NAME --zone ZONE                 the TPU; nothing is billed afterwards
#
# All take [--slices N] (the same N everywhere), [--project PROJECT] and [--dry-run], which prints
# the exact commands. TYPE is v5litepod-16, v6e-16, v5p-32, ...; VERSION follows from it.
set -euo pipefail
# shellcheck source=launch/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

command=${1:-}
name=${2:-}
[[ $command && $name && $name != -* ]] || usage
shift 2
slices=1 zone='' project='' type='' runtime='' spot='' reserved='' dry_run=''
options "zone project type runtime slices" "spot reserved" "$@"
require zone
[[ $slices =~ ^[1-9][0-9]*$ ]] || usage "--slices $slices is not a number"
where=(--zone="$zone" ${project:+--project="$project"})

nodes() {
  if ((slices == 1)); then
    echo "$name"
  else
    seq -f "$name-%.0f" 0 $((slices - 1))
  fi
}

on_all_hosts() {  # a command, for the shell of each host
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1"
  done
}

create() {
  require type
  if [[ ! $runtime ]]; then
    case $type in
      v4-*) runtime=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) usage "--runtime of $type is not known here (TPU7x and later: GKE only)" ;;
    esac
  fi
  local count=(--node-id="$name")
  ((slices == 1)) || count=(--node-count="$slices" --node-prefix="$name")
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" "${count[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} ${reserved:+--reserved}
}

await() {
  local describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}"
    '--format=value(state.state)') state
  if [[ $dry_run ]]; then
    run "${describe[@]}"
    return
  fi
  while true; do
    state=$("${describe[@]}")
    echo "$(date +%T) $name: $state"
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "error: $name is $state; delete it and create it again" >&2
        exit 1
        ;;
    esac
    sleep 30
  done
}

setup() {
  local archive=/tmp/rin_jax.tar.gz node
  run git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz --output="$archive" HEAD
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:$archive" "${where[@]}" --worker=all
  done
  # The images' own Python is too old; uv brings one.
  on_all_hosts "set -e; rm -rf rin_jax; mkdir rin_jax; tar -xzf $archive -C rin_jax; cd rin_jax
curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --quiet --python=3.12 .venv
~/.local/bin/uv pip install --quiet --python=.venv/bin/python --editable '.[tpu,gcs]'"
}

train() {
  require_arguments
  on_all_hosts "cd rin_jax
nohup launch/again.sh .venv/bin/python -u -m rin_jax.main $(quote "${arguments[@]}") > ~/rin_jax.log 2>&1 < /dev/null &
echo \$! > ~/rin_jax.pid"
}

case $command in
  create) create ;;
  wait) await ;;
  setup) setup ;;
  run) train ;;
  logs)
    run gcloud compute tpus tpu-vm ssh "$(nodes | head -1)" "${where[@]}" --worker=0 \
      --command='tail -n 200 -F ~/rin_jax.log'
    ;;
  stop) on_all_hosts "kill -TERM \$(cat ~/rin_jax.pid)" ;;
  delete)
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    ;;
  *) usage "unknown command $command" ;;
esac
