#!/usr/bin/env bash
# Starts a run on a slice of TPU VMs. Usage: launch/tpu.sh COMMAND [--dry-run] [--settings FILE]
#
#   check    check the run and the access to the bucket, and estimate time and chip-hours; rents nothing
#   grant    give the workers' service account its two roles on the bucket
#   create   the same checks, then request the slice (a queued resource)
#   wait     wait until the slice is active               status   show the slice, and the run on each worker
#   setup    install this working tree on all workers     tail     follow the log of the first worker
#   run      start the run on all workers                 fetch    copy models, figures and the report to runs/NAME
#   retry    all of these until the run has finished; after a preemption request a new slice and resume the run
#   stop     end the run, delete the slice, and end a `retry` on this machine
#   delete   delete the slice                             fetch-all   also copy checkpoints and replaced results
#
# Settings: launch/tpu.env, made from launch/tpu.env.example. --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

# Every loop ends: after so many queries in a row without an answer, refused requests in a row, failures of the run (a
# run of an hour is a new start), failures on one slice, whose node may be at fault, and slices.
poll=${ASTRO_POLL:-30} runs=${ASTRO_RUNS:-runs} # seconds between two queries; where logs and results go
max_unknown=${ASTRO_MAX_UNKNOWN:-10} max_refused=5 max_failures=5 max_failures_on_slice=2 max_slices=50
billed="the slice may still exist and cost money: run launch/tpu.sh delete"

tpus() { limited "$1" gcloud compute tpus "${@:2}" --project="$PROJECT" --zone="$ZONE"; } # SECONDS COMMAND ...

# Sets `line` to a command that reaches workers. The slices of one run are one queued resource.
reach() { # ssh|scp WORKER ARGUMENT ...
    local words=(tpu-vm "$1" "${@:3}" --worker="$2")
    [[ $SLICES -eq 1 ]] || words=(queued-resources "$1" "${@:3}" --worker="$2" --node="$2")
    line=(gcloud compute tpus "${words[@]}" --quiet --project="$PROJECT" --zone="$ZONE")
}
on_workers() { # SECONDS COMMAND
    reach ssh all "$NAME" --command="$2"
    limited "$1" "${line[@]}"
}
note() { echo "$(date +%H:%M) $NAME: $*" >&2; }

# The ssh of gcloud to several workers waits for ever where the agent lacks gcloud's key.
check_ssh() {
    [[ $dry_run || $processes -eq 1 ]] && return
    local key=$HOME/.ssh/google_compute_engine print
    print=$(ssh-keygen -lf "$key" 2>/dev/null | cut -d' ' -f2) || true
    [[ $print ]] || fail "gcloud has no ssh key: run ssh-keygen -t rsa -f $key -N '' and ssh-add $key"
    ssh-add -l 2>/dev/null | grep -qF "$print" ||
        fail "the ssh agent lacks gcloud's key: run eval \"\$(ssh-agent)\" and ssh-add $key"
}

check_all() { check_run && check_access && check_ssh; }

create() {
    local options=()
    [[ ${SPOT:?} == no ]] || options+=(--spot)
    [[ ! $TPU_SERVICE_ACCOUNT ]] || options+=(--service-account="$TPU_SERVICE_ACCOUNT")
    if [[ $SLICES -eq 1 ]]; then
        options+=(--node-id="$NAME")
    else
        options+=(--node-count="$SLICES" --node-prefix="$NAME")
    fi
    tpus 300 queued-resources create "$NAME" --accelerator-type="$accelerator" \
        --runtime-version="$runtime" --valid-until-duration="${MAX_WAIT_HOURS}h" "${options[@]}" --async
}

# Prints the state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; NONE when the resource does not
# exist, UNKNOWN when the query fails.
state() {
    local query=(60 queued-resources describe "$NAME" --format="value(state.state)")
    if [[ $dry_run ]]; then
        tpus "${query[@]}"
        return
    fi
    local answer
    if answer=$(tpus "${query[@]}" 2>&1); then
        answer=$(tail -n 1 <<<"$answer")
        echo "${answer:-UNKNOWN}"
    elif [[ $answer == *NOT_FOUND* ]]; then
        echo NONE
    else
        echo UNKNOWN
    fi
}

