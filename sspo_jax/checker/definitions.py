"""Equations that say what a name stands for: `x = 5`, `f(x) = 2x`, `3 \\cdot 4 = 12`."""

from .expression import Node, number
from .values import free_symbols

_MINUS_ONE = Node("neg", (number(1),))
_FUNCTION_NAMES = frozenset("fghpqrsuvyFGHPQRSTNVA")


def is_name(node: Node) -> bool:
    """What may stand for an answer on the left of `=`: `x`, `f(x)`, `\\text{Area}`, `(x, y)`."""
    if node.kind in ("symbol", "text"):
        return True
    if node.kind == "constant":
        return False
    if node.kind == "call" and (str(node.value).startswith("opaque ") or node.value == "abs"):
        return all(is_name(arg) or arg.kind == "number" for arg in node.args) and node.value != "abs"
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
        function = len(names) == 2 and (names[0] in _FUNCTION_NAMES or (names[0].isupper() and names[1].islower()))
        return function or all(name.isupper() for name in names)
    return False


def definition(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `name = ... = value`, or of `value = name`."""
    if node.kind != "relation" or set(node.value) != {"="}:  # type: ignore[arg-type]
        return None
    first, last = node.args[0], node.args[-1]
    if is_name(first):
        return first, last
    if is_name(last) and not free_symbols(first):
        return last, first
    if len(node.args) > 2 or not free_symbols(first):  # a computation, `3 * 4 = 12`, arrives at its last side
        return first, last
    return None
