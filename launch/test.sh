#!/usr/bin/env bash
# The tests. Options are passed on to pytest: `-m ""` adds the slow ones.
# With ASTRO_TEST_PLAN=1 libtpu is installed too, and the tests that compile for a TPU run instead of being skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${ASTRO_TEST_PLAN:-} == 1 ]]; then
    bash launch/setup.sh requirements-plan.lock
else
    bash launch/setup.sh
fi
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec "${ASTRO_VENV:-.venv}/bin/python" -m pytest "$@"
