"""Sets of real numbers: intervals, unions, conditions on one variable, as sorted lists of disjoint intervals."""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

from ..evaluate.rational import exact
from ..evaluate.values import compare_reals, exact_value, free_symbols
from ..expression import Kind, Node, Undecided, constant, number
from ..limits import Limits, NeedsWorker, NotRational
from .definitions import is_name

_INFINITY = constant("inf")
_MINUS_INFINITY = Node(Kind.NEG, (_INFINITY,))
_MOST_INTERVALS = 200


class Interval(NamedTuple):
    """From `low` to `high`, each end belonging to it or not; a point where they are equal."""

    low: Node
    high: Node
    has_low: bool
    has_high: bool


_EVERYTHING = Interval(_MINUS_INFINITY, _INFINITY, False, False)


def is_real_set(node: Node) -> bool:
    """Whether an answer may be read as a set of real numbers."""
    if node.kind == Kind.RELATION:
        operators = set(node.value)
        if operators == {"="}:
            return len(node.args) == 2 and node.args[0].kind == Kind.SYMBOL and not free_symbols(node.args[1])
        return len(free_symbols(node)) == 1 and operators <= {"<", "<=", ">", ">=", "!=", "in", "notin"}
    if node.kind == Kind.GROUP:
        return len(node.args) == 2 and not free_symbols(node)
    if node.kind in (Kind.UNION, Kind.INTERSECTION, Kind.DIFFERENCE, Kind.LIST):
        return all(is_real_set(arg) or arg.kind in (Kind.SET, Kind.NUMBER) for arg in node.args)
    if node.kind == Kind.BUILDER:
        return is_real_set(node.args[1])
    return node.kind in (Kind.REALS, Kind.EMPTYSET, Kind.SET)


def real_set(node: Node, limits: Limits) -> list[Interval] | None:
    """The disjoint intervals of a set of reals in rising order, None where it is no such set.

    Raises:
        NeedsWorker: a condition that has to be solved.
        Undecided: an end point that cannot be placed.
    """
    kind, args = node.kind, node.args
    if kind == Kind.REALS:
        return [_EVERYTHING]
    if kind == Kind.EMPTYSET:
        return []
    if kind == Kind.GROUP:
        if len(args) != 2:
            return None
        return _merged([Interval(args[0], args[1], node.value[0] == "[", node.value[1] == "]")], limits)
    if kind == Kind.SET or (
        kind == Kind.LIST and not any(arg.kind in (Kind.RELATION, Kind.GROUP, Kind.UNION) for arg in args)
    ):
        return _merged([Interval(arg, arg, True, True) for arg in args], limits)
    if kind == Kind.BUILDER:
        return real_set(args[1], limits)
    if kind in (Kind.UNION, Kind.INTERSECTION, Kind.DIFFERENCE, Kind.LIST):
        operands = _operands(node) if kind == Kind.UNION else args
        if len(operands) > _MOST_INTERVALS:
            raise Undecided(f"more than {_MOST_INTERVALS} intervals")
        parts: list[list[Interval]] = []
        for arg in operands:
            part = real_set(arg, limits)
            if part is None:
                return None
            parts.append(part)
        if kind == Kind.DIFFERENCE:
            return _intersected(parts[0], _complement(parts[1]), limits)
        in_common = functools.reduce(lambda a, b: _intersected(a, b, limits), parts)
        if kind == Kind.INTERSECTION or (kind == Kind.LIST and node.value not in ("or", ",")):
            return in_common
        is_conjunction = kind is Kind.LIST and node.value == "," and all(arg.kind is Kind.RELATION for arg in args)
        if is_conjunction and in_common and not any(map(_is_point, args)):  # x > 0, x < 1
            return in_common
        return _merged([interval for part in parts for interval in part], limits)
    if kind == Kind.RELATION:
        return _from_relation(node, limits)
    if kind in (Kind.RATIO, Kind.TEXT, Kind.MATRIX, Kind.CHOICE, Kind.TIME, Kind.DATE) or free_symbols(node):
        return None
    return _merged([Interval(node, node, True, True)], limits)


def of_integers(node: Node, limits: Limits) -> Node:
    """`\\{x \\in \\mathbb{Z} : 0 < x \\le 2\\}` as `\\{1, 2\\}`; any other node as it is."""
    if node.kind is not Kind.BUILDER or node.args[0].value != ("in",) or node.args[0].args[1].value != "mathbb Z":
        return node
    found: list[Node] = []
    for part in real_set(node.args[1], limits) or [_EVERYTHING]:
        low, high = exact_value(part.low, limits), exact_value(part.high, limits)
        if low is None or high is None or high - low > _MOST_INTERVALS:
            return node
        inside = range(math.ceil(low), math.floor(high) + 1)
        found += [number(n) for n in inside if (n != low or part.has_low) and (n != high or part.has_high)]
    return Node(Kind.SET, tuple(found)) if found else Node(Kind.EMPTYSET)


