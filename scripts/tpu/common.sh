# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by the scripts that source this one
# What the scripts share: options, the environment file, running on hosts. Sourced, not run.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
DRY_RUN=0
YES=0
ARGUMENTS=()

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# The comment at the head of the script is its help.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

# start MOST ASKS "$@": the options, and at most MOST other words, which are left in ARGUMENTS. ASKS is yes where --yes
# means something. MOST is "command" where all from the first other word on belongs to another program.
start() {
  local most=$1 asks=$2 env_file=${TPU_ENV:-$HERE/tpu.env}
  shift 2
  while [[ $# -gt 0 ]]; do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --env)
        [[ $# -gt 1 ]] || fail "--env needs a file"
        env_file=$2
        shift
        ;;
      --env=*) env_file=${1#--env=} ;;
      --yes)
        [[ $asks == yes ]] || fail "unknown option --yes: this script asks nothing"
        YES=1
        ;;
      -*) fail "unknown option $1, expected $(usage | head -n 1)" ;;
      *)
        if [[ $most == command ]]; then
          ARGUMENTS=("$@")
          break
        fi
        ARGUMENTS+=("$1")
        ((${#ARGUMENTS[@]} <= most)) || fail "what is '$1'? expected $(usage | head -n 1)"
        ;;
    esac
    shift
  done
  [[ -f $env_file ]] || fail "no file $env_file: copy $HERE/tpu.env.example there and fill it in, or name one with --env"
  # shellcheck source=/dev/null
  source "$env_file"
  local name
  for name in TPU_NAME TPU_ZONE TPU_TYPE TPU_RUNTIME; do
    [[ -n ${!name:-} ]] || fail "$env_file does not set $name"
  done
  WHERE=(--zone "$TPU_ZONE")
  if [[ -n ${TPU_PROJECT:-} ]]; then WHERE+=(--project "$TPU_PROJECT"); fi
  command -v gcloud > /dev/null || [[ $DRY_RUN == 1 ]] || fail "no gcloud on the PATH: install the Google Cloud CLI"
}

# Variables of the environment that a run is handed: of the Hugging Face Hub, of the trackers, of a sampling server.
# shellcheck source=../handed_on.sh
source "$HERE/../handed_on.sh"

# What was done, in words; with --dry-run nothing was.
report() {
  [[ $DRY_RUN == 1 ]] || echo "$*"
}

# Runs a command; with --dry-run prints it as it could be typed.
run() {
  if [[ $DRY_RUN == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Runs a command again when it fails, waiting longer each time; not after exit code 3, which will not get better.
retry() {
  local attempt=1 wait=${TPU_RETRY_SECONDS:-10} status
  until run "$@" && status=0 || status=$? && ((status == 0)); do
    if ((attempt >= ${TPU_RETRIES:-4} || status == 3)); then return 1; fi
    echo "attempt $attempt failed, again in $wait s" >&2
    sleep "$wait"
    attempt=$((attempt + 1))
    wait=$((wait * 2))
  done
}

# Of the TPU VM, and of its queued resource: gcloud's word, ABSENT, or UNKNOWN where gcloud could not find out.
state() { described tpu-vm 'value(state)'; }
queue_state() { described queued-resources 'value(state.state)'; }

described() {
  local errors
  errors=$(mktemp)
  if ! gcloud compute tpus "$1" describe "$TPU_NAME" "${WHERE[@]}" --format="$2" 2> "$errors"; then
    if grep -qi 'not[_ ]found' "$errors"; then echo ABSENT; else echo UNKNOWN; fi
  fi
  rm -f "$errors"
}

num_hosts() {
  if [[ $DRY_RUN == 1 ]]; then
    echo "${TPU_HOSTS:-1}"
    return
  fi
  local addresses
  addresses=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${WHERE[@]}" \
    --format='value(networkEndpoints[].ipAddress)') || fail "no TPU VM $TPU_NAME in $TPU_ZONE: create.sh first"
  awk -F';' '{print NF}' <<< "$addresses"
}

# Runs a shell command on every host at the same time; names the hosts on which it failed.
on_all_hosts() {
  local hosts worker failed=()
  hosts=$(num_hosts)
  local -a pids=()
  for ((worker = 0; worker < hosts; worker++)); do
    retry gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${WHERE[@]}" --worker "$worker" --command "$1" &
    pids+=($!)
  done
  for ((worker = 0; worker < hosts; worker++)); do
    wait "${pids[$worker]}" || failed+=("$worker")
  done
  if ((${#failed[@]})); then
    fail "failed on host ${failed[*]} of $hosts; the others are done. Look there: scripts/tpu/logs.sh ${failed[0]}"
  fi
}

# Words quoted for a shell on another machine.
quoted() {
  local word
  for word in "$@"; do printf '%q ' "$word"; done
}
