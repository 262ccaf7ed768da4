#!/usr/bin/env bash
# launch.sh [--dry-run] [--env FILE] EXPERIMENT [--section.field value ...]
#
# Starts `sspo train EXPERIMENT ...` on all hosts of the TPU VM. It goes on when the connection closes, and is started
# again when it dies (TPU_RESTARTS times in a row at most), at its last checkpoint. On several hosts --run-dir must be
# on a file system that all of them mount (Filestore, or a bucket with gcsfuse).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"
((${#ARGUMENTS[@]})) || fail "no experiment: launch.sh EXPERIMENT [--section.field value ...]"

if [[ " ${ARGUMENTS[*]} " != *" --run-dir"* ]]; then
  experiment=$(basename "${ARGUMENTS[0]}" .py)
  ARGUMENTS+=(--run-dir "runs/$experiment-$(date +%Y%m%d-%H%M%S)") # one name for all hosts
fi
training=$(quoted .venv/bin/python -m sspo_jax train "${ARGUMENTS[@]}" "--supervise=${TPU_RESTARTS:-20}" \
  --distributed.launcher auto)
launch=$(date +%s)-$$ # a connection may break after the run has started; the next attempt then knows it
on_all_hosts "cd sspo_jax || { echo 'nothing is installed: setup.sh first' >&2; exit 3; }
if test -f ../sspo.pid && kill -0 \"\$(cat ../sspo.pid)\" 2> /dev/null; then
  if test \"\$(cat ../sspo.launch 2> /dev/null)\" = $launch; then exit 0; fi
  echo 'a run is going on: stop.sh first' >&2; exit 3
fi
echo $launch > ../sspo.launch
rm -f ../sspo.stopping
setsid nohup $training > ../sspo.log 2>&1 < /dev/null &
echo \$! > ../sspo.pid"
report "started on all hosts. Follow it: logs.sh"
