"""Experiment files by name or path."""

import importlib.util
import pathlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sspo_jax.config import TrainConfig


def experiments() -> dict[str, pathlib.Path]:
    """Name to file: of the working directory's experiments/ first, then of the checkout this package runs from."""
    found: dict[str, pathlib.Path] = {}
    for folder in (pathlib.Path(__file__).parents[2] / "experiments", pathlib.Path("experiments")):
        found |= {file.stem: file for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")}
    return found


def load_experiment(name: str) -> "TrainConfig":
    """The `config()` of an experiment file.

    Raises:
      ValueError: no such experiment (the known ones are listed), or its file has no `config`.
    """
    file = pathlib.Path(name) if name.endswith(".py") else experiments().get(name)
    if file is None or not file.is_file():
        raise ValueError(f"no experiment {name!r}, want the path of a file or one of:\n{known()}")
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


def known() -> str:
    lines = []
    for name, file in sorted(experiments().items()):
        text = file.read_text(encoding="utf-8")
        first = text.split('"""')[1].strip().splitlines()[0] if '"""' in text else ""
        lines.append(f"  {name:<26} {first}")
    return "\n".join(lines)
