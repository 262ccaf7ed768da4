"""`sspo train EXPERIMENT [--supervise] [--section.field value ...]`."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sspo_jax.cache import cache_directory

if TYPE_CHECKING:
    from sspo_jax.trainer.config import TrainConfig

_USAGE = """usage: sspo train EXPERIMENT [--supervise[=RESTARTS]] [--section.field value ...]

EXPERIMENT is the name of a file in experiments/ or the path of one. Its options: sspo train EXPERIMENT --help
--supervise starts the run again when its process dies (preemption, a lost host), at its last checkpoint.

experiments:
"""


def main(arguments: Sequence[str]) -> int:
    """Trains an experiment; exit code 0 if the run is complete or was stopped and saved."""
    arguments = list(arguments)
    if not arguments or arguments[0].startswith("-"):
        print(_USAGE + _known())
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    experiment, *rest = arguments
    enable_compilation_cache()
    default = load_experiment(experiment)
    from sspo_jax.cli import parse
    from sspo_jax.processes import initialize
    from sspo_jax.trainer.config import TrainConfig

    restarts, rest = _supervision(rest)
    config = parse(TrainConfig, rest, prog=f"sspo train {experiment}", default=default)
    if restarts is not None:
        return _supervised(experiment, rest, config, restarts)
    initialize(config.distributed)
    from sspo_jax.trainer.loop import train

    train(config, experiment=pathlib.Path(experiment).stem)
    return 0


def _supervision(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """(restarts, or None where no supervision is asked for; the other arguments)."""
    from sspo_jax.supervise import RESTARTS

    restarts, others = None, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != "--supervise":
            others.append(argument)
        elif value and not value.isdigit():
            raise ValueError(f"{argument}: want a number of restarts, as in --supervise=20")
        else:
            restarts = int(value) if value else RESTARTS
    return restarts, others


def _supervised(experiment: str, rest: Sequence[str], config: "TrainConfig", restarts: int) -> int:
    from sspo_jax.processes import settings
    from sspo_jax.supervise import supervise
    from sspo_jax.trainer.run_directory import new_path

    command = [sys.executable, "-m", "sspo_jax", "train", experiment, *rest]
    run_dir = config.run_dir
    if run_dir is None:
        if settings(config.distributed) is not None:
            raise ValueError("--supervise on several processes needs --run-dir: all of them must name the same one")
        run_dir = str(new_path(pathlib.Path(experiment).stem))  # chosen here, so that a restart finds it
        command += ["--run-dir", run_dir]
    return supervise(command, pathlib.Path(run_dir), restarts=restarts)


def experiments() -> dict[str, pathlib.Path]:
    """Name to file: of the working directory's experiments/ first, then of the checkout this package runs from."""
    found: dict[str, pathlib.Path] = {}
    for folder in (pathlib.Path(__file__).parents[1] / "experiments", pathlib.Path("experiments")):
        found |= {file.stem: file for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")}
    return found


def load_experiment(name: str) -> "TrainConfig":
    """The `config()` of an experiment file.

    Raises:
      ValueError: no such experiment (the known ones are listed), or its file has no `config`.
    """
    file = pathlib.Path(name) if name.endswith(".py") else experiments().get(name)
    if file is None or not file.is_file():
        raise ValueError(f"no experiment {name!r}, want the path of a file or one of:\n{_known()}")
    folder = str(file.resolve().parent.parent)
    if folder not in sys.path:  # lets a variant import the experiment it differs from: `from experiments import ...`
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise ValueError(f"{file} has no function config() that returns a TrainConfig")
    return module.config()


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where or is empty."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _known() -> str:
    lines = []
    for name, file in sorted(experiments().items()):
        text = file.read_text(encoding="utf-8")
        first = text.split('"""')[1].strip().splitlines()[0] if '"""' in text else ""
        lines.append(f"  {name:<26} {first}")
    return "\n".join(lines)
