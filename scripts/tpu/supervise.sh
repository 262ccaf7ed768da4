#!/usr/bin/env bash
# supervise.sh LIMIT COMMAND [ARGUMENT ...]
#
# Runs a command again when it fails, at most LIMIT times, waiting 5 s, 10 s, ... up to 5 minutes. A run that lived for
# an hour starts the count anew: losing a host once a day is no reason to give up. It ends with the command's own code,
# and at once when the command succeeds, is wrong (code 2) or is stopped by a signal to this script.
set -uo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
  exit 0
fi
if [[ $# -lt 2 || ! $1 =~ ^[0-9]+$ ]]; then
  echo "supervise.sh: want a number and a command, got: $*" >&2
  exit 2
fi
limit=$1
shift
restarts=0
wait=${SUPERVISE_WAIT_SECONDS:-5}
child=
stopped=0
trap 'stopped=1; if [[ -n $child ]]; then kill -TERM "$child" 2> /dev/null; fi' TERM INT
while true; do
  began=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  code=$?
  if ((stopped)); then
    wait "$child" # the first wait ended at the signal; the command still saves its state
    exit $?
  fi
  if ((code == 0 || code == 2)); then exit "$code"; fi
  if ((SECONDS - began > 3600)); then
    restarts=0
    wait=${SUPERVISE_WAIT_SECONDS:-5}
  fi
  if ((restarts >= limit)); then
    echo "supervise.sh: ended with code $code, $restarts restarts are used up" >&2
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "supervise.sh: ended with code $code; restart $restarts of $limit in $wait s" >&2
  sleep "$wait" &
  child=$!
  wait "$child"
  if ((stopped)); then exit 143; fi
  wait=$((wait * 2 > 300 ? 300 : wait * 2))
done
