#!/usr/bin/env bash
# Starts a run on GKE as a JobSet. Usage: launch/gke.sh COMMAND [--dry-run] [--settings FILE]
#
#   setup     create what is missing: image repository, cluster, node pool, JobSet, service account, roles on the bucket
#   check     check the run and the access to the bucket, and estimate time and chip-hours; starts nothing
#   manifest  print the JobSet             logs    follow the log of the first worker
#   apply     start the JobSet             stop    end the run and remove the JobSet
#   status    show the JobSet              xpk     start the run through XPK, which makes its own JobSet
#
# With STAGE=search the command makes SHARDS JobSets. Each searches its own share of the problems. A JobSet is named after
# NAME and STAGE, since the fields of an existing JobSet cannot change.
# Settings: launch/tpu.env, made from launch/tpu.env.example. --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

jobset_version=v0.11.1

kube() { limited 120 kubectl --context="gke_${PROJECT}_${region}_$CLUSTER" "$@"; }
cloud() { limited "$1" gcloud "${@:2}" --project="$PROJECT" --quiet; } # SECONDS COMMAND ...

command_line() { quoted "${command[@]}" "$@"; } # for the pod's bash

# Runs a step of the set-up. What exists already is kept.
ensure() { # COMMAND ...
    if [[ $dry_run ]]; then
        "$@"
        return
    fi
    local message
    if message=$("$@" 2>&1); then
        echo "$message"
    elif [[ ${message,,} == *already?exists* ]]; then
        echo "exists: ${message##*$'\n'}"
    else
        fail "set-up: ${message##*$'\n'}; run launch/gke.sh setup again"
    fi
}

