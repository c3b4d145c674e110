#!/usr/bin/env bash
# Runs on TPU slices of a GKE cluster by a JobSet, with kubectl alone.
#
#   launch/jobset.sh NAME --image IMAGE --accelerator A --topology T --hosts H [--chips C]
#       [--slices N] [--restarts N] [--dry-run] -- ARGUMENTS OF rin_jax.main
#   launch/jobset.sh NAME --image I --accelerator tpu-v5-lite-podslice --topology 4x4 --hosts 4 -- ...
#
# H: hosts of one slice; C: chips of one host (default: 4). --dry-run prints the command and the
# manifest that it would read. IMAGE is built from launch/Dockerfile. Logs and end:
#   kubectl logs --follow --prefix --max-log-requests=1000 -l jobset.sigs.k8s.io/jobset-name=NAME
#   kubectl delete jobset NAME
set -euo pipefail
# shellcheck source=launch/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

name=${1:-}
[[ $name && $name != -* ]] || usage
shift
slices=1 restarts=50 chips=4 image='' accelerator='' topology='' hosts='' dry_run=''
options "image accelerator topology hosts chips slices restarts" "" "$@"
require_arguments
require image accelerator topology hosts

json() {  # arguments as a list of JSON, which is YAML too
  local word list=
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+="\"${word//\"/\\\"}\", "
  done
  printf '[%s]' "${list%, }"
}

manifest=$(< "$(dirname "${BASH_SOURCE[0]}")/gke/jobset.yaml")
fill() {
  manifest=${manifest//"@$1@"/"$2"}
}
fill NAME "$name"
fill IMAGE "$image"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill HOSTS "$hosts"
fill CHIPS "$chips"
fill SLICES "$slices"
fill RESTARTS "$restarts"
fill COMMAND "$(json python -u -m rin_jax.main "${arguments[@]}")"

run kubectl apply -f - <<< "$manifest"
[[ ! $dry_run ]] || printf '%s\n' "$manifest"
