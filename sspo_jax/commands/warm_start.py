"""`sspo warm-start EXPERIMENT`: trains an experiment's warm start anew and compares it with the one that is shipped."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.commands.options import parse
from sspo_jax.config import WarmStartConfig

if TYPE_CHECKING:
    from sspo_jax.trainer.setup import RunInputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStartCommand:
    """Trains the warm start of an experiment from random weights and compares it with the one shipped for it.

    On the jax version, the number of cores and the kind of processor that the shipped one was made on, the two are the
    same bit for bit; the process limits itself to that number of cores. Elsewhere roundings differ, which is said.
    """

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")] = "arithmetic_tiny"
    """Name of a file in experiments/, or the path of one."""
    out: str | None = None
    """Write the new weights to this directory, in the form in which they are shipped; must not exist."""


def main(arguments: Sequence[str]) -> int:
    """The command line of `sspo warm-start`; 0: the same weights as shipped, or none to compare with; 1: others."""
    command = parse(WarmStartCommand, arguments, prog="sspo warm-start")
    config = load_experiment(command.experiment)
    if config.warm_start is None:
        raise ValueError(f"{command.experiment} has no warm start; expected an experiment with a warm_start section")
    if command.out is not None and pathlib.Path(command.out).exists():
        raise ValueError(f"--out is {command.out}, which is there already; expected a new directory")
    from sspo_jax.trainer.setup import check
    from sspo_jax.trainer.shipped import SHIPPED, read_built, use_cores

    recorded = sorted(SHIPPED.glob("*/built.json"))
    use_cores(read_built(recorded[0].parent).cores if recorded else 2)  # before jax counts them
    inputs = check(dataclasses.replace(config, run_dir=None))
    return rebuild(config.warm_start, inputs, command.out, quiet=config.log.quiet)


def rebuild(config: WarmStartConfig, inputs: "RunInputs", out: str | None, *, quiet: bool) -> int:
    """Trains a warm start in a cache of its own and says how it compares.

    Args:
      config: of the warm start.
      inputs: of the run that it is of.
      out: where the weights are moved, or None.
      quiet: no progress bars.
    """
    from sspo_jax.runs.display import Display
    from sspo_jax.trainer.shipped import digest, here, read_built, ship, shipped_folder
    from sspo_jax.trainer.warm_start import warm_start, warm_start_key

    key = warm_start_key(config, inputs)
    shipped = shipped_folder(key)
    parent = pathlib.Path(out).resolve().parent if out else None
    with tempfile.TemporaryDirectory(prefix=".warm_start-", dir=parent) as folder, _cache_in(folder):
        own = dataclasses.replace(config, shipped=False)
        warm_start(own, inputs, Display(quiet=quiet))
        made = pathlib.Path(folder) / "warm_start" / key
        new = here(digest(made))
        if out is not None:
            ship(made)
            made.rename(out)
            print(f"{key}, written to {out}")
    if shipped is None:
        print(f"no warm start is shipped under {key}: nothing to compare with")
        return 0
    built = read_built(shipped)
    if built.sha256 == new.sha256:
        print(f"the same as the shipped {key}, bit for bit")
        return 0
    others = ", ".join(built.differences(new))
    print(
        f"not the same as the shipped {key}: {others} (shipped / here), which change roundings"
        if others
        else f"not the same as the shipped {key}, though jax, cores and processor are: another library or kernel"
    )
    return 1


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Keeps what is trained in another cache directory than the user's."""
    before = os.environ.get("SSPO_CACHE_DIR")
    os.environ["SSPO_CACHE_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["SSPO_CACHE_DIR"]
        else:
            os.environ["SSPO_CACHE_DIR"] = before
