#!/usr/bin/env bash
# Makes the virtual environment (.venv, or ASTRO_VENV) and installs the locked packages and astro.
# Usage: launch/setup.sh [MORE.lock ...]. A complete environment is left as it is, without output.
# On a machine with an NVIDIA card it adds requirements-cuda.lock, unless another lock is named or JAX_PLATFORMS=cpu is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${ASTRO_VENV:-.venv} # a relative path starts at the root of this repository
python=$venv/bin/python
locks=(requirements.lock "$@")

log() { echo "$*" >&2; }
fail() { log "$*"; exit 2; }

if [[ $# -eq 0 && ${JAX_PLATFORMS:-} != cpu && $(nvidia-smi -L 2>/dev/null) == GPU* ]]; then
    locks+=(requirements-cuda.lock)
fi

# A stamp file records which lock was installed and from which folder: astro is installed in editable mode.
stamp() { { cat "$1" pyproject.toml && pwd; } | sha256sum; }
installed() { [[ -x $python && $(cat "$venv/$1.stamp" 2>/dev/null) == "$(stamp "$1")" ]]; }
all_installed() {
    local lock
    for lock in "${locks[@]}"; do installed "$lock" || return 1; done
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Makes the environment with a Python, and sets `pip` to a command that installs into the environment. Debian's Python
# may have no ensurepip: then uv, virtualenv or the Python's own pip is used.
make_venv() { # PYTHON
    pip=("$python" -m pip)
    "$1" -m venv "$venv" && return
    uv venv --seed --allow-existing --python "$(command -v "$1")" "$venv" && return
    virtualenv --python "$1" "$venv" && return
    pip=("$1" -m pip --python "$python")
    "$1" -m pip --version && "$1" -m venv --without-pip "$venv" && "${pip[@]}" --version
}

# reasoning-gym needs pycosat, which pip compiles. Without a compiler both are skipped.
can_compile='
import os, shutil, sys, sysconfig
compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (shutil.which(compiler) and os.path.exists(header)))'
locked_packages() { # LOCK
    if "$python" -c "$can_compile"; then
        cat "$1"
    else
        log "No C compiler or no Python headers: skipping reasoning-gym."
        awk '/^[a-z]/ { skip = /^(pycosat|reasoning-gym)==/ } !skip' "$1"
    fi
}

all_installed && exit

mkdir -p "$venv"
if command -v flock >/dev/null; then # of two set-ups at the same time the second waits and then has nothing to do
    exec 9>"$venv/setup.lock"
    flock 9
    all_installed && exit
fi

pip=("$python" -m pip)
if ! { new_enough "$python" && "${pip[@]}" --version >/dev/null 2>&1; }; then
    candidate='' chosen=''
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        new_enough "$name" || continue
        candidate=$name
        make_venv "$name" >"$venv/setup.log" 2>&1 && chosen=$name && break
    done
    [[ $candidate ]] || fail "astro needs Python 3.11 or newer, and PATH has none: install Python with its venv module."
    [[ $chosen ]] || fail "$candidate cannot make a virtual environment with pip: install python3-venv or uv."
fi

# uv takes a fraction of pip's time. It reads other settings than pip: where it fails, pip installs.
install() { # ARGUMENTS of `pip install`
    { command -v uv && uv pip install -q --compile-bytecode --python "$python" "$@"; } >"$venv/setup.log" 2>&1 ||
        "${pip[@]}" install -qq --disable-pip-version-check "$@"
}

for lock in "${locks[@]}"; do
    installed "$lock" && continue
    log "Setting up $venv from $lock (once, about a minute; some minutes with CUDA) ..."
    [[ $lock != requirements.lock ]] || rm -f "$venv"/*.stamp # the other locks extend this one
    locked_packages "$lock" >"$venv/$lock"
    install --no-deps --require-hashes -r "$venv/$lock"
    if [[ $lock == requirements.lock ]]; then
        install --no-deps --no-build-isolation -e .
    fi
    stamp "$lock" >"$venv/$lock.stamp" # last, so that an interrupted set-up is repeated
done
