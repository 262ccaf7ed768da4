#!/usr/bin/env bash
# launch.sh [--dry-run] [--env FILE] EXPERIMENT [--section.field value ...]
#
# Starts `sspo train EXPERIMENT ...` on all hosts of the TPU VM, and looks whether it still runs TPU_CHECK_SECONDS later.
# It goes on when the connection closes, and is started again when it dies (TPU_RESTARTS times in a row at most), at its
# last checkpoint. On several hosts --run-dir must be on a file system that all of them mount (Filestore, or a bucket
# with gcsfuse).
#
# What --data.path, --model.path and other --*.path name is used as it is where all hosts have it, and copied to them
# from here where they have not. HF_TOKEN, HF_HOME and the keys of trackers (all names: scripts/handed_on.sh) are passed
# on if set (here, or in the environment file; HF_HOME is a directory of the hosts), in a file that only you can read and
# that is gone once the run has begun.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start command no "$@"
((${#ARGUMENTS[@]})) || fail "no experiment: launch.sh EXPERIMENT [--section.field value ...]"
for word in "${ARGUMENTS[@]}"; do
  case $word in
    --dry-run* | --dry_run* | --dryrun* | --env | --env=* | --yes | --help | -h)
      fail "$word comes after the experiment: options of launch.sh come before it, those of the run name a field"
      ;;
  esac
done

experiment=${ARGUMENTS[0]} root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [[ ! -e $experiment && ! -e $root/$experiment && ! -e $root/experiments/$experiment.py ]]; then
  shipped=("$root"/experiments/[!_]*.py)
  shipped=("${shipped[@]##*/}")
  fail "no experiment $experiment: expected the path of a file, or one of ${shipped[*]%.py}"
fi

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
hosts=$(num_hosts) || exit 1 # also says early that there is no TPU VM

# Whether all hosts have a path (seen from ~/sspo_jax). A host that cannot be asked ends the launch.
everywhere() {
  local found=yes worker answer
  for ((worker = 0; worker < hosts; worker++)); do
    answer=$(retry gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${WHERE[@]}" --worker "$worker" \
      --command "cd sspo_jax 2> /dev/null; if test -e $(quoted "$1"); then echo sspo-has-it; else echo sspo-has-not; fi") ||
      fail "host $worker of $hosts could not be asked whether it has $1"
    case $answer in
      *sspo-has-it*) ;;
      *) found=no ;;
    esac
  done
  [[ $found == yes ]]
}

# Prints where the hosts have what an option names; copies it there if need be. (Names, on a dry run.)
carry() {
  local option=$1 path=$2 digest there
  if [[ $DRY_RUN == 1 || $path == *://* ]]; then
    if [[ $path != *://* ]]; then echo "$option $path: used where all hosts have it, else copied to them" >&2; fi
    echo "$path"
    return
  fi
  if everywhere "$path"; then
    echo "$path"
    return
  fi
  if [[ ! -e $path ]]; then
    if [[ $option == --model.path && $path =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$ ]]; then
      echo "$option $path is neither here nor on the hosts: taken for a name on the Hugging Face Hub" >&2
      echo "$path"
      return
    fi
    fail "$option $path is neither here nor on all hosts: put it here, to be copied, or on every host or a disk they mount"
  fi
  digest=$(cd "$(dirname "$path")" && find -L "$(basename "$path")" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
  there=sspo_inputs/${digest:0:16}
  if ! everywhere "../$there/$(basename "$path")"; then
    echo "copying $path to all hosts, ~/$there" >&2
    on_all_hosts "rm -rf $(quoted "$there.part") && mkdir -p $(quoted "$there.part")" >&2
    retry gcloud compute tpus tpu-vm scp --recurse "$path" "$TPU_NAME:$there.part/" "${WHERE[@]}" --worker all >&2 ||
      fail "$path could not be copied to the hosts"
    # A copy that broke off keeps its name. An attempt that is repeated finds the work done.
    on_all_hosts "test -e $(quoted "$there") || mv $(quoted "$there.part") $(quoted "$there")" >&2
  fi
  echo "../$there/$(basename "$path")"
}

for ((index = 0; index < ${#ARGUMENTS[@]}; index++)); do
  word=${ARGUMENTS[index]}
  case $word in
    --*.path=*)
      there=$(carry "${word%%=*}" "${word#*=}") || exit 1
      ARGUMENTS[index]="${word%%=*}=$there"
      ;;
    --*.path)
      ((index + 1 < ${#ARGUMENTS[@]})) || fail "$word needs a path"
      there=$(carry "$word" "${ARGUMENTS[index + 1]}") || exit 1
      ARGUMENTS[index + 1]=$there
      index=$((index + 1))
      ;;
  esac
done

if [[ " ${ARGUMENTS[*]} " != *" --run-dir"* ]]; then
  experiment=$(basename "${ARGUMENTS[0]}" .py)
  ARGUMENTS+=(--run-dir "runs/$experiment-$(date +%Y%m%d-%H%M%S)") # one name for all hosts
fi
training=$(quoted .venv/bin/python -m sspo_jax train "${ARGUMENTS[@]}" "--supervise=${TPU_RESTARTS:-20}" \
  --distributed.launcher auto)
launch=$(date +%s)-$$ # a connection may break after the run has started; the next attempt then knows it

# Words of a command can be read by all users of a machine, here and there, and end in logs; so secrets go in a file.
secrets="sspo.environment-$launch" names=()
(umask 077 && : > "$temporary/$secrets")
for name in "${HANDED_ON[@]}"; do
  if [[ -n ${!name:-} ]]; then
    names+=("$name")
    printf 'export %s=%q\n' "$name" "${!name}" >> "$temporary/$secrets"
  fi
done
read_secrets=
if ((${#names[@]})); then
  report "passing on ${names[*]}"
  retry gcloud compute tpus tpu-vm scp "$temporary/$secrets" "$TPU_NAME:$secrets" "${WHERE[@]}" --worker all
  read_secrets="trap 'rm -f ../$secrets' EXIT
test -f ../$secrets || { echo 'the file with ${names[*]} is gone: launch.sh again' >&2; exit 3; }
chmod 600 ../$secrets
. ../$secrets"
fi

on_all_hosts "cd sspo_jax && test -x .venv/bin/python || { rm -f $secrets ../$secrets; echo 'nothing is installed: setup.sh first' >&2; exit 3; }
if test -f ../sspo.pid && kill -0 \"\$(cat ../sspo.pid)\" 2> /dev/null; then
  rm -f ../$secrets
  if test \"\$(cat ../sspo.launch 2> /dev/null)\" = $launch; then exit 0; fi
  echo 'a run is going on: stop.sh first' >&2; exit 3
fi
$read_secrets
echo $launch > ../sspo.launch
rm -f ../sspo.stopping
setsid nohup $training > ../sspo.log 2>&1 < /dev/null &
echo \$! > ../sspo.pid"

# A run that cannot begin ends within seconds, and a started process is no started run.
if [[ $DRY_RUN == 0 ]]; then echo "looking for ${TPU_CHECK_SECONDS:-20} s whether it runs"; fi
on_all_hosts "lives() {
  case \"\$(ps -o stat= -p \"\$(cat sspo.pid)\")\" in '' | Z*) return 1 ;; esac # none, or one that nobody has buried
  ! grep -q '^sspo: the run ended with' sspo.log
}
for _ in \$(seq ${TPU_CHECK_SECONDS:-20}); do sleep 1; lives || break; done
lives && exit 0
echo 'the run has ended already (or has been started again); the end of its output:' >&2
tail -n 20 sspo.log >&2
exit 3"
report "started, and running on all hosts. Follow it: logs.sh"
