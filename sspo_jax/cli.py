"""The command line: `sspo COMMAND ...`. Each command imports only what it needs."""

import dataclasses
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Sequence
from typing import Any

from sspo_jax.host_memory import keep_freed_memory

COMMANDS = {
    "train": ("sspo_jax.train:main", "train an experiment, or resume its run"),
    "evaluate": ("sspo_jax.evaluate:main", "score a checkpoint or a run on problem sets"),
    "verify": ("sspo_jax.verify:main", "judge a response, or a file of them"),
    "segment": ("sspo_jax.segment:main", "show how texts are cut into subsentences"),
    "export": ("sspo_jax.export:main", "write a run's policy as a Hugging Face checkpoint"),
    "plan": ("sspo_jax.plan:main", "does a run fit on TPUs that are not here"),
    "data": ("sspo_jax.data.command:main", "overlap of training and evaluation sets; audit of golds"),
    "serve": ("sspo_jax.serve:main", "an OpenAI-compatible server for a checkpoint"),
    "inspect": ("sspo_jax.inspect_run:main", "what a run directory holds and how it went"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (2: the command line is wrong, 1: it could not be done, 75: not now).

    Without `arguments` the process is ours: the command line is read, and freed memory is kept.
    """
    if arguments is None:
        keep_freed_memory()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from sspo_jax import __version__

        print(f"sspo_jax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"sspo: no command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    _quiet_libraries()
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(rest)
    except (ValueError, FileNotFoundError, OSError) as error:
        if os.environ.get("SSPO_TRACEBACK"):
            raise
        print(f"sspo {name}: {error}", file=sys.stderr)
        return 75 if isinstance(error, ConnectionError) else 1  # 75: temporary, may be tried again
    except KeyboardInterrupt:
        print(f"sspo {name}: interrupted", file=sys.stderr)
        return 130


def parse(config_type: Any, arguments: Sequence[str], *, prog: str, default: Any = None) -> Any:
    """Typed options of a command: `--section.field value` for every field of a (nested) dataclass.

    A section that `default` leaves out (None) is switched on by any of its options; the help shows it all the same.
    """
    import tyro

    options: dict[str, Any] = {}
    if default is not None:
        options["default"] = switch_on(default, arguments)
    if default is not None and {"-h", "--help"} & set(arguments):
        off = sections_off(default)
        options["default"] = switch_on(default, [f"--{name}." for name in off])
        note = f"Switched on by any of their options, and off without: {', '.join(off)}." if off else ""
        options["description"] = f"{inspect.getdoc(config_type)}\n\n{note}".strip()
    return tyro.cli(
        config_type,
        args=list(arguments),
        prog=prog,
        config=(tyro.conf.AvoidSubcommands,),
        **options,
    )


def switch_on(config: Any, arguments: Sequence[str]) -> Any:
    """`config` with the sections that are None in it, but have options among the arguments, at their defaults.

    A section is a field of type `SomeDataclass | None`, in `config` itself or in one of its sections.
    """
    names = {argument.removeprefix("--").split("=")[0].replace("-", "_") for argument in arguments}
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inside = [name.partition(".")[2] for name in names if name.startswith(f"{field.name}.")]
        if not inside:
            continue
        kinds = [kind for kind in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(kind)]
        if value is None and len(kinds) == 1:
            value = changes[field.name] = typing.cast("Any", kinds[0])()
        if dataclasses.is_dataclass(value):
            changes[field.name] = switch_on(value, inside)
    return dataclasses.replace(config, **changes) if changes else config


def sections_off(config: Any) -> list[str]:
    """Dotted names of the sections that are None in `config`, or in one of its sections, but have defaults."""
    hints = typing.get_type_hints(type(config))
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds = [kind for kind in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(kind)]
        if value is None and len(kinds) == 1 and all(map(_has_default, dataclasses.fields(kinds[0]))):
            found.append(field.name)
        elif dataclasses.is_dataclass(value):
            found += [f"{field.name}.{name}" for name in sections_off(value)]
    return found


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return dataclasses.MISSING is not field.default or dataclasses.MISSING is not field.default_factory


def _quiet_libraries() -> None:
    """No advice of libraries between the lines of a run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _usage() -> str:
    lines = ["usage: sspo COMMAND ... (`sspo COMMAND --help` for its options)", ""]
    lines += [f"  {name:<10} {help_text}" for name, (_, help_text) in COMMANDS.items()]
    return "\n".join(lines)
