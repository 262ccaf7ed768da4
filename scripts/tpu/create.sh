#!/usr/bin/env bash
# create.sh [--dry-run] [--env FILE] [--yes]
#
# Creates the TPU VM that the environment file describes and waits until it is ready: through a queued resource
# (TPU_QUEUED=1, waits in line) or at once; on spot capacity with TPU_SPOT=1. It costs money from the moment it is
# ready until delete.sh, whether anything runs on it or not: it says what will cost and asks first, unless --yes.
# Called again it goes on waiting and asks for nothing new.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start 0 yes "$@"

# ", N chips" where the name of the type tells: it counts cores up to v4 and in v5p, chips in the others.
num_chips() {
  local count=${TPU_TYPE##*-}
  [[ $count =~ ^[0-9]+$ ]] || return 0
  case $TPU_TYPE in
    v5lite* | v5e-* | v6e-*) echo ", $count chips" ;;
    v2-* | v3-* | v4-* | v5p-*) echo ", $((count / 2)) chips" ;;
  esac
}

asked=ABSENT
if [[ ${TPU_QUEUED:-1} == 1 ]]; then
  if [[ $DRY_RUN == 0 ]]; then asked=$(queue_state); fi
  command=(gcloud compute tpus queued-resources create "$TPU_NAME" --node-id "$TPU_NAME" "${WHERE[@]}"
    --accelerator-type "$TPU_TYPE" --runtime-version "$TPU_RUNTIME")
else
  if [[ $DRY_RUN == 0 ]]; then asked=$(state); fi
  command=(gcloud compute tpus tpu-vm create "$TPU_NAME" "${WHERE[@]}"
    --accelerator-type "$TPU_TYPE" --version "$TPU_RUNTIME")
fi
if [[ ${TPU_SPOT:-0} == 1 ]]; then command+=(--spot); fi
if [[ $asked == ABSENT || $asked == UNKNOWN ]]; then
  if [[ $DRY_RUN == 0 ]]; then
    echo "This will cost money: TPU VM $TPU_NAME in $TPU_ZONE${TPU_PROJECT:+, project $TPU_PROJECT}"
    echo "  $TPU_TYPE$(num_chips), $([[ ${TPU_SPOT:-0} == 1 ]] && echo 'spot: cheaper, may be taken away at any time' || echo 'on demand')"
    if [[ ${TPU_QUEUED:-1} == 1 ]]; then
      echo "  from the moment its turn in the queue comes, also when nobody is looking, until delete.sh"
    else
      echo "  from now until delete.sh"
    fi
    echo "  for the price of the type in the zone see https://cloud.google.com/tpu/pricing"
    if [[ $YES == 0 ]]; then
      [[ -t 0 ]] || fail "nobody is at a terminal to be asked: with --yes it is created without a question"
      read -r -p "Create it? Type yes: " answer || answer=
      [[ $answer == yes ]] || fail "not created"
    fi
  fi
  run "${command[@]}"
else
  echo "$TPU_NAME has been asked for already and is $asked: waiting for it"
fi
if [[ $DRY_RUN == 1 ]]; then exit 0; fi

deadline=$((SECONDS + ${TPU_WAIT_SECONDS:-21600}))
until now=$(state) && [[ $now == READY ]]; do
  if [[ ${TPU_QUEUED:-1} == 1 && $now == ABSENT ]]; then now=$(queue_state); fi
  case $now in
    FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED)
      fail "$TPU_NAME is $now and will not become ready: delete.sh, then create.sh again"
      ;;
  esac
  if ((SECONDS >= deadline)); then
    fail "$TPU_NAME is $now after ${TPU_WAIT_SECONDS:-21600} s; it stays in line: call create.sh again later or delete.sh"
  fi
  sleep "${TPU_POLL_SECONDS:-30}"
done
echo "$TPU_NAME ($TPU_TYPE) is ready, $(num_hosts) hosts. Next: setup.sh. It costs until delete.sh."
