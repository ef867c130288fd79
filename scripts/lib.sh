# shellcheck shell=bash
# What the scripts share. Sourced, never run. Sets:
#   root  the project folder
#   venv  the virtual environment: $SAMPLERPOOL_VENV, or .venv in the project folder

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${SAMPLERPOOL_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "$(basename -- "$0"): $*"
    exit 1
}

# use_environment [--dev]: sets up what is missing, then puts the environment's commands first in PATH.
use_environment() {
    "$root/scripts/setup" "$@"
    export PATH="$venv/bin:$PATH"
    cd -- "$root"
}
