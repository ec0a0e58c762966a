#!/usr/bin/env bash
# Runs the tests. The script passes its options on to pytest: `-m ""` adds the slow tests.
# With ASTRO_TEST_PLAN=1 it installs libtpu, and the tests that compile for a TPU run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
if [[ ${ASTRO_TEST_PLAN:-} == 1 ]]; then
    bash launch/setup.sh requirements-plan.lock
else
    bash launch/setup.sh
fi
# tests/conftest.py puts the files that take longest first: a worker takes the next file when it has finished one.
exec "${ASTRO_VENV:-.venv}/bin/python" -m pytest \
    -n "${ASTRO_TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
