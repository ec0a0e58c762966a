#!/usr/bin/env bash
# Writes docs/plans.md: the plan of each recipe for a TPU slice. It compiles all of their programs: about ten minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh requirements-plan.lock
export JAX_PLATFORMS=cpu

plan() { # CONFIG TOPOLOGY [key=value ...]
    echo "## $*"
    echo
    "${ASTRO_VENV:-.venv}/bin/astro" plan "$1" "${@:3}" --topology "$2" --markdown
}

{
    echo "# Plans"
    echo
    echo "What the programs of each recipe need of a chip, how fast they can be, and what a whole run costs at most, worked"
    echo "out by \`astro plan\` without a TPU. Nothing here has run on one. Made by \`bash launch/plans.sh\`."
    echo
    plan configs/llama3.1-8b.yaml v5e:4x4
    plan configs/llama3.1-8b.yaml v6e:2x4 "mesh={fsdp: 2, tp: 4}"
    plan configs/llama3.1-70b-paper.yaml v5p:4x4x8
} >docs/plans.part
mv docs/plans.part docs/plans.md
