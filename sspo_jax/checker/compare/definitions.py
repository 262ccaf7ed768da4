"""Equations that say what a name stands for: `x = 5`, `f(x) = 2x`, `a + b = 7`, `P(X = 2) = 3/8`, `3 \\cdot 4 = 12`."""

from ..evaluate.numeric import estimated_integral
from ..evaluate.values import equal_values, free_symbols
from ..expression import Kind, Node, Undecided, negated, number, symbol
from ..limits import NotRational, OutsideDomain
from ..verdict import Options
from .judge import Judge

_MINUS_ONE = negated(number(1))
_FUNCTION_NAMES = frozenset("fghpqrsuvyFGHPQRSTNVA")
_NOT_NUMBERS = (Kind.SET, Kind.LIST, Kind.MATRIX, Kind.RATIO, Kind.CHOICE, Kind.TIME, Kind.DATE, Kind.GROUP)
_WITHOUT_ORDER = (Kind.MATRIX, Kind.GROUP, Kind.SET)
_COORDINATES = frozenset("xyz")
_SUMMED = (Kind.ADD, Kind.NEG, Kind.MUL, Kind.DIV, Kind.FRAC)


def is_name(node: Node) -> bool:
    """What may stand for an answer on the left of `=`: `x`, `f(x)`, `\\text{Area}`, `(x, y)`, `AB : BC`, `|AB|`."""
    match node.kind:
        case Kind.SYMBOL | Kind.TEXT:
            return True
        case Kind.CALL if str(node.value).startswith("opaque "):
            return all(_is_argument(arg) for arg in node.args)
        case Kind.CALL if node.value == "abs":  # a length, a count, a modulus
            return not free_symbols(node) <= {"x", "y"}
        case Kind.GROUP | Kind.RATIO:
            return all(is_name(arg) for arg in node.args)
        case Kind.MUL:
            return _is_compound_name(node)
    return False


def _is_compound_name(node: Node) -> bool:
    first, last = node.args[0], node.args[-1]
    inverse = first.kind is Kind.POW and first.args[0].kind is Kind.SYMBOL and first.args[1] == _MINUS_ONE
    if inverse and len(node.args) == 2 and last.kind is Kind.SYMBOL:
        return True
    if len(node.args) == 2 and first.kind is Kind.SYMBOL and last.kind is Kind.NUMBER:  # \\phi(12)
        return first.value in _FUNCTION_NAMES or len(str(first.value)) > 1
    if not all(arg.kind is Kind.SYMBOL for arg in node.args):
        return False
    if str(last.value).startswith("figure"):  # m\\angle ABC
        return True
    names = [str(arg.value) for arg in node.args]
    is_function = len(names) == 2 and (
        names[0].rstrip("'") in _FUNCTION_NAMES or (names[0].isupper() and names[1].islower()) or names[0] == "Delta"
    )
    return is_function or all(name.isupper() for name in names)


def _is_argument(node: Node) -> bool:
    """What may stand in the brackets of a name: names, numbers, conditions on them."""
    if node.kind in (Kind.RELATION, Kind.LIST, *_SUMMED):
        return all(_is_argument(arg) for arg in node.args)
    return is_name(node) or node.kind in (Kind.NUMBER, Kind.CONSTANT, Kind.MATRIX, Kind.UNION, Kind.INTERSECTION)


def _is_asked_for(node: Node) -> bool:
    """An expression whose value a problem may ask for: `a + b`, `m/n`, `\\sin A`, `2^n`; no polynomial equation."""
    symbols = free_symbols(node)
    if node.kind is Kind.BIG:
        return True
    if node.kind is Kind.CALL:
        return is_name(node) if node.value == "abs" else bool(symbols)
    if node.kind is Kind.POW:
        base, exponent = node.args
        if base.kind is Kind.CALL:
            return _is_asked_for(base) and exponent.kind is Kind.NUMBER
        if base.kind is Kind.SYMBOL and len(str(base.value)) > 1 and exponent.kind is Kind.NUMBER:  # \\sigma^2
            return True
        return bool(free_symbols(exponent)) and not free_symbols(base)
    if node.kind is Kind.FACTORIAL:
        return True
    if len(symbols) < 2 or symbols <= _COORDINATES:  # x + y = 3 is a line, a + b = 3 a sum that was asked for
        return False
    return node.kind is Kind.ROOT or (node.kind in _SUMMED and _is_of_names(node))


