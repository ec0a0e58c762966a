#!/usr/bin/env bash
# The whole of ASTRO, small, on a CPU. Options are passed on to `astro run`; paths are relative to this repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec "${ASTRO_VENV:-.venv}/bin/astro" run configs/quickstart.yaml "$@"
