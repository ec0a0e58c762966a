#!/usr/bin/env bash
# Starts a run on a slice of TPU VMs. Usage: launch/tpu.sh COMMAND [--dry-run] [--settings FILE]
#
#   create   request the slice (a queued resource)        status   show the slice, and the run on each worker
#   wait     wait until the slice is active               tail     follow the log of the first worker
#   setup    install this commit on all workers           fetch    copy the run's folder to runs/NAME
#   run      start the run on all workers                 delete   delete the slice
#   retry    all of these until the run has finished; after a preemption request a new slice and resume the run
#
# Settings: launch/tpu.env, made from launch/tpu.env.example. --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

poll=${ASTRO_POLL:-30} # seconds between two queries
max_failures=5         # on one slice, before `retry` gives up
still_billed="the slice still exists and costs money; delete it with launch/tpu.sh delete"

tpus() { run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_workers() { tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"; }

create() {
    check_access
    local spot=()
    [[ ${SPOT:?} == no ]] || spot=(--spot)
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$accelerator" \
        --runtime-version="$runtime" "${spot[@]}" --async
}

# Prints the state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; NONE when the resource does not
# exist, UNKNOWN when the query fails.
state() {
    if [[ $dry_run ]]; then
        tpus queued-resources describe "$NAME" --format="value(state.state)"
        return
    fi
    local answer
    if answer=$(tpus queued-resources describe "$NAME" --format="value(state.state)" 2>&1); then
        tail -n 1 <<<"$answer"
    elif [[ $answer == *NOT_FOUND* ]]; then
        echo NONE
    else
        echo UNKNOWN
    fi
}

wait_until_active() {
    if [[ $dry_run ]]; then state && return; fi
    local slice
    until slice=$(state) && [[ $slice == ACTIVE ]]; do
        case $slice in
            NONE | FAILED | SUSPEND*) echo "$NAME: $slice" >&2 && return 1 ;;
        esac
        echo "$(date +%H:%M) $NAME: $slice" >&2
        sleep "$poll"
    done
}

setup() {
    local archive=astro.tgz
    [[ $dry_run ]] || archive=$(mktemp -d)/astro.tgz
    run git archive --format=tgz -o "$archive" HEAD &&
        tpus tpu-vm scp "$archive" "$NAME:astro.tgz" --worker=all &&
        on_workers all "mkdir -p astro && tar xzf astro.tgz -C astro && bash astro/launch/worker.sh setup"
}

start() { on_workers all "bash astro/launch/worker.sh start $(quoted "${command[@]}")"; }

# Prints for each worker "running", "ended CODE" or "not started".
workers() { on_workers all "bash astro/launch/worker.sh status"; }

# Returns the state of the run: 0 finished, 1 failed (start again), 2 refused its input (do not start again), 3 running,
# 4 unknown: no worker answered.
run_state() {
    local answers
    answers=$(workers 2>/dev/null) || return 4
    if grep -q 'ended 2$' <<<"$answers"; then return 2; fi
    if grep -q 'running$' <<<"$answers"; then return 3; fi
    [[ $(grep -c 'ended 0$' <<<"$answers") -eq $hosts ]]
}

running() {
    local code=0
    run_state || code=$?
    ((code == 3))
}

retry() {
    check_access
    if [[ $dry_run ]]; then
        state && create && wait_until_active && setup && start && workers && delete && fetch && return
    fi
    local slice code failures=0
    while true; do
        slice=$(state)
        case $slice in
            NONE) failures=0 && { create || { sleep "$poll" && continue; }; } ;;
            FAILED | SUSPEND*)
                echo "$(date +%H:%M) $NAME: $slice, requesting a new slice" >&2 && delete && continue
                ;;
        esac
        if [[ $slice == ACTIVE ]] && running; then
            : # started by an earlier retry: only watch the run
        elif ! { wait_until_active && setup && start; }; then
            sleep "$poll"
            continue
        fi
        while true; do
            sleep "$poll"
            slice=$(state)
            [[ $slice == ACTIVE || $slice == UNKNOWN ]] || break
            code=0 && run_state || code=$?
            case $code in
                0) delete && fetch && return ;;
                2) fail "the run refused its input: see launch/tpu.sh tail; $still_billed" ;;
                1)
                    ((++failures < max_failures)) ||
                        fail "the run has failed $max_failures times: see launch/tpu.sh tail; $still_billed"
                    break
                    ;;
            esac
        done
    done
}

fetch() { run gcloud storage rsync --recursive "$out" "runs/$NAME"; }

delete() { tpus queued-resources delete "$NAME" --force --quiet; }

options "$@"
read_settings
case ${words[*]} in
    create | setup | retry | fetch | delete) "${words[0]}" ;;
    wait) wait_until_active ;;
    run) start ;;
    status) state && workers ;;
    tail) on_workers 0 "tail -n 100 -F astro/run.log" ;;
    *) usage ;;
esac