def _is_of_names(node: Node) -> bool:
    if node.kind is Kind.POW:
        return node.args[0].kind is Kind.SYMBOL and node.args[1].kind is Kind.NUMBER
    if node.kind in (Kind.DIV, Kind.FRAC) and node.args[0].kind is Kind.NUMBER:
        return _is_of_names(node.args[1])
    if node.kind in _SUMMED:
        return all(_is_of_names(arg) for arg in node.args)
    return is_name(node)


def definition(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `name = ... = value`, or of `value = name`; the exact value where `\\approx` follows it."""
    if node.kind is not Kind.RELATION or not set(node.value) <= {"=", "~"} or node.args[0] == node.args[-1]:
        return None
    last = node.args[_last_exact(node)]
    first = node.args[0]
    if is_name(first) or _is_of_time(first, last):
        return first, last if last is not first else node.args[-1]
    if is_name(last) and not free_symbols(first):
        return last, first
    if len(node.args) > 2 or not free_symbols(first):  # a computation, `3 * 4 = 12`, arrives at its last side
        return first, last
    if last.kind in _WITHOUT_ORDER and first.kind not in _WITHOUT_ORDER:  # A^{-1} = matrix
        return first, last
    if first.kind is Kind.BIG:  # \\sum_{k=1}^n k = n(n+1)/2
        return first, last
    apart = free_symbols(last) and not free_symbols(first) & free_symbols(last)
    if apart and first.kind is Kind.CALL and first.value != "abs":  # \\tan\\theta = v^2 / rg
        return first, last
    is_value = not free_symbols(last) and (last != number(0) or _is_of_vectors(first))  # a + b - c = 0 is an equation
    return (first, last) if is_value and _is_asked_for(first) else None


def _is_of_time(name: Node, value: Node) -> bool:
    """Whether `x(t)` is a function and no product, as its value depends on t."""
    is_product = name.kind is Kind.MUL and len(name.args) == 2 and name.args[0].kind is Kind.SYMBOL
    return is_product and name.args[1] == symbol("t") and "t" in free_symbols(value)


def _is_of_vectors(node: Node) -> bool:
    return node.kind is Kind.MUL and all(str(arg.value).startswith("vec ") for arg in node.args)


def value_of_equation(node: Node) -> Node | None:
    """The closed right side of one of several equations, `x + y = 5, xy = 6`; None for other nodes."""
    if node.kind is not Kind.RELATION or node.value != ("=",) or free_symbols(node.args[1]):
        return None
    return node.args[1] if len(free_symbols(node.args[0])) > 1 else None


def rounded(node: Node) -> Node | None:
    """The value after the `\\approx` of a relation, None where there is none."""
    return node.args[-1] if node.kind is Kind.RELATION and node.value and node.value[-1] == "~" else None


def _last_exact(relation: Node) -> int:
    operators: tuple[str, ...] = relation.value
    return operators.index("~") if "~" in operators else len(operators)


def is_consistent(node: Node, judge: Judge) -> bool:
    """Whether the sides of a chain of equalities that have a value have about the same one; `5 = 6` has not.

    About: within a percent, or, where fewer digits are written, within the rounding to them, and a tenth at most.
    """
    known = [estimated_integral(side, judge.limits) or side for side in node.args]
    sides = [side for side in known if not (free_symbols(side) or is_name(side) or side.kind in _NOT_NUMBERS)]
    digits = min((side.digits for side in sides if side.kind is Kind.NUMBER and side.digits), default=3)
    roughly = Options(relative_tolerance=min(0.1, max(0.01, 5 * 10.0**-digits)))
    try:
        return all(equal_values(side, sides[-1], roughly, judge.limits) for side in sides[:-1])
    except (Undecided, NotRational, OutsideDomain):
        return True  # nothing can be said against it
