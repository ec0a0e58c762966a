#!/usr/bin/env bash
# Runs on each worker of a slice. Usage: launch/worker.sh setup | start COMMAND ... | status [COMMAND ...] | stop
# With a command, `status` answers "not started" where another command has ended.
# A started command survives the end of the ssh connection and writes to run.log. Only one command runs at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
    setup)
        # The image's Python may be too old: uv installs a newer one.
        export PATH=$HOME/.local/bin:$PATH
        if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            python3 -m pip install -q --user uv
            uv python install -q 3.12
        fi
        bash launch/setup.sh requirements-tpu.lock
        # JAX asks for huge pages on TPU VMs: the start and transfers from the host are faster.
        if compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
            sudo -n sh -c 'echo always >/sys/kernel/mm/transparent_hugepage/enabled' || true
        fi
        ;;
    start)
        shift
        exec 9>run.lock
        flock -n 9 || exit 0 # a command is running
        rm -f run.code run.pid
        printf '%q ' "$@" >run.command
        export PATH=$PWD/.venv/bin:$PATH
        # The command inherits the lock and releases it when it ends.
        # shellcheck disable=SC2016
        setsid nohup bash -c 'echo $$ >run.pid; code=0; "$@" || code=$?; echo "$code" >run.code' - "$@" >>run.log 2>&1 </dev/null &
        ;;
    status)
        if ! flock -n run.lock true 2>/dev/null && [[ -e run.lock ]]; then
            echo "$HOSTNAME: running"
        elif [[ -e run.code && ($# -eq 1 || $(cat run.command) == "$(printf '%q ' "${@:2}")") ]]; then
            echo "$HOSTNAME: ended $(cat run.code)"
        else
            echo "$HOSTNAME: not started"
        fi
        ;;
    stop) # the command and its children; after half a minute they are killed
        running() { [[ -e run.lock && -e run.pid ]] && ! flock -n run.lock true; }
        for signal in TERM KILL; do
            if running; then kill -s "$signal" -- "-$(cat run.pid)" 2>/dev/null || true; fi
            for ((i = 0; i < 300; i++)); do
                running || exit 0
                sleep 0.1
            done
        done
        echo "$HOSTNAME: does not stop" >&2
        exit 1
        ;;
    *)
        echo "Usage: launch/worker.sh setup | start COMMAND ... | status [COMMAND ...] | stop" >&2
        exit 2
        ;;
esac
