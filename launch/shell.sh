# shellcheck shell=bash
# Shared by the scripts here: quoting, running or printing a command, marking its lines.

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
