"""Numbers as written: decimals, exponents, repeating decimals, digits in a base; all exact."""

import re
from fractions import Fraction

from .cursor import Cursor
from .expression import Node, ParseError, number
from .fastpath import digits_to_int
from .words import words

_LONGEST_TAIL = 80  # of the digits before an ellipsis that are searched for what repeats


class Numerals(Cursor):
    """The part of the parser that reads numbers."""

    def number(self, text: str) -> Node:
        if self.peek() == ("mark", "_"):
            return self.in_base(text)
        digits = None
        mantissa = re.split("[eE]", text)[0]
        if "." in mantissa or len(text) != len(mantissa):
            digits = len(mantissa.replace(".", "").lstrip("0"))
            repeating = self._repeating(mantissa) if len(text) == len(mantissa) else None
            if repeating is not None:
                return repeating
        exponent = text[len(mantissa) + 1 :]
        if len(exponent) > 6:
            raise ParseError(f"the exponent {exponent} is out of reach")
        value = _decimal(mantissa) * Fraction(10) ** int(exponent or 0)
        return number(value, digits)

    def _repeating(self, mantissa: str) -> Node | None:
        """`0.1\\overline{6}`, `0.(3)`, `0.\\dot{3}`, `0.333...` as exact fractions."""
        whole, _, fixed = mantissa.partition(".")
        kind, text = self.peek()
        block = None
        if kind == "command" and text in ("overline", "bar") and self.peek(1) == ("mark", "{"):
            if self.peek(2)[0] == "number" and self.peek(3) == ("mark", "}"):
                block = self.peek(2)[1]
                self.position += 4
        elif kind == "command" and text in ("overline", "bar") and self.peek(1)[0] == "number":
            block = self.peek(1)[1]
            self.position += 2
        elif kind == "mark" and text == "(" and self.peek(1)[0] == "number" and self.peek(2) == ("mark", ")"):
            if mantissa.endswith(".") or fixed:
                block = self.peek(1)[1]
                self.position += 3
        elif kind == "command" and text == "dot":
            block = self._dotted()
        elif kind == "command" and text == "dots":
            self.take()
            tail_start = max(0, len(fixed) - _LONGEST_TAIL)
            found = _REPEATED_TAIL.search(fixed, tail_start)
            if found is None:
                raise ParseError(f"{mantissa}... does not show what repeats")
            fixed, block = fixed[: found.start()], found[1]
        if block is None:
            return None
        if not block.isdigit():
            raise ParseError(f"a repeating block of digits is wanted, not {block!r}")
        scale = 10 ** len(fixed)
        return number(_decimal(f"{whole or 0}.{fixed}0") + Fraction(int(block), scale * (10 ** len(block) - 1)))

    def _dotted(self) -> str:
        """`\\dot{1}42\\dot{7}`: the digits from the first dotted one to the last."""
        block = ""
        while self.peek() == ("command", "dot"):
            self.take()
            wrapped = self.accept("mark", "{")
            kind, text = self.take()
            if kind != "number":
                raise ParseError("a dot stands over something that is no digit")
            block += text
            if wrapped:
                self.expect("mark", "}")
            if self.peek()[0] == "number" and self.peek(1) == ("command", "dot"):
                block += self.take()[1]
        return block

    def in_base(self, digits: str) -> Node:
        self.expect("mark", "_")
        base_node = self.script()
        if base_node.kind == "text":
            base_node = words(str(base_node.value))  # 101_{two}
        if base_node.kind != "number" or base_node.value.denominator != 1:
            return Node("call", (Node("text", (), digits), base_node), "subscripted")
        base = int(base_node.value)
        return based(digits, base)


def _decimal(text: str) -> Fraction:
    whole, _, decimals = text.partition(".")
    return Fraction(digits_to_int((whole + decimals) or "0"), 10 ** len(decimals))


def based(digits: str, base: int) -> Node:
    """The number that digits are in a base; ParseError where the base has not these digits."""
    if not 2 <= base <= 36:
        raise ParseError(f"{base} is no base between 2 and 36")
    values = [int(digit, 36) for digit in digits if digit != "."]
    if digits.count(".") > 1 or any(value >= base for value in values) or len(digits) > 4000:
        raise ParseError(f"{digits[:20]} has digits that base {base} has not")
    decimals = digits.partition(".")[2]
    total = 0
    for value in values:
        total = total * base + value
    return Node("based", (number(Fraction(total, base ** len(decimals))),), base)


_REPEATED_TAIL = re.compile(r"(\d+?)\1+$")
