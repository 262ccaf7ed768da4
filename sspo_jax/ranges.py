"""Ranges of numbers, declared beside the field they belong to, and the one check of a configuration.

    steps: Annotated[int, Range(1)]                   at least 1
    temperature: Annotated[float, Range(above=0)]     above 0
    floor: Annotated[float, Range(0, 1)]              0 to 1

`check` walks a configuration with all its sections and refuses the first value that its declaration does not allow, by
the name of its option. It looks at types too: an experiment file is Python, where nothing else does. A number without
a declared range must be finite, and an integer must fit into 32 bits.

A field of type `FileOnly[...]` is a value of the experiment file and no option of the command line.
"""

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

if TYPE_CHECKING:
    from tyro.conf import Fixed as FileOnly
else:
    try:
        from tyro.conf import Fixed as FileOnly
    except ModuleNotFoundError:  # the losses need no command line, and so no tyro
        FileOnly = Annotated[TypeVar("Value"), "a value of the experiment file"]

MOST = 2**31 - 1
"""The largest integer where a range names none: what the devices count in."""


@dataclasses.dataclass(frozen=True, repr=False)
class Range:
    """Numbers from `least` to `most`, both included; never NaN or infinite."""

    least: float | int = -math.inf
    most: float | int = math.inf
    above: float | int = -math.inf
    """All numbers are larger than this."""
    below: float | int = math.inf
    """All numbers are smaller than this."""
    besides: tuple[int, ...] = ()
    """Further values with a meaning of their own."""

    def holds(self, value: float | int) -> bool:
        """Whether the number is in the range."""
        if value in self.besides:
            return True
        if isinstance(value, int) and abs(value) > (self.most if math.isfinite(self.most) else MOST):
            return False
        return math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        stated = [f"{word} {_plain(bound)}" for word, bound in bounds.items() if math.isfinite(bound)]
        also = "".join(f", or {value}" for value in self.besides)
        return " and ".join(stated) + also

    __repr__ = __str__  # messages of other libraries show annotations by it


__all__ = [
    "AboveOne",
    "Count",
    "FileOnly",
    "Fraction",
    "NotNegative",
    "Positive",
    "Range",
    "Seed",
    "Whole",
    "Workers",
    "check",
    "file_only",
    "from_record",
    "members",
    "numbers",
]

Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Workers = Annotated[int, Range(1, 1024)]
Positive = Annotated[float, Range(above=0)] | Annotated[int, Range(above=0)]
NotNegative = Annotated[float, Range(0)] | Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)] | Annotated[int, Range(0, 1)]
AboveOne = Annotated[float, Range(above=1)] | Annotated[int, Range(above=1)]
Seed = Annotated[int, Range(0, MOST)]

Config = TypeVar("Config")

_ANY_NUMBER = Range()
_FILE_ONLY = typing.get_args(FileOnly[int])[1]


def check(config: Any, prefix: str = "--") -> None:
    """Refuses a configuration with a value that its fields do not declare.

    Args:
      config: a dataclass, its sections dataclasses themselves.
      prefix: what the names of its options begin with.

    Raises:
      ValueError: the option, what it is and what was expected.
    """
    for field in dataclasses.fields(config):
        if field.init:
            _check(getattr(config, field.name), _hints(type(config))[field.name], prefix + field.name.replace("_", "-"))


