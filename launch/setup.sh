#!/usr/bin/env bash
# Makes the virtual environment (.venv, or ASTRO_VENV) and installs the locked packages and astro in it.
# Usage: launch/setup.sh [FURTHER.lock ...]. Where all is in place already, it does and says nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${ASTRO_VENV:-.venv} # a relative one is relative to this repository
python=$venv/bin/python
locks=(requirements.lock "$@")

say() { echo "$*" >&2; }
fail() { say "$*"; exit 2; }

# A stamp tells what was installed, and from which folder, since astro is installed in place.
stamp() { { cat "$1" pyproject.toml && pwd; } | sha256sum; }
in_place() { [[ -x $python && $(cat "$venv/$1.stamp" 2>/dev/null) == "$(stamp "$1")" ]]; }
all_in_place() {
    local lock
    for lock in "${locks[@]}"; do in_place "$lock" || return 1; done
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Makes the environment with this Python, and sets `pip` to what can install into it. Debian's Python may come
# without ensurepip: then the pip beside it, uv or virtualenv serves.
make() { # PYTHON
    pip=("$python" -m pip)
    "$1" -m venv "$venv" && return
    uv venv --seed --allow-existing --python "$(command -v "$1")" "$venv" && return
    virtualenv --python "$1" "$venv" && return
    pip=("$1" -m pip --python "$python")
    "$1" -m pip --version && "$1" -m venv --without-pip "$venv" && "${pip[@]}" --version
}

# reasoning-gym needs pycosat, which is compiled where it is installed; without a compiler both are left out.
compiles='
import os, shutil, sys, sysconfig
compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (shutil.which(compiler) and os.path.exists(header)))'
packages() { # LOCK
    if "$python" -c "$compiles"; then
        cat "$1"
    else
        say "No C compiler or no Python headers here: leaving out reasoning-gym."
        awk '/^[a-z]/ { left_out = /^(pycosat|reasoning-gym)==/ } !left_out' "$1"
    fi
}

all_in_place && exit

mkdir -p "$venv"
if command -v flock >/dev/null; then # two set-ups at once: the second waits, and finds all in place
    exec 9>"$venv/setup.lock"
    flock 9
    all_in_place && exit
fi

pip=("$python" -m pip)
if ! { new_enough "$python" && "${pip[@]}" --version >/dev/null 2>&1; }; then
    found='' made=''
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        new_enough "$name" || continue
        found=$name
        make "$name" >"$venv/setup.log" 2>&1 && made=$name && break
    done
    [[ $found ]] || fail "astro needs Python 3.11 or newer, and PATH has none: install it, with its venv module."
    [[ $made ]] || fail "$found can make no virtual environment with pip here: install python3-venv, or else uv."
fi

for lock in "${locks[@]}"; do
    in_place "$lock" && continue
    say "Setting up $venv from $lock (once, about a minute) ..."
    [[ $lock != requirements.lock ]] || rm -f "$venv"/*.stamp # the other locks add to this one
    packages "$lock" >"$venv/$lock"
    "${pip[@]}" install -qq --disable-pip-version-check --no-deps --require-hashes -r "$venv/$lock"
    if [[ $lock == requirements.lock ]]; then
        "${pip[@]}" install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
    fi
    stamp "$lock" >"$venv/$lock.stamp" # last: a set-up that was interrupted is done again
done
