"""The part of the parser that reads functions, sums, products, integrals and limits."""

from .expression import Node, number, symbol
from .unit_words import UnitWords
from .vocabulary import FUNCTIONS

_INVERSES = frozenset(["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"])


def multiplied(factors: list[Node]) -> Node:
    """The product of factors, of one the factor itself."""
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))


class Calls(UnitWords):
    """Functions with their arguments, and operators with bounds."""

    def function(self, name: str) -> Node:
        base, exponent = None, None
        while self.peek() in (("mark", "_"), ("mark", "^")):
            mark = self.take()[1]
            if mark == "_":
                base = self.script()
            else:
                exponent = self.script()
        if name in ("max", "min", "gcd", "lcm"):
            argument = self.atom()
            return Node("call", argument.args if argument.kind in ("group", "set") else (argument,), name)
        bracketed = self.peek() in (("mark", "("), ("mark", "{"), ("mark", "["))
        argument = self.postfix(self.atom()) if bracketed else self.argument()
        if name == "lg":
            name, base = "log", number(10)
        arguments = (argument,) if base is None else (argument, base)
        if exponent is not None and exponent == Node("neg", (number(1),)) and name in _INVERSES:
            return Node("call", arguments, "arc" + name)
        node = Node("call", arguments, name)
        return node if exponent is None else Node("pow", (node, exponent))

    def argument(self) -> Node:
        """The argument of a function without brackets: factors up to a sign, a slash or another function."""
        if self.peek() in (("mark", "-"), ("mark", "+")):
            return self.unary()
        factors = [self.power()]
        while (
            self.starts_factor()
            and self.peek()[1] not in FUNCTIONS
            and self.peek() not in (("mark", "("), ("mark", "["))
        ):
            factors.append(self.power())
        return multiplied(factors)

    def big(self, name: str) -> Node:
        lower = upper = None
        while self.peek() in (("mark", "_"), ("mark", "^")):
            if self.take()[1] == "_":
                lower = self.script()
            else:
                upper = self.script()
        body = self.product()
        if lower is not None and lower.kind == "relation" and lower.args[0].kind == "constant":  # i or e as the index
            index = lower.args[0]
            lower = Node("relation", (symbol(str(index.value)), *lower.args[1:]), lower.value)
            body = _with_index(body, index)
        parts = tuple(part for part in (body, lower, upper) if part is not None)
        return Node("big", parts, (name, lower is not None, upper is not None))


def _with_index(node: Node, index: Node) -> Node:
    """The node with a constant read as the variable of a sum."""
    if node == index:
        return symbol(str(index.value))
    return Node(node.kind, tuple(_with_index(arg, index) for arg in node.args), node.value, node.digits)
