"""`sspo plan EXPERIMENT`: does a run fit on TPUs that are not here."""

import argparse
from collections.abc import Sequence

from sspo_jax.planning import plan as planning


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo plan`; 0: fits, 3: does not."""
    parser = argparse.ArgumentParser(
        prog="sspo plan",
        description=(planning.__doc__ or "").split("\n\n")[1],
        epilog="Any option of `sspo train EXPERIMENT` may follow, e.g. --mesh.tensor 2 --update.micro-rows 16.",
    )
    parser.add_argument("experiment", help="name of a file in experiments/, or the path of one")
    parser.add_argument("--topology", default="v5e:2x4", help="v4:2x2x1, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ...")
    parser.add_argument("--slices", type=int, default=1, help="slices of that topology (default 1)")
    options, overrides = parser.parse_known_args(list(arguments))
    if options.slices < 1:
        raise ValueError(f"--slices is {options.slices}; expected at least 1")
    planning.prepare_host()
    from sspo_jax.commands.experiments import choose_objective, load_experiment
    from sspo_jax.commands.options import parse
    from sspo_jax.config import TrainConfig

    default, overrides = choose_objective(load_experiment(options.experiment), overrides)
    config = parse(TrainConfig, overrides, prog=f"sspo plan {options.experiment}", default=default)
    programs = planning.plan(config, topology=options.topology, slices=options.slices, report=print)
    limit = planning.chip_of(options.topology).memory_gib * planning.GIB
    return 0 if all(not program.refusal and program.total <= limit for program in programs) else 3
