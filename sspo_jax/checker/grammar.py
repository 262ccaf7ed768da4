"""The levels of the grammar: lists, relations, unions, ratios, sums, products, signs, powers, postfix marks.

Precedence in this order, loosest first; atoms, functions, units and numerals are in their own modules.
"""

from .atoms import Atoms
from .calls import multiplied
from .cursor import END
from .expression import Node, ParseError, number, symbol
from .units import UNITS, word_unit
from .vocabulary import STARTERS

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "approx": "~", "in": "in", "equiv": "=",
    "sim": "=", "doteq": "=", "notin": "notin", "subset": "subset", "subseteq": "subset", "Rightarrow": "=>",
    "iff": "iff", "parallel": "parallel", "perp": "perp", "cong": "cong", "to": "to", "mapsto": "to",
}  # fmt: skip
_CLOSERS = frozenset([("mark", ")"), ("mark", "]"), ("mark", "}"), ("command", "}"), ("command", "rangle"),
                      ("command", "rfloor"), ("command", "rceil"), ("mark", "&"), ("command", "newline")])  # fmt: skip
_CURRENCY = {"$": "dollar", "euro": "euro", "pounds": "gbp", "yen": "yuan"}
_SIGNS = (("mark", "+"), ("mark", "-"), ("command", "pm"), ("command", "mp"))


