"""`sspo train EXPERIMENT [--supervise] [--section.field value ...]`."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

from sspo_jax.commands.experiments import choose_objective, known, load_experiment
from sspo_jax.commands.options import parse, with_reward_options, without_reward_options
from sspo_jax.config import TrainConfig
from sspo_jax.distributed.processes import DistributedConfig, initialize, settings
from sspo_jax.distributed.supervise import RESTARTS, supervise
from sspo_jax.runs.compilation import enable_compilation_cache
from sspo_jax.runs.directory import new_path

_USAGE = """usage: sspo train EXPERIMENT [--supervise[=RESTARTS]] [--loss NAME] [--section.field value ...]

EXPERIMENT is the name of a file in experiments/ or the path of one. Its options: sspo train EXPERIMENT --help
--loss replaces its objective by a published one: grpo, gspo, sspo_calibrated, ... (an unknown name lists all)
--supervise starts the run again when its process dies (preemption, a lost host), at its last checkpoint.

experiments:
"""


def main(arguments: Sequence[str]) -> int:
    """Trains an experiment; exit code 0 if the run is complete or was stopped and saved."""
    arguments = list(arguments)
    if not arguments or arguments[0].startswith("-"):
        print(_USAGE + known())
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    experiment, *rest = arguments
    enable_compilation_cache()
    default = load_experiment(experiment)
    restarts, rest = _supervision(rest)
    objective, options = choose_objective(default.loss, rest)
    default = dataclasses.replace(default, loss=objective)
    options, of_rewards = without_reward_options(options)
    config = parse(TrainConfig, options, prog=f"sspo train {experiment}", default=default)
    config = dataclasses.replace(config, reward=with_reward_options(config.reward, of_rewards))
    if restarts is not None:
        return _supervised(experiment, rest, config.run_dir, config.distributed, restarts)
    initialize(config.distributed)
    from sspo_jax.trainer import train  # what computes is imported once the processes have found each other

    train(config, experiment=pathlib.Path(experiment).stem, shortened=shortened(default.sizes, config.sizes))
    return 0


def shortened(experiment: Mapping[str, int | None], run: Mapping[str, int | None]) -> list[str]:
    """Where a run is smaller than its experiment, option by option: `--steps 5 of 30`.

    Args:
      experiment, run: `TrainConfig.sizes` of both.
    """
    found = []
    for name, full in experiment.items():
        now = run.get(name)
        if now is not None and (full is None or now < full):
            found.append(f"--{name.replace('_', '-')} {now} of {'all' if full is None else full}")
    return found


def _supervision(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """(restarts, or None where no supervision is asked for; the other arguments)."""
    restarts, others = None, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != "--supervise":
            others.append(argument)
        elif value and not value.isdigit():
            raise ValueError(f"{argument}: expected a number of restarts, as in --supervise=20")
        else:
            restarts = int(value) if value else RESTARTS
    return restarts, others


def _supervised(
    experiment: str, rest: Sequence[str], run_dir: str | None, distributed: DistributedConfig, restarts: int
) -> int:
    command = [sys.executable, "-m", "sspo_jax", "train", experiment, *rest]
    if run_dir is None:
        if settings(distributed) is not None:
            raise ValueError("--supervise on several processes needs --run-dir: all of them must name the same one")
        run_dir = str(new_path(pathlib.Path(experiment).stem))  # chosen here, so that a restart finds it
        command += ["--run-dir", run_dir]
    return supervise(command, pathlib.Path(run_dir), restarts=restarts)
