"""What a compiled program sends between devices inside its loops, read from the text of the compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

_KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "ragged-all-to-all")
_SMALL = ("norm", "bias", "router")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\((.*?)\)(?:,|$)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices in the body of a loop."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    """(dtype, shape) of what it takes and gives, on one device."""


def loop_collectives(program: str) -> list[Collective]:
    """The operations between devices in loops, and in what loops call.

    Args:
      program: text of a compiled program, as `compiled.as_text()` gives it.
    """
    lines = _computations(program)
    inside: set[str] = set()
    bodies = [
        name
        for body in lines.values()
        for line in body
        for name in re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
    ]
    while bodies:
        name = bodies.pop()
        if name in inside:
            continue
        inside.add(name)
        for line in lines.get(name, ()):
            bodies += _CALLED.findall(line)
            bodies += [other.strip(" %") for group in _BRANCHES.findall(line) for other in group.split(",")]
    shapes = {name: array for body in lines.values() for line in body for name, array in _results(line)}
    found = []
    for name in sorted(inside):
        for line in lines.get(name, ()):
            matched = _COLLECTIVE.search(line)
            if matched is None:
                continue
            result, kind, _, operands = matched.groups()
            named = [shapes[operand] for operand in re.findall(r"%([\w.\-]+)", operands) if operand in shapes]
            found.append(Collective(kind, tuple(dict.fromkeys([*_arrays(result), *_arrays(operands), *named]))))
    return found


def of_weights(collectives: Iterable[Collective], weights: Any) -> list[Collective]:
    """Those that take or give a weight, or one layer of a stack of them.

    Args:
      weights: arrays or shapes as a decoding program takes them; norms, biases and routers, as small as activations,
        are left out.
    """
    sizes = {
        _without_ones(shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
        for shape in _forms(leaf)
        if len(_without_ones(shape)) > 1 and not any(str(key).rstrip("']").endswith(_SMALL) for key in path)
    }
    flat = {_products(shape) for shape in sizes}
    return [
        one
        for one in collectives
        if any(len(_without_ones(shape)) > 1 and _products(_without_ones(shape)) in flat for _, shape in one.arrays)
    ]


def _forms(leaf: Any) -> list[tuple[int, ...]]:
    """A weight whole and as a device holds it; of a stack of layers also one layer of it."""
    shapes = [tuple(leaf.shape)]
    if getattr(leaf, "sharding", None) is not None:
        shapes.append(tuple(leaf.sharding.shard_shape(leaf.shape)))
    return [*shapes, *(shape[1:] for shape in shapes if len(shape) > 2)]


def _products(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """What stays the same where axes change their order: the elements, and the sorted axes."""
    return math.prod(shape), tuple(sorted(shape))


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation by its name."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in program.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            current = found.setdefault(start.group(1), [])
        else:
            current.append(line.strip())
    return found


def _results(line: str) -> list[tuple[str, tuple[str, tuple[int, ...]]]]:
    matched = re.match(r"(?:ROOT )?%([\w.\-]+) = ([a-z]+[0-9]*\[[0-9,]*\])", line)
    return [(matched.group(1), _arrays(matched.group(2))[0])] if matched else []


def _arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _ARRAY.findall(text)]
