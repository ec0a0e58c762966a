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
    CONFIG='' OVERRIDES=() STAGE=run RUNTIME='' CLUSTER='' IMAGE='' SERVICE_ACCOUNT=default SHARDS=1
    local message # a child shell reads the file first: an unset name or an open quote ends the shell
    # shellcheck disable=SC2016
    message=$(bash -euc 'source "$1"' - "$settings" 2>&1) || fail "cannot read the settings: ${message%%$'\n'*}"
    # shellcheck disable=SC1090
    source "$settings"
    check PROJECT '[a-z][-a-z0-9:.]*' "a project"
    check ZONE '[a-z]+-[a-z0-9]+-[a-z]' "a zone, as in us-west4-a"
    check NAME '[a-z][-a-z0-9]{0,38}[a-z0-9]' "a name of small letters, digits and hyphens, at most 40"
    check TOPOLOGY '(v5e|v6e):[0-9]+x[0-9]+|v5p:[0-9]+x[0-9]+x[0-9]+' "a topology, as in v5e:4x4 or v5p:4x4x8"
    check SPOT 'yes|no' "yes or no"
    check STAGE 'run|base|search|traces|difficulty|sft|grpo|eval|report' "a command of astro that runs stages"
    check BUCKET 'gs://[a-z0-9][-._a-z0-9]*(/[-._a-zA-Z0-9]+)*' "a folder in a bucket, as in gs://bucket/astro"
    check SHARDS '[1-9][0-9]*' "a number of slices"
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
    [[ $generation == v5p || $chips -gt 8 ]] || chips_per_host=$chips
    hosts=$((chips / chips_per_host))
    ((hosts * chips_per_host == chips)) || fail "$settings: TOPOLOGY=$TOPOLOGY does not divide into hosts of 4 chips"
    case $generation in
        v5e) accelerator=v5litepod-$chips gke_accelerator=tpu-v5-lite-podslice image=v2-alpha-tpuv5-lite ;;
        v6e) accelerator=v6e-$chips gke_accelerator=tpu-v6e-slice image=v2-alpha-tpuv6e ;;
        v5p) accelerator=v5p-$((2 * chips)) gke_accelerator=tpu-v5p-slice image=v2-alpha-tpuv5 ;; # named by its cores
    esac
    runtime=${RUNTIME:-$image}
    out=$BUCKET/$NAME
    command=(astro "$STAGE" "$CONFIG" "out=$out" "${OVERRIDES[@]}")
}

# Fails without credentials and when the bucket is not writable, before anything is created.
check_access() {
    [[ ! $dry_run ]] || return 0
    command -v gcloud >/dev/null || fail "gcloud is not installed: see docs/tpu.md"
    gcloud auth print-access-token >/dev/null 2>&1 || fail "no credentials: run gcloud auth login"
    local probe=$out/.writable
    echo | gcloud storage cp - "$probe" >/dev/null 2>&1 || fail "cannot write to $BUCKET: check that the bucket exists and that your account may write to it"
    gcloud storage rm "$probe" >/dev/null 2>&1 || fail "cannot remove files from $BUCKET: your account needs the role Storage Object Admin"
}