def from_record(kind: type[Config], record: Any, name: str) -> Config:
    """A dataclass from what JSON holds of it, checked; lists become tuples.

    Args:
      kind: without sections of its own, or with sections that are dataclasses in `record` already.
      record: the fields by name.
      name: of what is read; starts the error.

    Raises:
      ValueError: no object, a field that is missing, unknown or of another type, or a number out of its range.
    """
    if not isinstance(record, collections.abc.Mapping):
        raise ValueError(f"{name} is {record!r:.80}; expected an object with the fields of {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast("Any", kind))}
    missing = [
        field.name
        for field in fields.values()
        if field.name not in record
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    unknown = [field for field in record if field not in fields]
    if missing or unknown:
        came = f"has no {missing[0]}" if missing else f"has an unknown field {unknown[0]!r:.80}"
        raise ValueError(f"{name} {came}; expected the fields of {kind.__name__}: {', '.join(fields)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    for key, value in values.items():
        _check(value, _hints(kind)[key], f"{name}.{key}")
    return kind(**values)


def numbers(kind: Any, prefix: str = "") -> dict[str, tuple[type, Range | None]]:
    """Dotted name of every numeric field of a dataclass and of its sections: its type, and its range if declared."""
    found: dict[str, tuple[type, Range | None]] = {}
    for field in dataclasses.fields(kind):
        for one, bounds in members(_hints(kind)[field.name]):
            if dataclasses.is_dataclass(one):
                found |= numbers(one, f"{prefix}{field.name}.")
            elif one in (int, float) and prefix + field.name not in found:
                found[prefix + field.name] = (typing.cast("type", one), bounds)
    return found


def file_only(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields of a configuration that are values of the experiment file only."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _FILE_ONLY in getattr(_hints(type(config))[field.name], "__metadata__", ()):
            found.append(prefix + field.name)
        elif dataclasses.is_dataclass(value):
            found += file_only(value, f"{prefix}{field.name}.")
    return found


def members(hint: Any, bounds: Range | None = None) -> list[tuple[Any, Range | None]]:
    """The alternatives that a type hint allows, without `Annotated`, each with the range that is declared for it."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        declared = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        return members(hint.__origin__, declared[0] if declared else bounds)
    if origin in (typing.Union, types.UnionType):
        return [member for one in typing.get_args(hint) for member in members(one, bounds)]
    return [(hint, bounds)]


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _check(value: Any, hint: Any, name: str) -> None:
    alternatives = members(hint)
    fitting = [(kind, bounds) for kind, bounds in alternatives if _is_of(value, kind)]
    if not fitting:
        raise ValueError(f"{name} is {value!r:.200}; expected {_said(alternatives)}")
    kind, bounds = fitting[0]
    if dataclasses.is_dataclass(value):
        check(value, f"{name}.")
    elif isinstance(value, tuple):
        _check_items(value, typing.get_args(kind), name)
    elif isinstance(value, int | float) and not isinstance(value, bool) and typing.get_origin(kind) is None:
        bounds = bounds or _ANY_NUMBER
        if not bounds.holds(value):
            is_too_large = isinstance(value, int) and abs(value) > MOST
            limit = f" of at most {MOST} in size" if is_too_large and math.isinf(bounds.most) else ""
            what = "a whole number" if kind is int else "a finite number"
            raise ValueError(f"{name} is {value}; expected {what}{limit} {bounds}".rstrip())
    elif isinstance(value, str):
        _check_text(value, name)


def _check_items(items: tuple[Any, ...], kinds: tuple[Any, ...], name: str) -> None:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if kinds and len(items) != len(kinds):
        raise ValueError(f"{name} has {len(items)} values; expected {len(kinds)}")
    for index, (item, kind) in enumerate(zip(items, kinds, strict=False)):
        _check(item, kind, f"{name}.{index}" if dataclasses.is_dataclass(item) else name)


def _check_text(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {text!a:.200}; expected UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{name} is {text!a:.200}; expected a text without NUL characters")


def _is_of(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is None or kind is types.NoneType:
        return value is None
    kind = origin or kind
    return isinstance(value, kind) if isinstance(kind, type) else True


def _said(alternatives: list[tuple[Any, Range | None]]) -> str:
    kinds = [kind for kind, _ in alternatives]
    words = [
        _word(kind) + (f" {bounds}" if bounds and str(bounds) else "")
        for kind, bounds in alternatives
        if not (kind is int and float in kinds)
    ]
    return " or ".join(dict.fromkeys(words))


def _word(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    kind = typing.get_origin(kind) or kind
    known = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", tuple: "a tuple"}
    known |= {types.NoneType: "None", collections.abc.Mapping: "a mapping"}
    return known.get(kind, getattr(kind, "__name__", str(kind)))


def _plain(bound: float | int) -> str:
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else f"{bound:g}"
