#!/usr/bin/env bash
# Starts a run on GKE as a JobSet. Usage: launch/gke.sh COMMAND [--dry-run] [--settings FILE]
#
#   manifest  print the JobSet             logs    follow the log of the first worker
#   apply     start the JobSet             delete  stop and remove the JobSet
#   status    show the JobSet              xpk     start the run through XPK, which makes its own JobSet
#
# With STAGE=search the command makes SHARDS JobSets. Each searches its own share of the problems.
# Settings: launch/tpu.env, made from launch/tpu.env.example. --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/settings.sh

kube() { run kubectl --context="gke_${PROJECT}_${ZONE%-*}_$CLUSTER" "$@"; }

command_line() { quoted "${command[@]}" "$@"; } # for the pod's bash

# Prints the JobSet of a run, or one JobSet for each shard of a search: a lost pod then restarts only its own shard.
manifest() {
    local i
    if [[ $STAGE != search ]]; then
        jobset "$NAME" "$(command_line)"
        return
    fi
    for ((i = 0; i < SHARDS; i++)); do
        jobset "$NAME-$i" "$(command_line --shard "$i/$SHARDS")"
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
    astro: $NAME
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
      replicas: 1
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
    check_access
    if [[ $dry_run ]]; then
        manifest
        kube apply -f -
    else
        manifest | kube apply -f -
    fi
}

xpk() {
    [[ $STAGE != search ]] || fail "xpk: a workload is one run; use apply for STAGE=search"
    run xpk workload create --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" --workload "$NAME" \
        --tpu-type "$accelerator" --num-slices 1 --max-restarts 100 --docker-image "$IMAGE" --command "$(command_line)"
}

options "$@"
read_settings
check CLUSTER '[a-z][-a-z0-9]*' "a cluster"
check IMAGE '[a-z0-9][-._/:@a-zA-Z0-9]*' "a container image"
check SERVICE_ACCOUNT '[a-z][-a-z0-9]*' "a service account"
case ${words[*]} in
    manifest | apply | xpk) "${words[0]}" ;;
    status) kube get jobset -l "astro=$NAME" ;;
    logs) kube logs -f "job/$NAME$([[ $STAGE != search ]] || echo -0)-slice-0" ;;
    delete) kube delete jobset -l "astro=$NAME" ;;
    *) usage ;;
esac
