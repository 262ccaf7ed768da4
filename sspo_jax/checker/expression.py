"""The tree of a parsed answer: one node type, its kinds, and the two errors of reading and evaluating."""

import dataclasses
from fractions import Fraction
from typing import Any


class ParseError(ValueError):
    """The text is not an answer this grammar knows; the message says where."""


class Undecided(Exception):
    """A value is out of reach of the bounded arithmetic, or has none; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One node. By `kind`, with its arguments and `value`:

    numbers     number (Fraction or int; `digits` = significant digits where written as a decimal), constant ("pi",
                "e", "i", "inf"), symbol (name), based (base) of the digits as `text`
    arithmetic  add, mul, div, frac, pow, root (radicand, degree), neg, pm, mp, factorial, percent, degree,
                call (function name), unit (Unit)
    answers     list, set, group (brackets, "()" "[)" ...), matrix ((rows, columns)), relation (operators), ratio,
                union, intersection, difference, reals, emptyset, builder, text (normalised words), choice (letter),
                time (seconds after midnight, has am or pm), date (year or None, month, day), big (sum, prod, int, lim)
    """

    kind: str
    args: tuple["Node", ...] = ()
    value: Any = None
    digits: int | None = None

    def walk(self) -> list["Node"]:
        """This node and all below it, parents first."""
        found: list[Node] = []
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            found.append(node)
            stack.extend(node.args)
        return found


def names(text: str) -> tuple[str, ...]:
    """The words of a text in order; keeps tables of commands and units readable."""
    return tuple(text.split())


def number(value: Fraction | int, digits: int | None = None) -> Node:
    """A rational number; `digits` is how many significant digits it was written with, None where it is exact."""
    return Node("number", (), Fraction(value), digits)


def symbol(name: str) -> Node:
    """A variable."""
    return Node("symbol", (), name)


def constant(name: str) -> Node:
    """One of "pi", "e", "i", "inf"."""
    return Node("constant", (), name)