def _is_variable(node: Node) -> bool:
    """What a condition may be on: `x`, `f(x)`."""
    return node.kind == Kind.SYMBOL or (node.kind == Kind.CALL and is_name(node) and node.value != "abs")


def _is_point(node: Node) -> bool:
    return node.kind == Kind.RELATION and node.value == ("=",)


def _operands(union: Node) -> list[Node]:
    """What a chain of unions joins, without the nesting."""
    found, stack = [], [union]
    while stack:
        node = stack.pop()
        if node.kind == Kind.UNION:
            stack.extend(node.args)
        else:
            found.append(node)
    return found


def _from_relation(node: Node, limits: Limits) -> list[Interval] | None:
    operators: tuple[str, ...] = node.value
    if operators == ("in",):
        return real_set(node.args[1], limits)
    if operators == ("notin",):
        inner = real_set(node.args[1], limits)
        return None if inner is None else _complement(inner)
    found: list[Interval] = [_EVERYTHING]
    for left, operator, right in zip(node.args, operators, node.args[1:], strict=False):
        if _is_variable(left) and not free_symbols(right):
            bound = right
        elif _is_variable(right) and not free_symbols(left):
            bound, operator = left, _MIRRORED.get(operator, operator)
        elif not free_symbols(left) and not free_symbols(right):
            return None
        else:
            found = _intersected(found, _solved(left, operator, right, limits), limits)
            continue
        found = _intersected(found, _half_line(operator, bound), limits)
    return found


def _solved(left: Node, operator: str, right: Node, limits: Limits) -> list[Interval]:
    """Where `left operator right` holds, for an absolute value or a polynomial of degree 1 or 2 in one variable."""
    for side, other, sign in ((left, right, operator), (right, left, _MIRRORED.get(operator, operator))):
        if side.kind == Kind.CALL and side.value == "abs" and not free_symbols(other) and sign in _MIRRORED:
            inside, minus = side.args[0], Node(Kind.NEG, (other,))
            above = _condition(inside, sign, other, limits)
            below = _condition(inside, _MIRRORED[sign], minus, limits)
            return _intersected(above, below, limits) if sign in ("<", "<=") else _merged(above + below, limits)
    difference = Node(Kind.ADD, (left, Node(Kind.NEG, (right,))))
    (name,) = free_symbols(difference)
    try:
        at = [exact(difference, {name: Fraction(x)}, limits) for x in (-1, 0, 1, 3, 17, 1009)]
    except (NotRational, Undecided) as error:
        raise NeedsWorker("a condition to be solved") from error
    c, a = at[1], (at[0] + at[2]) / 2 - at[1]
    b = at[2] - a - c
    if any(a * x * x + b * x + c != value for x, value in zip((3, 17, 1009), at[3:], strict=True)) or a == b == 0:
        raise NeedsWorker("a condition to be solved")
    if a == 0:
        return _half_line(operator if b > 0 else _MIRRORED.get(operator, operator), number(-c / b))
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        holds = operator == "!=" or (operator in (">", ">=")) == (a > 0)
        return [_EVERYTHING] if holds and operator != "=" else []
    spread = Node(Kind.DIV, (Node(Kind.ROOT, (number(discriminant), number(2))), number(2 * abs(a))))
    middle = number(-b / (2 * a))
    low, high = Node(Kind.ADD, (middle, Node(Kind.NEG, (spread,)))), Node(Kind.ADD, (middle, spread))
    if operator in ("=", "!="):
        points = _merged([Interval(low, low, True, True), Interval(high, high, True, True)], limits)
        return points if operator == "=" else _complement(points)
    closed = operator in ("<=", ">=")
    inside_holds = (operator in ("<", "<=")) == (a > 0)
    if inside_holds:
        return _merged([Interval(low, high, closed, closed)], limits)
    return _merged([Interval(_MINUS_INFINITY, low, False, closed), Interval(high, _INFINITY, closed, False)], limits)


def _condition(left: Node, operator: str, right: Node, limits: Limits) -> list[Interval]:
    found = _from_relation(Node(Kind.RELATION, (left, right), (operator,)), limits)
    if found is None:
        raise NeedsWorker("a condition to be solved")
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
    if len(intervals) > _MOST_INTERVALS:
        raise Undecided(f"more than {_MOST_INTERVALS} intervals")
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
