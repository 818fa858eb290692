#!/usr/bin/env bash
# Looks after requirements.lock; needs a network, and is no part of a run:
#   ./lock.sh hashes   writes requirements.hashes anew, after the lock has changed
#   ./lock.sh audit    asks for known vulnerabilities of every pinned package; fails if it knows of one, or could not ask
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./environment.sh

# Vulnerabilities that do not concern this project, each with its reason; pip-audit is told of them.
explained=()

tools=runs/lock/packages # apart from the environment, which stays as the lock says

tool() {
    [ -d "$tools/$1" ] || step "$PYTHON" -m pip install --quiet --disable-pip-version-check --target "$tools/$1" "$1==$2"
    export PYTHONPATH="$root/$tools/$1:$PYTHONPATH"
}

hashes() {
    tool uv 0.13.9
    local all=runs/lock/hashes.txt
    step "$PYTHON" -m uv pip compile --quiet --no-config --no-deps --generate-hashes --no-annotate --no-header \
        --output-file "$all" requirements.lock >/dev/null
    {
        echo "# Every package of requirements.lock with the SHA-256 of each of its files on PyPI: pip takes no other file."
        echo "# torch is left out: which build of it is had, with CUDA or without, differs between machines and indexes."
        echo "# Made by: ./lock.sh hashes"
        awk '/^torch==/ { skip = 1; next } /^[^ ]/ { skip = 0 } !skip' "$all"
    } >requirements.hashes
    echo "requirements.hashes: $(grep -c == requirements.hashes) packages"
}

audit() {
    tool pip-audit 2.10.1
    local ignored=()
    for one in ${explained[@]+"${explained[@]}"}; do ignored+=(--ignore-vuln "$one"); done
    # strict: a package that could not be asked for is a failure, not a clean one
    step "$PYTHON" -m pip_audit --requirement requirements.lock --no-deps --disable-pip --strict --progress-spinner off \
        ${ignored[@]+"${ignored[@]}"}
}

case ${1:-} in
hashes | audit) "$1" ;;
*) fail "say what: ./lock.sh hashes, or ./lock.sh audit" ;;
esac
