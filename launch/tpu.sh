#!/usr/bin/env bash
# One run on a slice of plain TPU VMs. Usage: launch/tpu.sh COMMAND [--dry-run] [--settings FILE]
#
#   create   ask for the slice (a queued resource)     status   of the slice, and of the run on each worker
#   wait     until it is there                         tail     the log, as it grows
#   setup    this commit and its packages, everywhere  fetch    what the run has written, into runs/NAME
#   run      start the run on all workers              delete   give the slice back
#   retry    all of that until the run is done: after a preemption it asks anew, and the run goes on
#
# Settings: launch/tpu.env, made from launch/tpu.env.example. --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

poll=${ASTRO_POLL:-30} # seconds between two looks
most=5                 # failures of one slice before `retry` gives up: it costs money
costs="the slice is still there and costs: launch/tpu.sh delete"

tpus() { run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_workers() { tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"; }

create() {
    check_access
    local how=()
    [[ ${SPOT:?} == no ]] || how=(--spot)
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$accelerator" \
        --runtime-version="$runtime" "${how[@]}" --async
}

# The state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; NONE where there is none, and
# UNKNOWN where the answer does not come.
state() {
    if [[ $dry_run ]]; then
        tpus queued-resources describe "$NAME" --format="value(state.state)"
        return
    fi
    local said
    if said=$(tpus queued-resources describe "$NAME" --format="value(state.state)" 2>&1); then
        tail -n 1 <<<"$said"
    elif [[ $said == *NOT_FOUND* ]]; then
        echo NONE
    else
        echo UNKNOWN
    fi
}

wait_for_it() {
    if [[ $dry_run ]]; then state && return; fi
    local now
    until now=$(state) && [[ $now == ACTIVE ]]; do
        case $now in
            NONE | FAILED | SUSPEND*) echo "$NAME: $now" >&2 && return 1 ;;
        esac
        echo "$(date +%H:%M) $NAME: $now" >&2
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

# Of each worker: "running", "ended CODE" or "not started".
workers() { on_workers all "bash astro/launch/worker.sh status"; }

# Whether the run has ended: 0 done, 2 it never will, 1 it is to be started again, 3 it goes on, 4 nobody answers, for a
# moment or for good: `state` tells.
verdict() {
    local said
    said=$(workers 2>/dev/null) || return 4
    if grep -q 'ended 2$' <<<"$said"; then return 2; fi
    if grep -q 'running$' <<<"$said"; then return 3; fi
    [[ $(grep -c 'ended 0$' <<<"$said") -eq $hosts ]]
}

running() {
    local code=0
    verdict || code=$?
    ((code == 3))
}

retry() {
    check_access
    if [[ $dry_run ]]; then
        state && create && wait_for_it && setup && start && workers && delete && fetch && return
    fi
    local now code failures=0
    while true; do
        now=$(state)
        case $now in
            NONE) failures=0 && { create || { sleep "$poll" && continue; }; } ;;
            FAILED | SUSPEND*) echo "$(date +%H:%M) $NAME: $now, asking anew" >&2 && delete && continue ;;
        esac
        if [[ $now == ACTIVE ]] && running; then
            : # from before this machine was switched off: nothing is put in its place
        elif ! { wait_for_it && setup && start; }; then
            sleep "$poll"
            continue
        fi
        while true; do
            sleep "$poll"
            now=$(state)
            [[ $now == ACTIVE || $now == UNKNOWN ]] || break
            code=0 && verdict || code=$?
            case $code in
                0) delete && fetch && return ;;
                2) fail "the run refuses its input, and would again: launch/tpu.sh tail says why; $costs" ;;
                1) ((++failures < most)) || fail "the run has failed $most times: launch/tpu.sh tail says why; $costs" && break ;;
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
    wait) wait_for_it ;;
    run) start ;;
    status) state && workers ;;
    tail) on_workers 0 "tail -n 100 -F astro/run.log" ;;
    *) usage ;;
esac
