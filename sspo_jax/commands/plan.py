"""`sspo plan EXPERIMENT --topology v5e:2x4`: does a run fit on TPUs that are not here."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from sspo_jax.commands.experiments import choose_objective, load_experiment
from sspo_jax.commands.options import parse
from sspo_jax.config import TrainConfig
from sspo_jax.planning.chips import chip_of, prepare_host
from sspo_jax.planning.plan import fits, plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Compiles the programs of a run for TPUs that are not here, and says whether they fit.

    Any option of `sspo train EXPERIMENT` may follow, e.g. --mesh.tensor 2 --update.micro-rows 16.
    """

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """Name of a file in experiments/, or the path of one."""
    topology: str = "v5e:2x4"
    """v4:2x2x1, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ..."""
    slices: int = 1
    """Slices of that topology."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo plan`; 0: fits, 3: does not."""
    options, overrides = tyro.cli(PlanOptions, args=list(arguments), prog="sspo plan", return_unknown_args=True)
    if options.slices < 1:
        raise ValueError(f"--slices is {options.slices}; expected at least 1")
    chip = chip_of(options.topology)
    prepare_host()
    default = load_experiment(options.experiment)
    objective, overrides = choose_objective(default.loss, overrides)
    default = dataclasses.replace(default, loss=objective)
    config = parse(TrainConfig, overrides, prog=f"sspo plan {options.experiment}", default=default)
    programs = plan(config, topology=options.topology, slices=options.slices, report=print)
    return 0 if fits(programs, chip) else 3
