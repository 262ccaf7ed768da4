"""Typed options from dataclasses: `--section.field value`."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from sspo_jax.files import check_writable_file, check_writable_name
from sspo_jax.ranges import check, file_only
from sspo_jax.rewards import RewardConfig


def parse(config_type: Any, arguments: Sequence[str], *, prog: str, default: Any = None) -> Any:
    """Typed options of a command: `--section.field value` for every field of a (nested) dataclass.

    A section that `default` leaves out (None) is switched on by any of its options; the help shows it all the same,
    unless it is of no use to the experiment. The result is checked: see `sspo_jax.ranges`.

    Raises:
      ValueError: a value outside its declared range, or the option of a value that only an experiment file sets.
    """
    import tyro

    options: dict[str, Any] = {}
    if default is not None:
        check(default)  # an experiment file is Python: its types are looked at before its values are shown or replaced
        options["default"] = switch_on(default, arguments)
        _refuse_file_only(options["default"], arguments)
    if default is not None and {"-h", "--help"} & set(arguments):
        off = sections_off(default)
        options["default"] = switch_on(default, [f"--{name}." for name in off])
        note = f"Switched on by any of their options, and off without: {', '.join(off)}." if off else ""
        options["description"] = f"{inspect.getdoc(config_type)}\n\n{note}".strip()
    config = tyro.cli(
        config_type,
        args=list(arguments),
        prog=prog,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
        **options,
    )
    check(config)
    refuse_urls(config)
    return config


OF_A_REWARD = {"weight": float, "concurrency": int, "timeout-seconds": float, "on-failure": str}
"""Options of one of the user's reward functions, --reward.FUNCTION.OPTION, and their types."""


def without_reward_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arguments without the options of single reward functions, and those by function and name.

    Which functions there are is known only once --reward.user is read, so these cannot be options of a dataclass.
    """
    sections = {field.name for field in dataclasses.fields(RewardConfig)}
    others: list[str] = []
    found: dict[str, dict[str, str]] = {}
    remaining = iter(arguments)
    for argument in remaining:
        option, is_joined, value = argument.partition("=")
        match = re.fullmatch(r"--reward\.(.+)\.([a-z_-]+)", option)
        name = match.group(2).replace("_", "-") if match else ""
        if match is None or match.group(1).replace("-", "_") in sections or name not in OF_A_REWARD:
            others.append(argument)
            continue
        if not is_joined and (value := next(remaining, "")) == "":
            raise ValueError(f"{option} has no value; expected one of type {OF_A_REWARD[name].__name__}")
        found.setdefault(match.group(1), {})[name] = value
    return others, found


def with_reward_options(config: RewardConfig, options: Mapping[str, Mapping[str, str]]) -> RewardConfig:
    """The rewards with the options that `without_reward_options` found.

    Raises:
      ValueError: there is no such function (the known ones are listed), or two of that name, or no such value.
    """
    users = list(config.user)
    for name, values in options.items():
        spelled = name.replace("-", "_")
        places = [place for place, user in enumerate(users) if spelled in (user.short_name, user.name)]
        if len(places) != 1:
            known = ", ".join(user.name if places else user.short_name for user in users) or "none: set --reward.user"
            raise ValueError(f"--reward.{name}: {len(places) or 'no'} rewards of that name; there are {known}")
        changes: dict[str, Any] = {}
        for option, value in values.items():
            try:
                changes[option.replace("-", "_")] = OF_A_REWARD[option](value)
            except ValueError:
                kind = {float: "a number", int: "a whole number"}[OF_A_REWARD[option]]
                raise ValueError(f"--reward.{name}.{option} is {value!r}; expected {kind}") from None
        users[places[0]] = dataclasses.replace(users[places[0]], **changes)
        check(users[places[0]], f"--reward.{name}.")
    return dataclasses.replace(config, user=tuple(users))


_WRITTEN = ("run_dir", "out", "export_directory")
_WRITTEN_FILES = ("output", "write")


def refuse_urls(config: Any, prefix: str = "--") -> None:
    """Refuses a URL for each option that names what is written, and a file that has no place.

    Raises:
      ValueError: as `check_writable_name` and `check_writable_file`.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            refuse_urls(value, f"{name}.")
        elif field.name in _WRITTEN and isinstance(value, str):
            check_writable_name(name, value)
        elif field.name in _WRITTEN_FILES and isinstance(value, str):
            check_writable_file(name, value)


def _refuse_file_only(config: Any, arguments: Sequence[str]) -> None:
    """Says where to set what is no option."""
    fixed = file_only(config)
    for argument in arguments:
        option = argument.partition("=")[0]
        name = option.removeprefix("--").replace("-", "_")
        for field in fixed if option.startswith("--") else ():
            if name == field or name.startswith(f"{field}."):
                raise ValueError(
                    f"{option} is no option: {name} is set in the experiment file. Copy the file, change it there, and "
                    "give the path of the copy in place of the experiment's name"
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
        if value is None and len(kinds) == 1 and field.name not in file_only(config):
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
