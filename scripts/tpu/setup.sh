#!/usr/bin/env bash
# setup.sh [--dry-run] [--env FILE]
#
# Copies the committed state of this checkout to all hosts of the TPU VM and installs it there in ~/sspo_jax/.venv,
# with JAX for TPUs. Can be called again after a change: what is installed already is kept.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start 0 no "$@"

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
run git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
retry gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:sspo_jax.tar.gz" "${WHERE[@]}" --worker all
on_all_hosts "set -e; mkdir -p sspo_jax; tar -xzf sspo_jax.tar.gz -C sspo_jax; cd sspo_jax
PYTHON=python3
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  sudo apt-get -qq update && sudo apt-get -qq install -y python3.11 python3.11-venv
  PYTHON=python3.11
fi
test -x .venv/bin/python || \$PYTHON -m venv .venv
.venv/bin/pip install -q -r requirements.txt -e '.[all,tpu]'
.venv/bin/python -c 'import libtpu'"
report "installed on all hosts. Next: launch.sh EXPERIMENT"
