#!/usr/bin/env bash
# One run by several processes of this machine, as a pod slice runs it by one process a machine.
# Usage: launch/local.sh N CONFIG [key=value ...]. The mesh's devices are shared out: mesh.fsdp=4 with 2 processes has
# 2 virtual devices in each. The lines of each process begin with its number.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
    echo "Usage: launch/local.sh N CONFIG [key=value ...]" >&2
    exit 2
fi
n=$1
shift
bash launch/setup.sh
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
bin=${ASTRO_VENV:-.venv}/bin
port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

quiet="/^\[Gloo\]/d" # what the transport says of each connection
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < n; i++)); do
    "$bin/astro" run "$@" --coordinator "localhost:$port" --processes "$n" --process "$i" \
        > >(sed -u "$quiet; s/^/$i: /") 2> >(sed -u "$quiet; s/^/$i: /" >&2) &
    pids+=($!)
done
code=0
for ((i = 0; i < n; i++)); do
    wait "${pids[i]}" && continue
    ended=$?
    echo "process $i ended with exit code $ended" >&2
    [[ $code -ne 0 ]] || code=$ended
done
exit "$code"
