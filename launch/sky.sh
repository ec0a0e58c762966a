#!/usr/bin/env bash
# Starts a run as a managed job of SkyPilot, which finds a zone and resumes the run after a preemption.
# Usage: launch/sky.sh check|task|launch|logs|stop [--dry-run] [--settings FILE]
#
# `launch` checks the run and estimates its time first, as `check` does. `stop` cancels the job, which ends the slice.
# An exit code other than 0 is retried five times: SkyPilot cannot tell refused input (2) from an accident.
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
setup: bash launch/worker.sh setup
run: |
  export PATH=\$PWD/.venv/bin:\$PATH
  $(quoted "${command[@]}")
YAML
}

launch() {
    check_run
    check_access
    local file=runs/$NAME.sky.yaml
    if [[ $dry_run ]]; then
        task
    else
        mkdir -p runs
        task >"$file"
    fi
    # A launch that hangs may have been received: the queue of jobs tells.
    limited 3600 sky jobs launch --name "$NAME" --yes --detach-run "$file" ||
        fail "the launch has failed; a job may exist and cost money: see sky jobs queue, and launch/sky.sh stop"
}

options "$@"
read_settings
[[ $SLICES -eq 1 ]] || fail "$settings: SkyPilot joins no slices: set SLICES=1"
case ${words[*]} in
    check) check_run && check_access ;;
    task | launch) "${words[0]}" ;;
    logs) run sky jobs logs --name "$NAME" ;;
    stop)
        limited 600 sky jobs cancel --name "$NAME" --yes ||
            fail "the job may still run and cost money: see sky jobs queue"
        ;;
    *) usage ;;
esac
