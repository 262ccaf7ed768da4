#!/usr/bin/env bash
# logs.sh [--dry-run] [--env FILE] [HOST]
#
# Follows the output of the run on one host (default 0, the one that writes the run directory); Ctrl-C ends only this.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start 1 no "$@"
host=${ARGUMENTS[0]:-0}
[[ $host =~ ^[0-9]+$ ]] || fail "host is '$host', expected a number"
run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${WHERE[@]}" --worker "$host" --command "tail -n 100 -F sspo.log"
