# shellcheck shell=bash
# Shared by the scripts here: reading options, running or printing a command, marking its lines.

# Arguments as one line that any shell reads back as the same arguments.
quote() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+="$word "
    else
      line+="'${word//\'/\'\\\'\'}' "
    fi
  done
  printf '%s' "${line% }"
}

# Runs a command, or prints it after --dry-run.
run() {
  if [[ ${dry_run:-} ]]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# Prints each line of its input at once, after "[NAME] "; outlives signals, for the last words.
# Not with awk: Debian's waits for 4 kB before it gives out the first line.
prefix() {
  local line
  trap '' INT TERM
  while IFS= read -r line || [[ $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

# Prints the comment at the head of the calling script and ends.
usage() {
  [[ $# -eq 0 ]] || printf 'error: %s\n\n' "$1" >&2
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

# Ends with the usage unless every variable named has a value.
require() {
  local name
  for name in "$@"; do
    [[ ${!name:-} ]] || usage "--${name//_/-} is missing"
  done
}

# Reads the options of a script: those named in the first argument take a value, those in the second
# and --dry-run none. Each sets the variable of its name. What follows "--" becomes `arguments`.
options() {
  local with_value=" $1 " without=" $2 dry-run " name
  shift 2
  while [[ $# -gt 0 && $1 != -- ]]; do
    name=${1#--}
    [[ $1 == --* && "$with_value$without" == *" $name "* ]] || usage "unknown option $1"
    if [[ $without == *" $name "* ]]; then
      printf -v "${name//-/_}" 1
    else
      [[ ${2:-} && $2 != -* ]] || usage "$1 needs a value"
      printf -v "$name" '%s' "$2"
      shift
    fi
    shift
  done
  arguments=("${@:2}")
}

# Ends with the usage unless there are arguments for rin_jax.main.
require_arguments() {
  [[ ${#arguments[@]} -gt 0 ]] || usage "-- and the arguments of rin_jax.main are missing"
}
