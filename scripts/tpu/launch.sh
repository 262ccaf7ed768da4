#!/usr/bin/env bash
# launch.sh [--dry-run] [--env FILE] EXPERIMENT [--section.field value ...]
#
# Starts `sspo train EXPERIMENT ...` on all hosts of the TPU VM. It goes on when the connection closes, and is started
# again when it dies (TPU_RESTARTS times at most): with the same --run-dir it resumes at its last checkpoint.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"
((${#ARGUMENTS[@]})) || fail "no experiment: launch.sh EXPERIMENT [--section.field value ...]"

training=$(quoted .venv/bin/python -m sspo_jax train "${ARGUMENTS[@]}")
on_all_hosts "cd sspo_jax || exit 1
if test -f ../sspo.pid && kill -0 \"\$(cat ../sspo.pid)\" 2> /dev/null; then echo 'a run is going on: stop.sh first' >&2; exit 1; fi
setsid nohup scripts/tpu/supervise.sh ${TPU_RESTARTS:-20} $training > ../sspo.log 2>&1 < /dev/null &
echo \$! > ../sspo.pid"
echo "started on all hosts. Follow it: logs.sh"
