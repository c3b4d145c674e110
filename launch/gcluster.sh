#!/usr/bin/env bash
# Submits a run to a GKE cluster by Cluster Toolkit (gcluster), on TPU slices or by Pathways.
#
#   launch/gcluster.sh NAME --cluster CLUSTER --location ZONE --image IMAGE --type TYPE
#       [--slices N] [--pathways gs://BUCKET/TMP] [--restarts N] [--project PROJECT] [--dry-run]
#       -- ARGUMENTS OF rin_jax.main
#
# TYPE is a shorthand such as v5e-16. IMAGE is built from launch/Dockerfile. Logs and end:
# `gcluster job logs NAME`, `gcluster job cancel NAME`.
set -euo pipefail
# shellcheck source=launch/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

name=${1:-}
[[ $name && $name != -* ]] || usage
shift
slices=1 restarts=50 cluster='' location='' image='' type='' pathways='' project='' dry_run=''
options "cluster location image type slices pathways restarts project" "" "$@"
require_arguments
require cluster location image type

how=()
[[ $pathways ]] && how=(--pathways --pathways-gcs-location "$pathways")
run gcluster job submit --name "$name" --cluster "$cluster" --location "$location" \
  ${project:+--project "$project"} --image "$image" --compute-type "$type" \
  --num-slices "$slices" --restarts "$restarts" "${how[@]}" \
  --command "python -u -m rin_jax.main $(quote "${arguments[@]}")"
