"""The checker without the type checks of the tests, which cost some fifty times the time of what is measured."""

import importlib
import importlib.util
import pathlib
import pkgutil
import sys
import types
from collections.abc import Sequence
from typing import Any

import sspo_jax.checker

NAME = "checker_without_type_checks"  # the checks are for modules whose names begin with sspo_jax


def plain(module: str = "") -> types.ModuleType:
    """The checker's package, or one of its modules, such as `parse.reading`, imported under another name."""
    if NAME not in sys.modules:
        init = pathlib.Path(sspo_jax.checker.__file__)
        spec = importlib.util.spec_from_file_location(NAME, init, submodule_search_locations=[str(init.parent)])
        assert spec is not None
        assert spec.loader is not None
        package = sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"{NAME}.{module}" if module else NAME)


def modules() -> list[types.ModuleType]:
    """The package and every module in it."""
    package = plain()
    return [package, *(importlib.import_module(m.name) for m in pkgutil.walk_packages(package.__path__, f"{NAME}."))]


class _InThisProcess:
    """In the place of the worker processes, which cannot import the package by this name."""

    def submit(self, task: str, arguments: tuple[Any, ...], **_: Any) -> Any:
        future = plain("workers.pool").Answer()
        future.set_result(plain("workers.deep").decide_with_sympy(*arguments))
        return future


def plain_verdicts(responses: Sequence[str], golds: Sequence[str]) -> list[Any]:
    """The verdicts on many responses, those of the workers included."""
    verifier = plain().Verifier(workers=1)
    verifier.pool = _InThisProcess()
    return verifier.verify_batch(responses, golds)
