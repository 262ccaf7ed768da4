"""Sets of real numbers: intervals, unions, conditions on one variable.

A set is a test of where a number lies among some bounds. Two sets are the same when the tests agree at every bound of
either and between neighbouring bounds, so unions, intersections and complements are `any`, `all` and `not`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

from ..evaluate.rational import exact
from ..evaluate.values import compare_reals, exact_value, free_symbols
from ..expression import Kind, Node, Undecided, constant, negated, number
from ..limits import Limits, NeedsWorker, NotRational
from .definitions import is_name

_INFINITIES = {constant("inf"): -1, negated(constant("inf")): 1}  # on which side of it every number lies
_MOST_BOUNDS = 400
_KINDS = (Kind.UNION, Kind.INTERSECTION, Kind.DIFFERENCE, Kind.LIST)

Where = Callable[[Node], int]  # -1, 0 or 1 as a number is below, at or above a bound


class RealSet(NamedTuple):
    """The numbers for which `holds` is true; it asks only about `bounds`."""

    bounds: tuple[Node, ...]
    holds: Callable[[Where], bool]


_EVERYTHING = RealSet((), lambda where: True)


def _joined(sets: list[RealSet], how: Callable[[Iterator[bool]], bool]) -> RealSet:
    """The union (`any`) or intersection (`all`) of sets."""
    bounds = tuple(bound for part in sets for bound in part.bounds)
    if len(bounds) > _MOST_BOUNDS:
        raise Undecided(f"more than {_MOST_BOUNDS} bounds")
    return RealSet(bounds, lambda where: how(part.holds(where) for part in sets))


def _complement(inner: RealSet) -> RealSet:
    return RealSet(inner.bounds, lambda where: not inner.holds(where))


def _compared(operator: str, bound: Node) -> RealSet:
    """`x < bound` and the like."""
    return RealSet((bound,), lambda where: where(bound) in _SIDES[operator])


def _interval(low: Node, high: Node, brackets: str) -> RealSet:
    return _joined([_compared(_OPENING[brackets[0]], low), _compared(_CLOSING[brackets[1]], high)], all)


def _tests(sets: tuple[RealSet, ...], limits: Limits) -> Iterator[list[bool]]:
    """Whether each set holds, at every bound of any of them and between neighbouring ones, in rising order."""
    bounds = {bound for part in sets for bound in part.bounds if bound not in _INFINITIES}
    rising = sorted(bounds, key=functools.cmp_to_key(lambda a, b: compare_reals(a, b, limits)))
    ranks: dict[Node, int] = {}
    rank = 0
    for before, bound in zip([None, *rising], rising, strict=False):
        rank += 2 * (before is None or compare_reals(before, bound, limits) != 0)
        ranks[bound] = rank
    for place in range(1, rank + 2):  # even at a bound, odd between two

        def where(bound: Node, place: int = place) -> int:
            side = _INFINITIES.get(bound)
            return (place > ranks[bound]) - (place < ranks[bound]) if side is None else side

        yield [part.holds(where) for part in sets]


def equal_real_sets(first: RealSet, second: RealSet, limits: Limits) -> bool:
    """Whether two sets hold the same numbers."""
    return all(holds == other for holds, other in _tests((first, second), limits))


def is_real_set(node: Node) -> bool:
    """Whether an answer may be read as a set of real numbers."""
    if node.kind == Kind.RELATION:
        operators = set(node.value)
        if operators == {"="}:
            return len(node.args) == 2 and node.args[0].kind == Kind.SYMBOL and not free_symbols(node.args[1])
        return len(free_symbols(node)) == 1 and operators <= {"<", "<=", ">", ">=", "!=", "in", "notin"}
    if node.kind == Kind.GROUP:
        return len(node.args) == 2 and not free_symbols(node)
    if node.kind in _KINDS:
        return all(is_real_set(arg) or arg.kind in (Kind.SET, Kind.NUMBER) for arg in node.args)
    if node.kind == Kind.BUILDER:
        return is_real_set(node.args[1])
    return node.kind in (Kind.REALS, Kind.EMPTYSET, Kind.SET)


def real_set(node: Node, limits: Limits) -> RealSet | None:
    """The set of reals that an answer is, None where it is none.

    Raises:
        NeedsWorker: a condition that has to be solved.
        Undecided: an end point that cannot be placed.
    """
    kind, args = node.kind, node.args
    if kind in (Kind.REALS, Kind.EMPTYSET):
        return _EVERYTHING if kind is Kind.REALS else _complement(_EVERYTHING)
    if kind is Kind.GROUP:
        return _interval(*args, node.value) if len(args) == 2 else None
    if kind is Kind.SET or (
        kind is Kind.LIST and not any(arg.kind in (Kind.RELATION, Kind.GROUP, Kind.UNION) for arg in args)
    ):
        return _joined([_compared("=", arg) for arg in args], any)
    if kind is Kind.BUILDER:
        return real_set(args[1], limits)
    if kind in _KINDS:
        parts = [part for arg in args if (part := real_set(arg, limits)) is not None]
        if len(parts) < len(args):
            return None
        if kind is Kind.DIFFERENCE:
            return _joined([parts[0], _complement(parts[1])], all)
        is_list = kind is Kind.LIST
        is_conjunction = is_list and node.value == "," and all(arg.kind is Kind.RELATION for arg in args)
        is_conjunction = is_conjunction and not any(arg.value == ("=",) for arg in args)  # x > 0, x < 1
        in_common = _joined(parts, all)
        if kind is Kind.INTERSECTION or (is_list and node.value not in ("or", ",")):
            return in_common
        if is_conjunction and any(holds for (holds,) in _tests((in_common,), limits)):
            return in_common
        return _joined(parts, any)
    if kind is Kind.RELATION:
        return _from_relation(node, limits)
    if kind in (Kind.RATIO, Kind.TEXT, Kind.MATRIX, Kind.CHOICE, Kind.TIME, Kind.DATE) or free_symbols(node):
        return None
    return _compared("=", node)


def of_integers(node: Node, limits: Limits) -> Node:
    """`\\{x \\in \\mathbb{Z} : 0 < x \\le 2\\}` as `\\{1, 2\\}`; any other node as it is."""
    if node.kind is not Kind.BUILDER or node.args[0].value != ("in",) or node.args[0].args[1].value != "mathbb Z":
        return node
    numbers = real_set(node.args[1], limits)
    if numbers is None:
        return node
    tests = [holds for (holds,) in _tests((numbers,), limits)]
    finite = [bound for bound in numbers.bounds if bound not in _INFINITIES]
    ends = {bound: end for bound in finite if (end := exact_value(bound, limits)) is not None}
    is_known = bool(ends) and all(bound in ends for bound in finite)
    if tests[0] or tests[-1] or not is_known or max(ends.values()) - min(ends.values()) > _MOST_BOUNDS:
        return node

    def is_inside(n: int) -> bool:
        return numbers.holds(lambda bound: _INFINITIES.get(bound) or (n > ends[bound]) - (n < ends[bound]))

    found = [
        number(n) for n in range(math.ceil(min(ends.values())), math.floor(max(ends.values())) + 1) if is_inside(n)
    ]
    return Node(Kind.SET, tuple(found)) if found else Node(Kind.EMPTYSET)


def _is_variable(node: Node) -> bool:
    """What a condition may be on: `x`, `f(x)`."""
    return node.kind == Kind.SYMBOL or (node.kind == Kind.CALL and is_name(node) and node.value != "abs")


def _from_relation(node: Node, limits: Limits) -> RealSet | None:
    operators: tuple[str, ...] = node.value
    if operators in (("in",), ("notin",)):
        inner = real_set(node.args[1], limits)
        return inner if inner is None or operators == ("in",) else _complement(inner)
    found: list[RealSet] = []
    for left, operator, right in zip(node.args, operators, node.args[1:], strict=False):
        if _is_variable(left) and not free_symbols(right):
            found.append(_compared(operator, right))
        elif _is_variable(right) and not free_symbols(left):
            found.append(_compared(_MIRRORED.get(operator, operator), left))
        elif not free_symbols(left) and not free_symbols(right):
            return None
        else:
            found.append(_solved(left, operator, right, limits))
    return _joined(found, all)


def _solved(left: Node, operator: str, right: Node, limits: Limits) -> RealSet:
    """Where `left operator right` holds, for an absolute value or a polynomial of degree 1 or 2 in one variable."""
    for side, other, sign in ((left, right, operator), (right, left, _MIRRORED.get(operator, operator))):
        if side.kind == Kind.CALL and side.value == "abs" and not free_symbols(other) and sign in _MIRRORED:
            above = _condition(side.args[0], sign, other, limits)
            below = _condition(side.args[0], _MIRRORED[sign], negated(other), limits)
            return _joined([above, below], all if sign in ("<", "<=") else any)
    difference = Node(Kind.ADD, (left, negated(right)))
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
        return _compared(operator if b > 0 else _MIRRORED.get(operator, operator), number(-c / b))
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        holds = operator == "!=" or (operator in (">", ">=")) == (a > 0)
        return _EVERYTHING if holds and operator != "=" else _complement(_EVERYTHING)
    spread = Node(Kind.DIV, (Node(Kind.ROOT, (number(discriminant), number(2))), number(2 * abs(a))))
    middle = number(-b / (2 * a))
    low, high = Node(Kind.ADD, (middle, negated(spread))), Node(Kind.ADD, (middle, spread))
    sides = _SIDES[operator if a > 0 else _MIRRORED.get(operator, operator)]  # of the parabola, which opens upwards
    return RealSet((low, high), lambda where: where(low) * where(high) in sides)


def _condition(left: Node, operator: str, right: Node, limits: Limits) -> RealSet:
    found = _from_relation(Node(Kind.RELATION, (left, right), (operator,)), limits)
    if found is None:
        raise NeedsWorker("a condition to be solved")
    return found


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SIDES = {"<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (0, 1), "=": (0,), "!=": (-1, 1)}
_OPENING = {"(": ">", "[": ">="}
_CLOSING = {")": "<", "]": "<="}
