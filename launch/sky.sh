#!/usr/bin/env bash
# Starts a run as a managed job of SkyPilot, which finds a zone and resumes the run after a preemption.
# Usage: launch/sky.sh task|launch|logs|cancel [--dry-run] [--settings FILE]
#
# Settings: launch/tpu.env, made from launch/tpu.env.example. --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

task() {
    local spot=true
    [[ ${SPOT:?} == yes ]] || spot=false
    cat <<YAML
name: $NAME
workdir: .
resources:
  infra: gcp
  accelerators: tpu-$accelerator
  accelerator_args:
    runtime_version: $runtime
  use_spot: $spot
  job_recovery:
    max_restarts_on_errors: 5
setup: bash launch/setup.sh requirements-tpu.lock
run: |
  .venv/bin/$(quoted "${command[@]}")
YAML
}

launch() {
    check_access
    local file=runs/$NAME.sky.yaml
    if [[ $dry_run ]]; then
        task
    else
        mkdir -p runs
        task >"$file"
    fi
    run sky jobs launch --name "$NAME" --yes "$file"
}

options "$@"
read_settings
case ${words[*]} in
    task | launch) "${words[0]}" ;;
    logs) run sky jobs logs --name "$NAME" ;;
    cancel) run sky jobs cancel --name "$NAME" --yes ;;
    *) usage ;;
esac
