"""Experiment files by name or path, and objectives by name."""

import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from sspo_jax.checker.workers.pool import search_also

if TYPE_CHECKING:
    from sspo_jax.config import TrainConfig
    from sspo_jax.losses import Objective

Given = TypeVar("Given")


def experiments() -> dict[str, pathlib.Path]:
    """Name to file: of the working directory's experiments/ first, then the shipped ones.

    Those are in experiments/ of the checkout, or in sspo_jax/experiments/ where the package is installed from a wheel.
    """
    return named_files("experiments")


def named_files(kind: str) -> dict[str, pathlib.Path]:
    """Name to file of a folder of the checkout, `experiments` or `studies`, as `experiments` says.

    A wheel has studies/ in sspo_jax/experiments/studies/.
    """
    found: dict[str, pathlib.Path] = {}
    package = pathlib.Path(__file__).parents[1]
    installed = package / "experiments" if kind == "experiments" else package / "experiments" / kind
    shipped = installed if installed.is_dir() else package.parent / kind
    for folder in (shipped, pathlib.Path(kind)):
        found |= {file.stem: file for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")}
    return found


def load_experiment(name: str) -> "TrainConfig":
    """The `config()` of an experiment file.

    Raises:
      ValueError: no such experiment (the known ones are listed), or its file gives no configuration; names the line.
    """
    from sspo_jax.config import TrainConfig

    return load_file(name, experiments(), kind="experiment", function="config", gives=TrainConfig, known=known)


def load_file(
    name: str,
    files: Mapping[str, pathlib.Path],
    *,
    kind: str,
    function: str,
    gives: type[Given],
    known: Callable[[], str],
) -> Given:
    """What the function of a file returns.

    Args:
      name: of the file, or its path.
      files: the known ones by name.
      kind: what it is called in errors.
      function: its name, called without arguments.
      gives: class of what it returns.
      known: text that lists the known ones.

    Raises:
      ValueError: no such file, or it gives something else; names the line.
    """
    file = pathlib.Path(name) if name.endswith(".py") else files.get(name)
    if file is None or not file.is_file():
        raise ValueError(f"no {kind} {name!r}; expected the path of a file or one of:\n{known()}")
    try:
        module = _import_file(file.resolve())
        search_also(file.resolve().parent)  # for reward functions that lie beside it
        value = getattr(module, function)() if callable(getattr(module, function, None)) else None
    except (Exception, SystemExit) as error:  # whatever a person's file can raise; an exit there is no run
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        raise ValueError(f"{_line_of(error, file)}: {type(error).__name__}: {first_line}") from error
    if not isinstance(value, gives):
        came = "no such function" if value is None else f"one that returns a {type(value).__name__}"
        raise ValueError(f"{file}: expected a function {function}() that returns a {gives.__name__}; there is {came}")
    return value


def _line_of(error: BaseException, file: pathlib.Path) -> str:
    """File and line of an experiment that an error came from, the innermost one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    folder = str(file.resolve().parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(file)


def _import_file(file: pathlib.Path) -> types.ModuleType:
    """The module of an experiment file, run anew.

    Its folder is a package of its own, so that a variant reaches the experiment it differs from with
    `from . import arithmetic_tiny`, wherever both lie, and no folder is added to `sys.path`.
    """
    package = _PACKAGES.setdefault(file.parent, f"sspo_experiments_{len(_PACKAGES)}")
    if package not in sys.modules:
        parent = types.ModuleType(package)
        parent.__path__ = [str(file.parent)]
        sys.modules[package] = parent
    name = f"{package}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # type hints of classes that are defined there are looked up by this name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


_PACKAGES: dict[pathlib.Path, str] = {}
"""Folder of experiments to the package that its files are imported as."""


def objectives() -> dict[str, "Callable[[], Objective]"]:
    """Name to objective: the classes that `sspo_jax.losses` exports, and their classmethods, which are presets.

    A preset goes by its own name where a loss function does (`dapo`, of `dapo_loss`), else by that of its class too
    (`sspo_calibrated`).
    """
    from sspo_jax import losses

    found: dict[str, Callable[[], Objective]] = {}
    for exported in losses.__all__:
        kind = getattr(losses, exported)
        if not inspect.isclass(kind) or not issubclass(kind, losses.Objective) or inspect.isabstract(kind):
            continue
        own = re.sub(r"(?<!^)(?=[A-Z])", "_", exported).lower()
        found[own] = kind
        for preset in (name for name, value in vars(kind).items() if isinstance(value, classmethod)):
            found[preset if f"{preset}_loss" in losses.__all__ else f"{own}_{preset}"] = getattr(kind, preset)
    return found


def choose_objective(objective: "Objective", arguments: Sequence[str]) -> tuple["Objective", list[str]]:
    """The objective that `--loss NAME` names, as published, or else the given one; and the other arguments.

    Raises:
      ValueError: no such objective (the known ones are listed).
    """
    known_names, others = objectives(), []
    remaining = iter(arguments)
    for argument in remaining:
        option, is_joined, name = argument.partition("=")
        if option != "--loss":
            others.append(argument)
            continue
        name = name if is_joined else next(remaining, "")
        if name not in known_names:
            raise ValueError(f"--loss is {name!r}, expected one of: {', '.join(known_names)}")
        objective = known_names[name]()
    return objective, others


def known() -> str:
    lines = []
    for name, file in sorted(experiments().items()):
        text = file.read_text(encoding="utf-8")
        first = text.split('"""')[1].strip().splitlines()[0] if '"""' in text else ""
        lines.append(f"  {name:<26} {first}")
    return "\n".join(lines)
