#!/usr/bin/env bash
# stop.sh [--dry-run] [--env FILE]
#
# Stops the run on all hosts with SIGTERM: it saves a checkpoint and ends. The TPU VM stays, and costs: see delete.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start "$@"
on_all_hosts "if test -f sspo.pid; then kill -TERM \"\$(cat sspo.pid)\" 2> /dev/null; rm -f sspo.pid; fi; true"
echo "told all hosts to stop. The TPU VM $TPU_NAME still costs: delete.sh"
