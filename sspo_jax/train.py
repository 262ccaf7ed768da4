"""`sspo train EXPERIMENT [--section.field value ...]`."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sspo_jax.cache import cache_directory

if TYPE_CHECKING:
    from sspo_jax.trainer.config import TrainConfig

_USAGE = """usage: sspo train EXPERIMENT [--section.field value ...]

EXPERIMENT is the name of a file in experiments/ or the path of one. Its options: sspo train EXPERIMENT --help

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

    config = parse(TrainConfig, rest, prog=f"sspo train {experiment}", default=default)
    initialize(config.distributed)
    from sspo_jax.trainer.loop import train

    train(config, experiment=pathlib.Path(experiment).stem)
    return 0


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
