#!/usr/bin/env bash
# stop.sh [--dry-run] [--env FILE]
#
# Stops the run on all hosts with SIGTERM and waits until it has saved a checkpoint and ended, TPU_STOP_SECONDS at most.
# Called again it waits on. The TPU VM stays, and costs: see delete.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start 0 no "$@"
# A second SIGTERM would end the run without saving, so a call that is repeated must not send one.
on_all_hosts "test -f sspo.pid || exit 0
pid=\$(cat sspo.pid)
if test \"\$(cat sspo.stopping 2> /dev/null)\" != \"\$pid\"; then echo \"\$pid\" > sspo.stopping; kill -TERM \"\$pid\" 2> /dev/null; fi
for _ in \$(seq ${TPU_STOP_SECONDS:-1800}); do
  kill -0 \"\$pid\" 2> /dev/null || { rm -f sspo.pid sspo.stopping; exit 0; }
  sleep 1
done
echo 'the run has not ended yet' >&2
exit 3"
report "stopped on all hosts. The TPU VM $TPU_NAME still costs: delete.sh"
