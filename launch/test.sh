#!/usr/bin/env bash
# Runs the tests. The script passes its options on to pytest: `-m ""` adds the slow tests.
# With ASTRO_TEST_COVERAGE=1 it prints which lines of astro_jax no test has run, other than in processes of their own.
# With ASTRO_TEST_PLAN=1 it installs libtpu, and the tests that compile for a TPU run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
if [[ ${ASTRO_TEST_PLAN:-} == 1 ]]; then
    bash launch/setup.sh requirements-plan.lock
else
    bash launch/setup.sh
fi
coverage=()
[[ ${ASTRO_TEST_COVERAGE:-} != 1 ]] || coverage=(-m slipcover --source astro_jax --skip-covered)
# tests/conftest.py puts the files that take longest first: a worker takes the next file when it has finished one.
exec "${ASTRO_VENV:-.venv}/bin/python" "${coverage[@]}" -m pytest \
    -n "${ASTRO_TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
