"""Sets of real numbers: intervals, unions, conditions on one variable, brought to a sorted list of disjoint intervals."""

import functools
from typing import NamedTuple

from .evaluate import Limits, NeedsWorker
from .expression import Node, Undecided, constant
from .values import compare_reals, free_symbols

_INFINITY = constant("inf")
_MINUS_INFINITY = Node("neg", (_INFINITY,))


class Interval(NamedTuple):
    """From `low` to `high`, each end belonging to it or not; a point where they are equal."""

    low: Node
    high: Node
    has_low: bool
    has_high: bool


_EVERYTHING = Interval(_MINUS_INFINITY, _INFINITY, False, False)


def is_real_set(node: Node) -> bool:
    """Whether an answer may be read as a set of real numbers."""
    if node.kind == "relation":
        return len(free_symbols(node)) == 1 and set(node.value) <= {"<", "<=", ">", ">=", "!=", "in", "=", "notin"}  # type: ignore[arg-type]
    if node.kind == "group":
        return len(node.args) == 2 and not free_symbols(node)
    if node.kind in ("union", "intersection", "difference", "list"):
        return all(is_real_set(arg) or arg.kind in ("set", "number") for arg in node.args)
    if node.kind == "builder":
        return is_real_set(node.args[1])
    return node.kind in ("reals", "emptyset", "set")


def real_set(node: Node, limits: Limits) -> list[Interval] | None:
    """The disjoint intervals of a set of reals in rising order, None where it is no such set.

    Raises:
        NeedsWorker: a condition that has to be solved.
        Undecided: an end point that cannot be placed.
    """
    kind, args = node.kind, node.args
    if kind == "reals":
        return [_EVERYTHING]
    if kind == "emptyset":
        return []
    if kind == "group":
        if len(args) != 2:
            return None
        return _merged([Interval(args[0], args[1], node.value[0] == "[", node.value[1] == "]")], limits)  # type: ignore[index]
    if kind == "set" or (kind == "list" and not any(arg.kind in ("relation", "group", "union") for arg in args)):
        return _merged([Interval(arg, arg, True, True) for arg in args], limits)
    if kind == "builder":
        return real_set(args[1], limits)
    if kind in ("union", "intersection", "difference", "list"):
        parts = [real_set(arg, limits) for arg in args]
        if any(part is None for part in parts):
            return None
        if kind == "union" or (kind == "list" and node.value in ("or", ",")):
            if (
                kind == "list"
                and node.value == ","
                and all(arg.kind == "relation" and "!=" in arg.value for arg in args)
            ):  # type: ignore[operator]
                return functools.reduce(lambda a, b: _intersected(a, b, limits), parts)  # type: ignore[arg-type]
            return _merged([interval for part in parts for interval in part], limits)  # type: ignore[union-attr]
        if kind == "difference":
            return _intersected(parts[0], _complement(parts[1]), limits)  # type: ignore[arg-type]
        return functools.reduce(lambda a, b: _intersected(a, b, limits), parts)  # type: ignore[arg-type]
    if kind == "relation":
        return _from_relation(node, limits)
    return _merged([Interval(node, node, True, True)], limits) if not free_symbols(node) else None


def _from_relation(node: Node, limits: Limits) -> list[Interval] | None:
    operators: tuple[str, ...] = node.value  # type: ignore[assignment]
    if operators == ("in",):
        return real_set(node.args[1], limits)
    if operators == ("notin",):
        inner = real_set(node.args[1], limits)
        return None if inner is None else _complement(inner)
    found: list[Interval] = [_EVERYTHING]
    for left, operator, right in zip(node.args, operators, node.args[1:], strict=False):
        if left.kind == "symbol" and not free_symbols(right):
            bound, operator = right, operator
        elif right.kind == "symbol" and not free_symbols(left):
            bound, operator = left, _MIRRORED.get(operator, operator)
        elif not free_symbols(left) and not free_symbols(right):
            return None
        else:
            raise NeedsWorker("a condition to be solved")
        found = _intersected(found, _half_line(operator, bound), limits)
    return found


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _half_line(operator: str, bound: Node) -> list[Interval]:
    if operator in ("<", "<="):
        return [Interval(_MINUS_INFINITY, bound, False, operator == "<=")]
    if operator in (">", ">="):
        return [Interval(bound, _INFINITY, operator == ">=", False)]
    point = [Interval(bound, bound, True, True)]
    return point if operator == "=" else _complement(point)


def _merged(intervals: list[Interval], limits: Limits) -> list[Interval]:
    """The union, in rising order, empty intervals left out."""
    if len(intervals) > 200:
        raise Undecided("more than 200 intervals")
    kept = []
    for interval in intervals:
        order = compare_reals(interval.low, interval.high, limits)
        if order < 0 or (order == 0 and interval.has_low and interval.has_high):
            kept.append(interval)

    def by_low(first: Interval, second: Interval) -> int:
        order = compare_reals(first.low, second.low, limits)
        return order or second.has_low - first.has_low

    merged: list[Interval] = []
    for interval in sorted(kept, key=functools.cmp_to_key(by_low)):
        if merged:
            last = merged[-1]
            touch = compare_reals(last.high, interval.low, limits)
            if touch > 0 or (touch == 0 and (last.has_high or interval.has_low)):
                order = compare_reals(last.high, interval.high, limits)
                high, has_high = (last.high, last.has_high) if order > 0 else (interval.high, interval.has_high)
                if order == 0:
                    has_high = last.has_high or interval.has_high
                merged[-1] = Interval(last.low, high, last.has_low, has_high)
                continue
        merged.append(interval)
    return merged


def _complement(intervals: list[Interval]) -> list[Interval]:
    low, has_low, gaps = _MINUS_INFINITY, False, []
    for interval in intervals:
        gaps.append(Interval(low, interval.low, has_low, not interval.has_low))
        low, has_low = interval.high, not interval.has_high
    gaps.append(Interval(low, _INFINITY, has_low, False))
    return [gap for gap in gaps if gap.low != gap.high and gap.low != _INFINITY and gap.high != _MINUS_INFINITY]


def _intersected(first: list[Interval], second: list[Interval], limits: Limits) -> list[Interval]:
    parts = []
    for one in first:
        for other in second:
            low_order, high_order = (
                compare_reals(one.low, other.low, limits),
                compare_reals(one.high, other.high, limits),
            )
            low, has_low = (one.low, one.has_low) if low_order > 0 else (other.low, other.has_low)
            high, has_high = (one.high, one.has_high) if high_order < 0 else (other.high, other.has_high)
            if low_order == 0:
                has_low = one.has_low and other.has_low
            if high_order == 0:
                has_high = one.has_high and other.has_high
            parts.append(Interval(low, high, has_low, has_high))
    return _merged(parts, limits)


def equal_real_sets(first: list[Interval], second: list[Interval], limits: Limits) -> bool:
    """Whether two lists of disjoint intervals are the same set."""
    if len(first) != len(second):
        return False
    return all(
        compare_reals(a.low, b.low, limits) == 0 == compare_reals(a.high, b.high, limits)
        and (_is_infinite(a.low) or a.has_low == b.has_low)
        and (_is_infinite(a.high) or a.has_high == b.has_high)
        for a, b in zip(first, second, strict=True)
    )


def _is_infinite(node: Node) -> bool:
    return node in (_INFINITY, _MINUS_INFINITY)
