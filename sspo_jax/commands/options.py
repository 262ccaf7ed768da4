"""Typed options from dataclasses: `--section.field value`."""

import dataclasses
import inspect
import typing
from collections.abc import Sequence
from typing import Any

from sspo_jax.files import check_writable_name


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
    parsed = tyro.cli(
        config_type,
        args=list(arguments),
        prog=prog,
        config=(tyro.conf.AvoidSubcommands,),
        **options,
    )
    refuse_urls(parsed)
    return parsed


_WRITTEN = ("run_dir", "out", "output", "write", "export_directory")


def refuse_urls(config: Any, prefix: str = "--") -> None:
    """Refuses a URL for each option that names what is written.

    Raises:
      ValueError: as `check_writable_name`.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            refuse_urls(value, f"{name}.")
        elif field.name in _WRITTEN and isinstance(value, str):
            check_writable_name(name, value)


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
