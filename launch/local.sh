#!/usr/bin/env bash
# Starts a run with several processes on this machine, as a pod slice does with one process for each machine.
# Usage: launch/local.sh N CONFIG [key=value ...]. The processes divide the mesh's devices: with mesh.fsdp=4 and 2
# processes, each process has 2 virtual devices. Every line of output begins with the number of its process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
    echo "Usage: launch/local.sh N CONFIG [key=value ...]" >&2
    exit 2
fi
n=$1
shift
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
bash launch/setup.sh
bin=${ASTRO_VENV:-.venv}/bin
port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

no_gloo="/^\[Gloo\]/d" # a line of the transport for each connection
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < n; i++)); do
    "$bin/astro" run "$@" --coordinator "localhost:$port" --processes "$n" --process "$i" \
        > >(sed -u "$no_gloo; s/^/$i: /") 2> >(sed -u "$no_gloo; s/^/$i: /" >&2) &
    pids+=($!)
done
code=0
for ((i = 0; i < n; i++)); do
    wait "${pids[i]}" && continue
    exit_code=$?
    echo "process $i ended with exit code $exit_code" >&2
    [[ $code -ne 0 ]] || code=$exit_code
done
exit "$code"