wait_until_active() {
    if [[ $dry_run ]]; then state && return; fi
    local slice unknown=0
    while ((SECONDS < 3600 * MAX_WAIT_HOURS)); do
        slice=$(state)
        case $slice in
            ACTIVE) return ;;
            NONE | FAILED | SUSPEND*) note "$slice" && return 1 ;;
            UNKNOWN) ((++unknown < max_unknown)) || { note "no answer about the slice; $billed" && return 1; } ;;
            *) unknown=0 ;;
        esac
        note "$slice"
        sleep "$poll"
    done
    note "no chips within MAX_WAIT_HOURS=$MAX_WAIT_HOURS hours; $billed"
    return 1
}

# Ships the working tree: the commit, uncommitted changes and new files, but no file that git ignores.
archive() { # FILE
    local index=$1.index tree changed
    cp "$(git rev-parse --git-path index)" "$index" &&
        GIT_INDEX_FILE=$index git add --all && tree=$(GIT_INDEX_FILE=$index git write-tree) || return
    changed=$(git status --porcelain | cut -c4- | paste -sd ' ')
    note "ships commit $(git rev-parse --short HEAD)${changed:+ and uncommitted changes of: $changed}"
    git archive --format=tgz -o "$1" "$tree"
}

setup() {
    local file=astro.tgz
    if [[ $dry_run ]]; then
        run git archive --format=tgz -o "$file" WORKING_TREE
    else
        file=$(mktemp -d)/astro.tgz
        archive "$file" || return
    fi
    reach scp all "$file" "$NAME:astro.tgz"
    limited 900 "${line[@]}" &&
        on_workers 1800 "mkdir -p astro && tar xzf astro.tgz -C astro && bash astro/launch/worker.sh setup"
}

start() { on_workers 300 "bash astro/launch/worker.sh start $(quoted "${command[@]}")"; }

# Prints for each worker "running", "ended CODE" or "not started". The end of another command is none of this one.
workers() { on_workers 120 "bash astro/launch/worker.sh status $(quoted "${command[@]}")"; }

# Returns the state of the run: 0 finished, 1 failed (start again), 2 refused its input (do not start again), 3 running,
# 4 unknown: a worker did not answer.
run_state() {
    local answers
    answers=$(workers 2>/dev/null) || return 4
    if grep -q 'ended 2$' <<<"$answers"; then return 2; fi
    if grep -q 'running$' <<<"$answers"; then return 3; fi
    [[ $(grep -c 'ended 0$' <<<"$answers") -eq $processes ]]
}

# Deletes the slice until it is gone.
give_back() {
    local i
    if [[ $dry_run ]]; then delete && return; fi
    for ((i = 0; i < max_refused; i++)); do
        delete || true
        [[ $(state) != NONE ]] || return 0
        sleep "$poll"
    done
    return 1
}

# Keeps the end of each worker's log, gives the slice back and exits.
give_up() { # EXIT_CODE MESSAGE
    local log=$runs/$NAME.log message=$2
    mkdir -p "$runs"
    if on_workers 120 'tail -n 200 astro/run.log' >"$log" 2>/dev/null && [[ -s $log ]]; then
        message+="; the ends of the logs are in $log"
    fi
    if give_back; then
        message+="; the slice is deleted"
    else
        message+="; $billed"
    fi
    echo "tpu.sh: $message" >&2
    exit "$1"
}

# After a failure: start again on the same slice, then on another, then give up. Sets `started` and the counters.
failed() { # MESSAGE
    note "$1"
    [[ ! $started ]] || ((SECONDS - started < 3600)) || failures=0
    ((++failures < max_failures)) || give_up 1 "$1, and $max_failures failures in all"
    started=''
    ((++failures_on_slice < max_failures_on_slice)) || replace "$failures_on_slice failures on this slice"
}

replace() { # REASON
    note "$1: requesting another slice"
    give_back || give_up 1 "the slice cannot be deleted"
}

# Counts queries in a row without an answer.
no_answer() { # MESSAGE COMMAND_AT_THE_LIMIT ...
    ((++unknown < max_unknown)) || { unknown=0 && "${@:2}" "$1"; }
}

