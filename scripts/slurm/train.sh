#!/usr/bin/env bash
#SBATCH --job-name=sspo
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-gpu=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# sbatch [--nodes N --time T ...] scripts/slurm/train.sh EXPERIMENT --run-dir DIR [--section.field value ...]
#
# Trains on the GPUs of one node (one process drives them all) or of several (one process for each GPU), from a checkout
# with `make install` and JAX for its GPUs (docs/gpu.md). Call it from the checkout. DIR is on a file system that all nodes
# mount. 15 minutes before its time is over, and when it is preempted, the run saves its last step and ends; the job then
# puts itself back into the queue and goes on there, until the run is complete or has failed.
#
# sbatch hands your environment on: HF_TOKEN, HF_HOME, WANDB_API_KEY and the others of scripts/handed_on.sh. With
# `sbatch --export=NONE`, or at a site that sets it, name them: --export=HF_TOKEN,HF_HOME,WANDB_API_KEY.
set -euo pipefail

fail() {
  echo "train.sh: $*" >&2
  exit 1
}

usage() {
  sed -n '/^# sbatch \[/,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
}

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  '' | -*) fail "no experiment, expected $(usage | head -n 1)" ;;
esac
[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is no Slurm job: sbatch scripts/slurm/train.sh $*"
cd "${SLURM_SUBMIT_DIR:-.}"
[[ -f scripts/handed_on.sh ]] || fail "${SLURM_SUBMIT_DIR:-.} is no checkout of sspo_jax: call sbatch from there"
[[ -x .venv/bin/python ]] || fail "nothing is installed: make install, and JAX for your GPUs (docs/gpu.md)"
# shellcheck source=scripts/handed_on.sh
source scripts/handed_on.sh

run_dir=
words=("$@")
for ((index = 0; index < ${#words[@]}; index++)); do
  case ${words[index]} in
    --run-dir=*) run_dir=${words[index]#*=} ;;
    --run-dir) run_dir=${words[index + 1]:-} ;;
  esac
done
[[ -n $run_dir ]] || fail "no --run-dir: the job must find its run again when it comes back from the queue"

names=()
for name in "${HANDED_ON[@]}"; do
  if [[ -n ${!name:-} ]]; then names+=("$name"); fi
done
echo "handed on: ${names[*]:-nothing}"

# JAX takes one GPU for each task of a step of several; a single task is a plain process, which has all of them.
nodes=${SLURM_JOB_NUM_NODES:-1}
tasks=1
if ((nodes > 1)); then tasks=$((nodes * ${SLURM_GPUS_ON_NODE:-8})); fi
status=0
srun --ntasks="$tasks" --kill-on-bad-exit=1 .venv/bin/python -m sspo_jax train "$@" || status=$?

if [[ -f $run_dir/summary.json && $status == 0 ]]; then
  echo "complete. Next: .venv/bin/sspo evaluate --model $run_dir"
  exit 0
fi
# 0: it was asked to stop, and has saved; 75: a process or the disk was lost; 137, 143: killed. The others stay errors.
case $status in
  0 | 75 | 137 | 143) ;;
  *) fail "the run ended with code $status: see above; sbatch again with the same words goes on" ;;
esac
restarts=${SLURM_RESTART_COUNT:-0}
((restarts < ${SSPO_REQUEUES:-20})) || fail "back in the queue $restarts times already: look why, then sbatch again"
echo "not complete (code $status): back into the queue"
scontrol requeue "$SLURM_JOB_ID"
