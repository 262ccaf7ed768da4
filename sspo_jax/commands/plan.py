"""`sspo plan EXPERIMENT --topology v5e:2x4`: does a run fit on TPUs that are not here, how long, for how much."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from sspo_jax.commands.experiments import choose_objective, load_experiment
from sspo_jax.commands.options import parse
from sspo_jax.config import TrainConfig
from sspo_jax.planning.chips import chip_of, prepare_host, topology_devices
from sspo_jax.planning.cost import cost, disk, gpus_of, step_floor
from sspo_jax.planning.plan import fits, plan
from sspo_jax.planning.programs import resolve_shape
from sspo_jax.ranges import NotNegative
from sspo_jax.runs.next_commands import next_commands


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Compiles the programs of a run for TPUs that are not here, and says whether they fit; then hours, cost and disk.

    For GPUs (h100:8) nothing is compiled: hours, cost and disk alone.

    Any option of `sspo train EXPERIMENT` may follow, e.g. --mesh.tensor 2 --update.micro-rows 16.
    """

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """Name of a file in experiments/, or the path of one."""
    topology: str = "v5e:2x4"
    """v4:2x2x1, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ...; or GPUs: a100:8, h100:8, h200:8."""
    slices: int = 1
    """Slices of that topology."""
    price_per_chip_hour: NotNegative | None = None
    """What one chip costs for an hour, in any currency: the plan then says what the run costs."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo plan`; 0: fits, 3: does not."""
    options, overrides = tyro.cli(PlanOptions, args=list(arguments), prog="sspo plan", return_unknown_args=True)
    if options.slices < 1:
        raise ValueError(f"--slices is {options.slices}; expected at least 1")
    gpus = gpus_of(options.topology)
    chip, chips = gpus or (chip_of(options.topology), 0)
    if gpus is None:
        prepare_host()
    default = load_experiment(options.experiment)
    objective, overrides = choose_objective(default.loss, overrides)
    default = dataclasses.replace(default, loss=objective)
    config = parse(TrainConfig, overrides, prog=f"sspo plan {options.experiment}", default=default)
    programs = []
    if gpus is None:
        programs = plan(config, topology=options.topology, slices=options.slices, report=print)
        chips = len(topology_devices(options.topology, options.slices))
    else:
        config.check()
        chips *= options.slices
        print(f"{chips} GPUs: nothing is compiled for them, so whether it fits is not known")
    model, rollout, lora = resolve_shape(config.model), config.rollout, config.model.lora
    samples, has_reference = rollout.prompts * rollout.group_size, config.loss.reads_reference
    floor = step_floor(model, rollout, chip, chips, epochs=config.update.epochs, has_reference=has_reference, lora=lora)
    for line in cost(floor, steps=config.steps, samples=samples, chips=chips, price=options.price_per_chip_hour):
        print(line)
    tokens = config.steps * samples * rollout.max_new_tokens if config.log.rollouts_every else 0
    keeps_best = config.evaluation.best != "none"
    print(disk(model, config.checkpoint, lora=lora, keeps_best=keeps_best, response_tokens=tokens))
    print(next_commands(f"train {options.experiment} {' '.join(overrides)}"))
    return 0 if fits(programs, chip) else 3
