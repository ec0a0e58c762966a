#!/usr/bin/env bash
# Functions of tpu.sh, gke.sh and sky.sh: read the options and the settings, check them, and derive the slice's names.
# shellcheck disable=SC2034 # the scripts that source this file use the variables

fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# Prints its arguments as one line of shell code.
quoted() { printf '%q ' "$@" | sed 's/ $//'; }

# Runs a command. A dry run prints the command instead.
run() {
    if [[ $dry_run ]]; then
        quoted "$@"
        echo
    else
        "$@"
    fi
}

# Runs a command that may hang, such as one of a cloud: after so many seconds it is killed and has failed. The command
# reads no input, so that a question of the tool fails in place of waiting. ASTRO_LIMIT replaces all limits, for tests.
limited() { # SECONDS COMMAND ...
    if [[ $dry_run ]]; then
        run "${@:2}"
    else
        timeout --kill-after=5 "${ASTRO_LIMIT:-$1}" "${@:2}" </dev/null
    fi
}

usage() { # prints the comment at the top of the script
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

# Sets dry_run, settings, and words: the arguments that are not options.
options() {
    dry_run='' settings=launch/tpu.env words=()
    while (($#)); do
        case $1 in
            --dry-run) dry_run=yes ;;
            --settings) (($# > 1)) || usage; settings=$2 && shift ;;
            --settings=*) settings=${1#*=} ;;
            -*) usage ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    ((${#words[@]})) || usage
}

check() { # NAME PATTERN WHAT
    local value=${!1:-}
    [[ $value =~ ^($2)$ ]] || fail "$settings: $1=${value:-} is not $3"
}

read_settings() {
    [[ -f $settings ]] || fail "no settings file ${settings:-''}: copy launch/tpu.env.example to this path and fill it in"
    CONFIG='' OVERRIDES=() STAGE=run MAX_HOURS='' MAX_WAIT_HOURS=24 PRICE='' LIBTPU_ARGS='' RUNTIME='' TPU_SERVICE_ACCOUNT=''
    CLUSTER='' IMAGE='' SERVICE_ACCOUNT=default SHARDS=1 SHARD='' SLICES=1 RUN_NAME=''
    local message # a child shell reads the file first: an unset name or an open quote ends the shell
    # shellcheck disable=SC2016
    message=$(bash -euc 'source "$1"' - "$settings" 2>&1) || fail "cannot read the settings: ${message%%$'\n'*}"
    # shellcheck disable=SC1090
    source "$settings"
    check PROJECT '[a-z][-a-z0-9:.]*' "a project"
    check ZONE '[a-z]+-[a-z0-9]+-[a-z]' "a zone, as in us-west4-a"
    # A pod's name has at most 63 characters: the name, the stage, and what JobSet and Job append.
    check NAME '[a-z][-a-z0-9]{0,28}[a-z0-9]' "a name of small letters, digits and hyphens, at most 30"
    check TOPOLOGY '(v5e|v6e):[0-9]+x[0-9]+|(v4|v5p):[0-9]+x[0-9]+x[0-9]+' "a topology, as in v5e:4x4 or v5p:4x4x8"
    check SPOT 'yes|no' "yes or no"
    check STAGE 'run|base|search|traces|difficulty|sft|grpo|eval|report' "a command of astro that runs stages"
    check BUCKET 'gs://[a-z0-9][-._a-z0-9]*(/[-._a-zA-Z0-9]+)*' "a folder in a bucket, as in gs://bucket/astro"
    check SLICES '[1-9][0-9]*' "a number of slices"
    check SHARDS '[1-9][0-9]*' "a number of shares of the search"
    check SHARD '([0-9]+/[1-9][0-9]*)?' "a share of the search, as in 0/4"
    [[ ! $SHARD ]] || ((${SHARD%/*} < ${SHARD#*/})) || fail "$settings: SHARD=$SHARD: the shares are 0/${SHARD#*/} to $((${SHARD#*/} - 1))/${SHARD#*/}"
    [[ ! $SHARD || $STAGE == search ]] || fail "$settings: SHARD=$SHARD goes with STAGE=search"
    check RUN_NAME '([a-z0-9][-a-z0-9]*)?' "a name of small letters, digits and hyphens"
    check MAX_HOURS '[1-9][0-9]*' "a number of hours, after which the run stops"
    check MAX_WAIT_HOURS '[1-9][0-9]*' "a number of hours to wait for chips"
    check PRICE '([0-9]+([.][0-9]+)?)?' "the price of a chip for an hour, as in 1.2"
    check TPU_SERVICE_ACCOUNT '([-a-z0-9.:]+@[-a-z0-9.]+)?' "the address of a service account"
    [[ -f $CONFIG ]] || fail "$settings: CONFIG=$CONFIG is not a file of this repository"
    local override
    for override in "${OVERRIDES[@]}"; do
        [[ $override == ?*=* ]] || fail "$settings: OVERRIDES holds $override, which is not key=value"
    done
    derive
}

# Sets the names of the slice for Cloud TPU and GKE, and the command of the run.
derive() {
    generation=${TOPOLOGY%%:*} shape=${TOPOLOGY#*:}
    chips=$((${shape//x/ * }))
    chips_per_host=4
    [[ $shape == *x*x* || $chips -gt 8 ]] || chips_per_host=$chips
    hosts=$((chips / chips_per_host))
    ((hosts * chips_per_host == chips)) || fail "$settings: TOPOLOGY=$TOPOLOGY does not divide into hosts of 4 chips"
    # Slices of v4 and v5p are named by their cores, of which a chip has two.
    case $generation in
        v4)
            accelerator=v4-$((2 * chips)) image=tpu-ubuntu2204-base
            gke_accelerator=tpu-v4-podslice machine=ct4p-hightpu
            ;;
        v5e)
            accelerator=v5litepod-$chips image=v2-alpha-tpuv5-lite
            gke_accelerator=tpu-v5-lite-podslice machine=ct5lp-hightpu
            ;;
        v5p)
            accelerator=v5p-$((2 * chips)) image=v2-alpha-tpuv5
            gke_accelerator=tpu-v5p-slice machine=ct5p-hightpu
            ;;
        v6e)
            accelerator=v6e-$chips image=v2-alpha-tpuv6e
            gke_accelerator=tpu-v6e-slice machine=ct6e-standard
            ;;
    esac
    runtime=${RUNTIME:-$image}
    out=$BUCKET/${RUN_NAME:-$NAME} shards=${SHARD#*/}
    # Of all slices of the run, as `astro plan` names them.
    processes=$((hosts * SLICES)) all_chips=$((chips * SLICES)) all_slices=$TOPOLOGY
    [[ $SLICES -eq 1 ]] || all_slices=$TOPOLOGY:$SLICES
    # --processes: a worker that finds fewer processes than the slices have stops, in place of a run of its own.
    command=(astro "$STAGE" "$CONFIG" "out=$out" "${OVERRIDES[@]}" --processes "$processes" --max-hours "$MAX_HOURS")
    [[ ! $SHARD ]] || command+=(--shard "$SHARD")
    [[ ! $LIBTPU_ARGS ]] || command=(env "LIBTPU_INIT_ARGS=$LIBTPU_ARGS" "${command[@]}")
}

# Prints the number of the project, of which Google Cloud makes the names of accounts.
project_number() {
    if [[ $dry_run ]]; then
        echo NUMBER
    else
        limited 60 gcloud projects describe "$PROJECT" --format="value(projectNumber)" --quiet
    fi
}

bucket() { cut -d/ -f1-3 <<<"$BUCKET"; }

# Gives an account both roles that a run needs on the bucket. Storage Object Admin lacks storage.buckets.get, which
# Orbax asks for when it opens a folder of checkpoints and when it deletes an old one.
grant() { # MEMBER
    local role
    for role in storage.objectAdmin storage.legacyBucketReader; do
        limited 120 gcloud storage buckets add-iam-policy-binding "$(bucket)" --member="$1" --role="roles/$role" \
            --quiet || return
    done
}

# Refuses what the run would refuse, and a run that is estimated to take longer than MAX_HOURS: before anything is rented.
check_run() {
    local bin=${ASTRO_VENV:-.venv}/bin planned='' answer hours chip_hours longest
    local config=("$CONFIG" "out=$out" "${OVERRIDES[@]}" --topology "$all_slices")
    case $STAGE in
        run) planned=all ;;
        report) ;; # computes nothing
        *) planned=$STAGE ;;
    esac
    run bash launch/setup.sh requirements-plan.lock || fail "the packages of astro cannot be installed: nothing was created"
    limited 1200 "$bin/astro" check "${config[@]}" || fail "the run would stop at the above: nothing was created"
    if [[ ! $planned ]]; then
        echo "no estimate for STAGE=$STAGE; the run stops after MAX_HOURS=$MAX_HOURS hours" >&2
        return
    fi
    answer=$(limited 600 "$bin/astro" plan "${config[@]}" --stage "$planned" --no-compile --json) ||
        fail "the time of the run cannot be estimated: nothing was created"
    if [[ $dry_run ]]; then
        echo "$answer"
        return
    fi
    hours=$(estimated total_hours) chip_hours=$(estimated total_chip_hours) longest=$(estimated longest_total_hours)
    [[ $hours && $chip_hours && $longest ]] || fail "the time of the run cannot be estimated: nothing was created"
    local slices="$all_chips chips"
    if ((${shards:-1} > 1)); then # shares of a search run at the same time
        hours=$(share "$hours") longest=$(share "$longest")
        if [[ $SHARD ]]; then chip_hours=$(share "$chip_hours"); else slices="$shards times $slices"; fi
    fi
    echo "estimate: $hours hours on $slices, $chip_hours chip-hours$(price "$chip_hours"); $longest hours" \
        "if every sample is as long as it may be and no tree ends early; the run stops after MAX_HOURS=$MAX_HOURS hours" >&2
    awk "BEGIN { exit !($hours <= $MAX_HOURS) }" ||
        fail "the estimate of $hours hours exceeds MAX_HOURS=$MAX_HOURS: lower problems.search or grpo.max_steps, take a larger slice, or raise MAX_HOURS; nothing was created"
}

estimated() { # KEY: prints its number in the answer of astro plan
    sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" <<<"$answer"
}

share() { # HOURS
    awk "BEGIN { print $1 / $shards }"
}

price() { # CHIP_HOURS
    [[ ! $PRICE ]] || awk "BEGIN { printf \", %.0f at PRICE=%s\", $1 * $PRICE, \"$PRICE\" }"
}

# Fails without credentials and when the bucket is not writable, before anything is created. With TPU_SERVICE_ACCOUNT the
# bucket is tried as the account of the workers, where the user may act for the account.
check_access() {
    [[ ! $dry_run ]] || return 0
    command -v gcloud >/dev/null || fail "gcloud is not installed: see docs/tpu.md"
    limited 60 gcloud auth print-access-token >/dev/null 2>&1 || fail "no credentials: run gcloud auth login"
    local probe=$out/.writable message
    message=$(write_probe "$probe" 2>&1) || fail "cannot write to $BUCKET: check that the bucket exists and that your account may write to it (${message##*$'\n'})"
    limited 60 gcloud storage rm "$probe" >/dev/null 2>&1 || fail "cannot remove files from $BUCKET: your account needs the role Storage Object Admin"
    [[ $TPU_SERVICE_ACCOUNT ]] || return 0
    local as=(--impersonate-service-account="$TPU_SERVICE_ACCOUNT")
    if ! message=$(limited 60 gcloud auth print-access-token "${as[@]}" 2>&1); then
        echo "note: you may not act for $TPU_SERVICE_ACCOUNT (role Service Account Token Creator); the run checks its access" >&2
    elif ! message=$(limited 60 gcloud storage buckets describe "$(bucket)" "${as[@]}" 2>&1 >/dev/null &&
        write_probe "$probe" "${as[@]}" 2>&1 && limited 60 gcloud storage rm "$probe" "${as[@]}" 2>&1); then
        fail "$TPU_SERVICE_ACCOUNT cannot use $BUCKET (${message##*$'\n'}): run ${0##*/} grant"
    fi
}

# Copies a small file to the bucket.
write_probe() { # PATH [OPTION ...]
    limited 60 gcloud storage cp launch/settings.sh "$@"
}