class Parser(Atoms):
    """Recursive descent over tokens, bounded in depth; one method a precedence level."""

    # lists and relations

    def answer(self) -> Node:
        """A whole answer: items joined by commas, "and", "or"."""
        items, joiners = [self.item()], []
        while self.peek()[0] == "join":
            joiner = self.take()[1]
            while self.peek()[0] == "join":  # ", and"
                following = self.take()[1]
                joiner = following if joiner == "," else joiner
            if self.peek() == END or self.peek() in _CLOSERS:
                break
            joiners.append(joiner)
            items.append(self.item())
        if len(items) == 1:
            return items[0]
        kinds = [joiner for joiner in joiners if joiner != ","]
        return Node("list", tuple(items), kinds[-1] if kinds else ",")

    def item(self) -> Node:
        """A relation chain, or what stands on one side of it."""
        kind, text = self.peek()
        if (kind == "mark" and text in "=<>") or (kind == "command" and text in ("approx", "le", "ge", "ne", "=")):
            self.take()
            operator = _RELATIONS[text]
            side = self.union()
            return side if operator in ("=", "~") else Node("relation", (symbol("_"), side), (operator,))
        sides, operators = [self.union()], []
        while True:
            kind, text = self.peek()
            if kind in ("mark", "command") and text in _RELATIONS:
                self.take()
                operators.append(_RELATIONS[text])
                sides.append(self.union())
            else:
                break
        node = Node("relation", tuple(sides), tuple(operators)) if operators else sides[0]
        if self.peek()[0] == "command" and self.peek()[1] in ("pmod", "bmod", "mod"):
            self.take()
            node = Node("modulo", (node, self.sum()))
        return node

    def union(self) -> Node:
        left = self.ratio()
        while (
            self.peek()[0] == "command" and self.peek()[1] in ("cup", "cap", "setminus")
        ) or self._u_between_brackets():
            name = self.take()[1]
            right = self.ratio()
            kind = {"cup": "union", "U": "union", "cap": "intersection", "setminus": "difference"}[name]
            left = Node(kind, (left, right))
        return left

    def _u_between_brackets(self) -> bool:
        return (
            self.peek() == ("letter", "U")
            and self.position > 0
            and self.tokens[self.position - 1] in (("mark", ")"), ("mark", "]"), ("command", "}"))
            and self.peek(1) in (("mark", "("), ("mark", "["), ("command", "{"))
        )

    def ratio(self) -> Node:
        parts = [self.sum()]
        while not self.in_braces and self.accept("mark", ":"):
            parts.append(self.sum())
        return Node("ratio", tuple(parts)) if len(parts) > 1 else parts[0]

    # arithmetic

    def sum(self) -> Node:
        terms = [self.product()]
        while True:
            kind, text = self.peek()
            if kind == "mark" and text == "+":
                self.take()
                terms.append(self.product())
            elif kind == "mark" and text == "-":
                self.take()
                terms.append(Node("neg", (self.product(),)))
            elif kind == "command" and text in ("pm", "mp"):
                self.take()
                terms.append(Node(text, (self.product(),)))
            else:
                break
        return Node("add", tuple(terms)) if len(terms) > 1 else terms[0]

    def product(self) -> Node:
        factors = [self.unary()]
        while True:
            kind, text = self.peek()
            if kind == "mark" and text == "*":
                self.take()
                factors.append(self.unary())
            elif kind == "mark" and text == "/":
                self.take()
                factors = [Node("div", (multiplied(factors), self.unary()))]
            elif kind == "word" and factors[-1].kind != "text":
                if text not in UNITS and all(factor.kind in ("symbol", "constant") for factor in factors):
                    raise ParseError("letters stand before words")
                factors = [self.with_unit(multiplied(factors))]
            elif self.starts_factor():
                self._put_beside(factors)
            else:
                return multiplied(factors)

    def _put_beside(self, factors: list[Node]) -> None:
        """A value written beside the last factor: a mixed number, a smaller unit (`5 ft 3 in`), or a factor."""
        left = factors[-1]
        if left.kind == "unit" and self.peek()[0] == "number" and self.peek(1)[0] == "word":
            factors[:] = [Node("add", (multiplied(factors), self.with_unit(self.power())))]
            return
        if self.peek()[0] == "number" and self.peek(1) == ("mark", "/") and self.peek(2)[0] == "number":
            is_written = False
            if len(factors) == 1 and _is_written_integer(_unsigned(left)):
                top = self.power()
                self.take()
                right = Node("frac", (top, self.power()))
            else:
                raise ParseError("two numbers stand side by side")
        else:
            is_written = self.peek()[0] == "number"
            right = self.power()
        if is_written and right.kind == "number" and _unsigned(left).kind == "number":
            raise ParseError("two numbers stand side by side")
        mark = right.kind if right.kind in ("percent", "degree") else None
        fraction = right.args[0] if mark else right
        if len(factors) == 1 and _is_written_integer(_unsigned(left)) and _is_plain_fraction(fraction):
            mixed = Node("add", (_unsigned(left), fraction))
            mixed = Node(mark, (mixed,)) if mark else mixed
            factors[0] = Node("neg", (mixed,)) if left.kind == "neg" else mixed
        elif right.kind == "frac" and all(part.kind == "text" for part in right.args):
            top, bottom = (word_unit(str(part.value)) for part in right.args)
            factors[:] = [Node("unit", (multiplied(factors),), top.times(bottom, -1))]
        else:
            factors.append(right)

    def unary(self) -> Node:
        signs = []
        while self.peek() in _SIGNS:
            signs.append(self.take()[1])
        kind, text = self.peek()
        if kind == "command" and text in _CURRENCY:
            self.take()
            operand = Node("unit", (self.power(),), UNITS[_CURRENCY[text]])
        else:
            operand = self.power()
        if signs.count("-") % 2:
            operand = Node("neg", (operand,))
        for sign in signs:
            if sign in ("pm", "mp"):
                operand = Node(sign, (operand,))
        return operand

    def starts_factor(self) -> bool:
        kind, text = self.peek()
        if kind in ("number", "letter"):
            return not self._u_between_brackets()
        if kind == "mark":
            if text == "[" and (self.peek(1)[0] in ("end", "join") or self.peek(1)[1] in ("cup", "cap")):
                return False  # it closes an interval written `]0, 1[`
            return text in "({[" or (text == "|" and not self.bars and not self.in_braces)
        if kind == "command":
            return text in STARTERS or (text == "|" and not self.bars and not self.in_braces)
        return kind == "word" and self.tokens[self.position - 1][0] == "word"

    def power(self) -> Node:
        base = self.postfix(self.atom())
        while self.peek() == ("mark", "^"):
            self.take()
            base = self.postfix(self._raise(base))
        return base

    def _raise(self, base: Node) -> Node:
        if self.peek() in (("command", "circ"), ("command", "degree")):
            self.take()
            return self._degree(base)
        if self.peek() == ("mark", "{") and self.peek(1)[1] in ("circ", "degree") and self.peek(2) == ("mark", "}"):
            self.position += 3
            return self._degree(base)
        primes = 0
        if self.peek() == ("mark", "{") and self.peek(1) == ("command", "prime"):
            self.take()
            while self.accept("command", "prime"):
                primes += 1
            self.expect("mark", "}")
        elif self.accept("command", "prime"):
            primes = 1
        if primes:
            return self._primed(base, primes)
        exponent = self.script()
        if self.accept("mark", "!"):
            exponent = Node("factorial", (exponent,))
        if self.peek() == ("mark", "^"):
            self.take()
            exponent = Node("pow", (exponent, self.script()))
        return Node("pow", (base, exponent))

    def _degree(self, base: Node) -> Node:
        if self.peek() in (("letter", "C"), ("letter", "F"), ("word", "C"), ("word", "F")):
            return Node("unit", (base,), UNITS["celsius" if self.take()[1] == "C" else "fahrenheit"])
        node = Node("degree", (base,))
        if self.peek()[0] == "number" and (self.peek(1) == ("mark", "'")):
            minutes = self.atom()
            self.take()
            return Node("add", (node, Node("degree", (Node("div", (minutes, number(60))),))))
        return node

    def _primed(self, base: Node, primes: int) -> Node:
        if base.kind != "symbol":
            raise ParseError("a prime follows something that is no name")
        return symbol(str(base.value) + "'" * primes)

    def postfix(self, base: Node) -> Node:
        while True:
            kind, text = self.peek()
            if kind == "mark" and text == "!":
                self.take()
                if self.peek() == ("mark", "!"):
                    raise ParseError("double factorials are not read")
                base = Node("factorial", (base,))
            elif text == "%" and kind in ("mark", "command"):
                self.take()
                base = Node("percent", (base,))
            elif kind == "command" and text in _CURRENCY and base.kind == "number":
                self.take()
                base = Node("unit", (base,), UNITS[_CURRENCY[text]])
            elif kind == "command" and text == "degree":
                self.take()
                base = self._degree(base)
            elif kind == "mark" and text == "_" and _is_written_integer(base):
                base = self.in_base(str(base.value))
            elif kind == "mark" and text == "'" and base.kind == "symbol":
                self.take()
                base = self._primed(base, 1)
            else:
                return base


def _unsigned(node: Node) -> Node:
    return node.args[0] if node.kind == "neg" else node


def _is_written_integer(node: Node) -> bool:
    return node.kind == "number" and node.digits is None and node.value.denominator == 1


def _is_plain_fraction(node: Node) -> bool:
    """A fraction of two written integers, as the second part of a mixed number."""
    return node.kind == "frac" and all(part.kind == "number" and part.value.denominator == 1 for part in node.args)
