# Sourced by run_all.sh and run_tests.sh: sets PYTHON to an interpreter that has every package at its pinned version.
# The active environment serves if it satisfies requirements.lock; else .venv is made, once, from the lock.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec 3>&2 # where a step's end is said, though its output goes to a log

fail() {
    echo "error: $1" >&2
    exit 1
}

# Runs a command that ends when this script does: SIGINT, SIGTERM or SIGHUP end all that it has started.
# It is a group of processes of its own, so that a signal can be sent to all of them, and none comes from the terminal.
step() {
    local code=0 signal
    set -m
    "$@" </dev/null 3>&- &
    set +m
    for signal in INT TERM HUP; do
        trap "end_step $! $signal" "$signal"
    done
    wait $! || code=$?
    trap - INT TERM HUP
    return $code
}

end_step() {
    trap '' INT TERM HUP
    kill -TERM -- "-$1" 2>/dev/null || true
    wait "$1" || true
    echo "interrupted (SIG$2); the same command goes on from there" >&3
    exit $((128 + $(kill -l "$2")))
}

# Does this interpreter satisfy Python >= 3.11 and every pin? A local part such as torch's +cpu does not matter.
satisfies_pins() {
    "$1" - "$root/requirements.lock" 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

lines = open(sys.argv[1]).read().splitlines()
pins = [line.split("==") for line in lines if line and not line.startswith("#")]
sys.exit(sys.version_info < (3, 11) or any(version(name).partition("+")[0] != pin for name, pin in pins))
PYTHON
}

# Sets `base` to a Python that can make a virtual environment: 3.11 first, which made the committed results.
find_base() {
    local name version seen="" without=""
    for name in python3.11 python3 python3.12 python3.13 python3.14 python; do
        version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in
        3.1[1-9] | 3.[2-9][0-9])
            base=$name
            "$name" -c 'import ensurepip, venv' 2>/dev/null && return
            without=${without:-$version}
            ;;
        *) seen=${seen:-$version} ;;
        esac
    done
    [ -z "$without" ] || fail "Python $without has no venv or ensurepip, so .venv cannot be made; on Debian or Ubuntu: apt install python$without-venv"
    [ -z "$seen" ] || fail "Python 3.11 or newer is needed; the one found is $seen"
    fail "no Python found; install Python 3.11 or newer (python3 on the PATH)"
}

make_venv() {
    local free log="$root/runs/install.log" pip=("$root/.venv/bin/python" -m pip install --disable-pip-version-check)
    free=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge $((4 * 1024 * 1024)) ] || fail "$((free / 1024)) MB of disk are free at $root; the environment needs 4 GB"
    mkdir -p "$root/runs"
    echo "Installing the environment into .venv (about 2 GB, 6 with a CUDA build of torch; a few minutes) ..."
    step "$base" -m venv --clear "$root/.venv" >"$log" 2>&1 &&
        step "${pip[@]}" --no-deps --require-hashes -r "$root/requirements.hashes" >>"$log" 2>&1 &&
        step "${pip[@]}" -r "$root/requirements.lock" -e "$root" >>"$log" 2>&1 || # torch, whose build differs between machines
        fail "the installation failed: $(grep -iA 1 error "$log" | tail -n 2 | tr -s '\n ' ' ')(log: $log)" # a line more names the file
    cp "$root/requirements.lock" "$root/.venv/installed.lock" # last: an interrupted installation is repeated
}

PYTHON=""
for candidate in python python3; do
    if satisfies_pins "$candidate"; then
        PYTHON=$candidate
        break
    fi
done
if [ -z "$PYTHON" ]; then
    PYTHON="$root/.venv/bin/python"
    if ! cmp -s "$root/requirements.lock" "$root/.venv/installed.lock" || ! "$PYTHON" -c '' 2>/dev/null; then
        find_base
        make_venv
    fi
fi
