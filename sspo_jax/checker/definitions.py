"""Equations that say what a name stands for: `x = 5`, `f(x) = 2x`, `a + b = 7`, `3 \\cdot 4 = 12`."""

from .expression import Node, Undecided, number
from .judge import Judge
from .limits import NotRational, OutsideDomain
from .values import equal_values, free_symbols
from .verdict import Options

_MINUS_ONE = Node("neg", (number(1),))
_DIFFERENTIAL = Node("symbol", (), "d")
_FUNCTION_NAMES = frozenset("fghpqrsuvyFGHPQRSTNVA")
_NOT_NUMBERS = ("set", "list", "matrix", "ratio", "choice", "time", "date")
_COORDINATES = frozenset("xyz")


def is_name(node: Node) -> bool:
    """What may stand for an answer on the left of `=`: `x`, `f(x)`, `\\text{Area}`, `(x, y)`."""
    if node.kind in ("symbol", "text"):
        return True
    if node.kind == "call" and str(node.value).startswith("opaque "):
        return all(_is_argument(arg) for arg in node.args)
    if node.kind == "call" and node.value == "abs":  # a length, |AB|
        return node.args[0].kind == "mul" and is_name(node.args[0])
    if node.kind in ("div", "frac"):  # dy/dx
        return all(arg.kind == "mul" and arg.args[0] == _DIFFERENTIAL and len(arg.args) == 2 for arg in node.args)
    if node.kind == "group":
        return all(is_name(arg) for arg in node.args)
    if node.kind == "mul":
        first, last = node.args[0], node.args[-1]
        inverse = first.kind == "pow" and first.args[0].kind == "symbol" and first.args[1] == _MINUS_ONE
        if inverse and len(node.args) == 2 and last.kind == "symbol":
            return True
        if not all(arg.kind == "symbol" for arg in node.args):
            return False
        if str(last.value).startswith("figure"):  # m\\angle ABC
            return True
        names = [str(arg.value) for arg in node.args]
        function = len(names) == 2 and (
            names[0].rstrip("'") in _FUNCTION_NAMES or (names[0].isupper() and names[1].islower())
        )
        return function or all(name.isupper() for name in names)
    return False


def _is_argument(node: Node) -> bool:
    """What may stand in the brackets of a name: names, numbers, conditions on them."""
    if node.kind in ("relation", "neg", "add", "list"):
        return all(_is_argument(arg) for arg in node.args)
    return is_name(node) or node.kind == "number"


def _is_asked_for(node: Node) -> bool:
    """An expression whose value a problem may ask for: `a + b`, `m/n`, `\\sin A`; no multiple of an unknown."""
    if node.kind == "call" and not str(node.value).startswith("opaque"):
        return all(is_name(arg) for arg in node.args) and node.value != "abs"
    if node.kind == "pow" and node.args[0].kind == "call":
        return _is_asked_for(node.args[0]) and node.args[1].kind == "number"
    symbols = free_symbols(node)
    if len(symbols) < 2 or symbols <= _COORDINATES:  # x + y = 3 is a line, a + b = 3 a sum that was asked for
        return False
    return node.kind in ("add", "mul", "div", "frac") and _is_of_names(node)


def _is_of_names(node: Node) -> bool:
    if node.kind == "pow":
        return node.args[0].kind == "symbol" and node.args[1].kind == "number"
    if node.kind in ("add", "neg", "mul", "div", "frac"):
        return all(_is_of_names(arg) for arg in node.args)
    return is_name(node)


def definition(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `name = ... = value`, or of `value = name`; the exact value where `\\approx` follows it."""
    if node.kind != "relation" or not set(node.value) <= {"=", "~"}:  # type: ignore[arg-type]
        return None
    last = node.args[_last_exact(node)]
    first = node.args[0]
    if is_name(first):
        return first, last if last is not first else node.args[-1]
    if is_name(last) and not free_symbols(first):
        return last, first
    if len(node.args) > 2 or not free_symbols(first):  # a computation, `3 * 4 = 12`, arrives at its last side
        return first, last
    is_value = not free_symbols(last) and last != number(0)  # a + b - c = 0 is an equation
    return (first, last) if is_value and _is_asked_for(first) else None


def rounded(node: Node) -> Node | None:
    """The value after the `\\approx` of a relation, None where there is none."""
    return node.args[-1] if node.kind == "relation" and node.value and node.value[-1] == "~" else None


def _last_exact(relation: Node) -> int:
    operators: tuple[str, ...] = relation.value  # type: ignore[assignment]
    return operators.index("~") if "~" in operators else len(operators)


def is_consistent(node: Node, judge: Judge) -> bool:
    """Whether the sides of a chain of equalities that have a value have about the same one; `5 = 6` has not.

    About: within a percent, or, where fewer digits are written, within the rounding to them, and a tenth at most.
    """
    sides = [side for side in node.args if not (free_symbols(side) or is_name(side) or side.kind in _NOT_NUMBERS)]
    digits = min((side.digits for side in sides if side.kind == "number" and side.digits), default=3)
    roughly = Options(relative_tolerance=min(0.1, max(0.01, 5 * 10.0**-digits)))
    try:
        return all(equal_values(side, sides[-1], roughly, judge.limits) for side in sides[:-1])
    except (Undecided, NotRational, OutsideDomain):
        return True  # nothing can be said against it
