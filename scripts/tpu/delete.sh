#!/usr/bin/env bash
# delete.sh [--dry-run] [--env FILE] [--yes]
#
# Deletes the TPU VM with everything on its disks, and its queued resource. Asks for the name first, unless --yes.
# Until this has succeeded the TPU costs money, also when nothing runs on it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start 0 yes "$@"
if [[ $YES == 0 && $DRY_RUN == 0 ]]; then
  read -r -p "Delete $TPU_NAME in $TPU_ZONE and all that is on it? Type its name: " answer || fail "no answer: nothing is deleted"
  [[ $answer == "$TPU_NAME" ]] || fail "not deleted"
fi
if [[ ${TPU_QUEUED:-1} == 1 ]]; then
  # --force deletes the node with it.
  retry gcloud compute tpus queued-resources delete "$TPU_NAME" "${WHERE[@]}" --force --quiet || true
else
  retry gcloud compute tpus tpu-vm delete "$TPU_NAME" "${WHERE[@]}" --quiet || true
fi
if [[ $DRY_RUN == 0 ]]; then
  left=$(state)
  if [[ ${TPU_QUEUED:-1} == 1 && $left == ABSENT ]]; then left=$(queue_state); fi
  [[ $left == ABSENT ]] || fail "$TPU_NAME is not known to be gone ($left): it costs until it is, call delete.sh again"
  echo "$TPU_NAME is gone"
fi
