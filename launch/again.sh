#!/usr/bin/env bash
# Runs a command again and again until it succeeds or cannot: exit codes 2 (a mistake in the
# configuration) and 3 (a number that is not finite) would only come again.
#
#   launch/again.sh COMMAND [ARGUMENTS]
#
# PAUSE: seconds between two attempts (default: 10). SIGTERM ends the command and this script.
set -euo pipefail

child=
stop() {
  [[ $child ]] && kill -TERM "$child" 2> /dev/null
  wait "$child" || true
  exit 143
}
trap stop TERM INT

while true; do
  code=0
  "$@" &
  child=$!
  wait "$child" || code=$?
  case $code in 0 | 2 | 3) exit "$code" ;; esac
  echo "again.sh: exit code $code; the same command resumes in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}" &
  child=$!
  wait "$child"
done