request() {
    started='' unknown=0 failures_on_slice=0 since=$SECONDS
    ((++slices <= max_slices)) || give_up 1 "$max_slices slices were requested"
    if create; then
        refused=0
    else
        ((++refused < max_refused)) || give_up 1 "the request for a slice was refused"
    fi
}

# Starts the run on an active slice, or looks how it is. Returns 0 when the run has finished.
look_after_run() {
    local code=0
    run_state || code=$?
    # An answer that ends the run is asked for twice.
    if ((code == 0 || code == 2)); then code=0 && run_state || code=$?; fi
    case $code in
        0) return ;;
        2) give_up 2 "the run refused its input or has used its MAX_HOURS" ;;
        3) started=${started:-$SECONDS} unknown=0 ;;
        *)
            if [[ ! $started ]]; then
                if setup && start; then started=$SECONDS unknown=0; else failed "the set-up has failed"; fi
            elif [[ $code == 1 ]]; then
                failed "the run has failed"
            else
                no_answer "a worker does not answer" failed
            fi
            ;;
    esac
    return 1
}

retry() {
    local stop=$runs/$NAME.stop slice started='' unknown=0 refused=0 failures=0 failures_on_slice=0 slices=0 since
    [[ $dry_run ]] || rm -f "$stop" # a `stop` during the checks counts
    check_all
    if [[ $dry_run ]]; then
        state && create && wait_until_active && setup && start && workers && give_back && fetch && return
    fi
    since=$SECONDS
    trap 'note "retry has ended, and the run goes on. $billed"; exit 130' INT TERM
    while true; do
        if [[ -e $stop ]]; then give_up 1 "stopped by launch/tpu.sh stop"; fi
        slice=$(state)
        [[ $slice == UNKNOWN || $slice == ACTIVE ]] || unknown=0
        case $slice in
            UNKNOWN) no_answer "no answer about the slice" give_up 1 ;;
            NONE) request ;;
            FAILED | SUSPEND*) replace "$slice" && continue ;;
            ACTIVE) if look_after_run; then break; fi ;;
            *)
                ((SECONDS - since < 3600 * MAX_WAIT_HOURS)) ||
                    give_up 1 "no chips within MAX_WAIT_HOURS=$MAX_WAIT_HOURS hours"
                ;;
        esac
        sleep "$poll"
    done
    give_back || give_up 1 "the run has finished"
    fetch || fail "the run has finished and the slice is deleted, but the copy failed: run launch/tpu.sh fetch"
}

fetch() { # [all]
    local options=()
    # What is large and not a result: optimizer states, results that others have replaced, compiled programs, the input.
    [[ ${1:-} == all ]] ||
        options=(--exclude='(.*/)?checkpoints/.*|previous/.*|compilation_cache/.*|base/model/.*')
    limited 86400 gcloud storage rsync --recursive "${options[@]}" "$out" "$runs/$NAME"
}

delete() { tpus 900 queued-resources delete "$NAME" --force --quiet; }

stop() {
    if [[ ! $dry_run ]]; then mkdir -p "$runs" && touch "$runs/$NAME.stop"; fi
    on_workers 120 "bash astro/launch/worker.sh stop" || note "the workers do not answer"
    give_back || fail "the slice could not be deleted; $billed"
}

# The account of the workers: that of the settings, or Compute Engine's default account of the project.
service_account() {
    local number
    if [[ $TPU_SERVICE_ACCOUNT ]]; then
        echo "$TPU_SERVICE_ACCOUNT"
    else
        number=$(project_number) && echo "$number-compute@developer.gserviceaccount.com"
    fi
}

options "$@"
read_settings
case ${words[*]} in
    setup | retry | fetch | delete | stop) "${words[0]}" ;;
    check) check_all ;;
    grant) account=$(service_account) && grant "serviceAccount:$account" ;;
    create) check_all && create ;;
    fetch-all) fetch all ;;
    wait) wait_until_active ;;
    run) start ;;
    status) state && workers ;;
    tail) reach ssh 0 "$NAME" --command="tail -n 100 -F astro/run.log" && run "${line[@]}" ;;
    *) usage ;;
esac
