#!/usr/bin/env bash
# Runs all stages of ASTRO on a small config, on a CPU. The script passes its arguments on to `astro run`.
# Relative paths start at the root of this repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
bash launch/setup.sh
exec "${ASTRO_VENV:-.venv}/bin/astro" run configs/quickstart.yaml "$@"