# Creates what a run on GKE needs. Nodes with chips exist, and cost money, only while a JobSet needs them; the cluster's
# own nodes cost money until the cluster is deleted.
setup() {
    local registry=${IMAGE%%/*} rest=${IMAGE#*/} number options=() i
    [[ $rest == */*/* && $registry == *-docker.pkg.dev ]] || fail "$settings: IMAGE=$IMAGE is not LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/NAME"
    ensure cloud 600 services enable container.googleapis.com artifactregistry.googleapis.com
    rest=${rest#*/}
    ensure cloud 300 artifacts repositories create "${rest%%/*}" --repository-format=docker --location="${registry%-docker.pkg.dev}"
    ensure limited 60 gcloud auth configure-docker "$registry" --quiet
    ensure cloud 1800 container clusters create "$CLUSTER" --location="$region" --num-nodes=1 --machine-type=e2-standard-4 \
        --release-channel=regular --workload-pool="$PROJECT.svc.id.goog"
    # Each slice has a pool of its own. A pool of one host takes its shape from its machine.
    [[ $hosts -eq 1 ]] || options+=(--tpu-topology="$shape")
    [[ ${SPOT:?} == no ]] || options+=(--spot)
    for ((i = 0; i < pools; i++)); do
        ensure cloud 1800 container node-pools create "$pool-$i" --cluster="$CLUSTER" --location="$region" --node-locations="$ZONE" \
            --machine-type="$machine-${chips_per_host}t" "${options[@]}" \
            --num-nodes=0 --enable-autoscaling --max-nodes="$hosts" --workload-metadata=GKE_METADATA
    done
    ensure cloud 120 container clusters get-credentials "$CLUSTER" --location="$region"
    ensure kube apply --server-side -f \
        "https://github.com/kubernetes-sigs/jobset/releases/download/$jobset_version/manifests.yaml"
    [[ $SERVICE_ACCOUNT == default ]] || ensure kube create serviceaccount "$SERVICE_ACCOUNT"
    number=$(project_number) || fail "set-up: the project's number cannot be read; run launch/gke.sh setup again"
    grant "principal://iam.googleapis.com/projects/$number/locations/global/workloadIdentityPools/$PROJECT.svc.id.goog/subject/ns/default/sa/$SERVICE_ACCOUNT"
}

# Prints the JobSet of a run, or one JobSet for each shard of a search: a lost pod then restarts only its own shard.
manifest() {
    local i
    if [[ $STAGE != search ]]; then
        jobset "$job" "$(command_line)"
        return
    fi
    for ((i = 0; i < SHARDS; i++)); do
        jobset "$job-$i" "$(command_line --shard "$i/$SHARDS")"
    done
}

jobset() { # NAME COMMAND_LINE
    local spot=''
    [[ ${SPOT:?} == no ]] || spot='cloud.google.com/gke-spot: "true"'
    cat <<YAML
---
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $1
  labels:
    astro: $job
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
      - name: input
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: astro
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $SERVICE_ACCOUNT
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $gke_accelerator
                cloud.google.com/gke-tpu-topology: $shape
                $spot
              containers:
                - name: astro
                  image: $IMAGE
                  command:
                    - bash
                    - -c
                    - |
                      exec $2
                  resources:
                    requests:
                      google.com/tpu: $chips_per_host
                    limits:
                      google.com/tpu: $chips_per_host
YAML
}

apply() {
    check_run
    check_access
    if [[ $dry_run ]]; then
        manifest
        kube apply -f -
        return
    fi
    # A finished JobSet of this stage is in the way of a new one. A running one is not touched.
    local jobsets running file
    jobsets=$(kube get jobset -l "astro=$job" \
        -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.terminalState}{"\n"}{end}') ||
        fail "the cluster does not answer: run launch/gke.sh setup; nothing was started"
    running=$(awk 'NF == 1 { print $1 }' <<<"$jobsets" | paste -sd ' ')
    [[ ! $running ]] || fail "$running runs already: wait, or run launch/gke.sh stop"
    [[ ! $jobsets ]] || kube delete jobset -l "astro=$job" || fail "the finished JobSet cannot be removed; nothing was started"
    file=$(mktemp)
    manifest >"$file"
    kube apply -f "$file" ||
        fail "kubectl has failed; the JobSet may exist and cost money: see launch/gke.sh status, and launch/gke.sh stop"
}

stop() {
    kube delete jobset -l "astro=$job" || fail "the JobSet may still run and cost money: run launch/gke.sh stop again"
}

# XPK restarts a workload for a few exit codes only: 1 is that of an accident.
xpk() {
    [[ $STAGE != search ]] || fail "xpk: a workload is one run; use apply for STAGE=search"
    check_run
    check_access
    limited 600 xpk workload create --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" --workload "$job" \
        --tpu-type "$accelerator" --num-slices "$SLICES" --max-restarts 100 --restart-on-exit-codes 1 \
        --docker-image "$IMAGE" --command "$(command_line)" ||
        fail "XPK has failed; the workload may exist and cost money: see xpk workload list"
}

options "$@"
read_settings
check CLUSTER '[a-z][-a-z0-9]*' "a cluster"
check IMAGE '[a-z0-9][-._/:@a-zA-Z0-9]*' "a container image"
check SERVICE_ACCOUNT '[a-z][-a-z0-9]*' "a service account"
region=${ZONE%-*} job=$NAME pool=tpu-$generation-$shape pools=$SLICES
[[ $STAGE != search ]] || pools=$((SLICES * SHARDS)) shards=$SHARDS
[[ ! $SHARD ]] || fail "$settings: gke.sh starts all shares of a search: leave SHARD empty, and set SHARDS"
[[ $SLICES -eq 1 || $hosts -gt 1 ]] || fail "$settings: on GKE each of SLICES=$SLICES needs several hosts: take a larger TOPOLOGY"
[[ $STAGE == run ]] || job=$NAME-$STAGE
[[ $SPOT == no ]] || pool+=-spot
case ${words[*]} in
    check) check_run && check_access ;;
    setup | manifest | apply | stop | xpk) "${words[0]}" ;;
    status) kube get jobset -l "astro=$job" ;;
    logs) run kubectl --context="gke_${PROJECT}_${region}_$CLUSTER" logs -f "job/$job$([[ $STAGE != search ]] || echo -0)-slice-0" ;;
    *) usage ;;
esac
