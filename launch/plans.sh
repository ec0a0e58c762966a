#!/usr/bin/env bash
# Writes docs/plans.md: a plan of each large config for a TPU slice. Compiling all programs takes about a quarter of an hour.
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
    echo "Memory, speed limit and cost of the large configs on TPU slices. No figure on this page was measured on a TPU:"
    echo "\`astro plan\` compiles each program ahead of time and computes its roofline. \`bash launch/plans.sh\` writes the page."
    echo "This one was made on $(date +%F) at commit $(git rev-parse --short HEAD)."
    echo
    echo "- *peak*: memory of the program on one chip. *with resident arrays*: the same and the run's other arrays."
    echo "- *of HBM*: total memory as a share of the chip's memory for programs."
    echo "- *roofline*: tokens/s of the slice at the chips' peak FLOP/s or HBM bandwidth, without the links between chips."
    echo "- *MFU bound*: the model FLOPs utilization at the roofline."
    echo "- *a whole run*: the tokens of each program, and their time at the given share of the roofline's speed. Trees of"
    echo "  rounds end as \`early_stop\` says, with problems of all difficulties in equal numbers. *hours at most*: if every"
    echo "  sample has its greatest length and no tree ends early. *no prefix shared*: if each sample kept its own copy of its"
    echo "  prefix."
    echo
    plan configs/llama3.1-8b.yaml v5e:4x4
    plan configs/llama3.1-8b.yaml v6e:2x4 "mesh={fsdp: 2, tp: 4}"
    plan configs/llama3.1-70b-paper.yaml v5p:4x4x8
    plan configs/llama-instruct.yaml v5p:4x4x8 model=weights/Llama-3.1-70B-Instruct "mesh={fsdp: 16, tp: 8}" \
        grpo.max_steps=136 grpo.micro_batch_size=16 sft.remat_policy=minimal_with_context
} >docs/plans.part
mv docs/plans.part docs/plans.md
