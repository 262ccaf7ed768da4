"""The tree of a parsed answer: one node type, its kinds, and the two errors of reading and evaluating."""

import dataclasses
import enum
from fractions import Fraction
from typing import Any


class ParseError(ValueError):
    """The text is not an answer this grammar knows; the message says where."""


class Undecided(Exception):
    """A value is out of reach of the bounded arithmetic, or has none; the message says why."""


class Kind(enum.StrEnum):
    """What a node is; after each kind, what its `value` holds and what its arguments are."""

    NUMBER = "number"  # a Fraction; `digits` = significant digits where written as a decimal
    CONSTANT = "constant"  # "pi", "e", "i", "inf"
    SYMBOL = "symbol"  # the name; a derivative is one, "y''" or "y''|x"
    BASED = "based"  # the base; the number
    ADD = "add"
    MUL = "mul"
    DIV = "div"  # written with a slash
    FRAC = "frac"  # written with \frac
    POW = "pow"
    ROOT = "root"  # radicand, degree
    NEG = "neg"
    PM = "pm"
    MP = "mp"
    FACTORIAL = "factorial"
    PERCENT = "percent"
    DEGREE = "degree"
    CALL = "call"  # the function's name, "opaque f" for an unknown one; its arguments
    BIG = "big"  # ("sum", has lower, has upper) and the like; body, bounds
    MODULO = "modulo"  # a value and its modulus
    UNIT = "unit"  # a Unit; the number of them
    LIST = "list"  # the joiner: ",", "and", "or", or "OR" of alternatives
    SET = "set"
    GROUP = "group"  # the brackets, "()", "[)"
    MATRIX = "matrix"  # (rows, columns)
    RELATION = "relation"  # its operators; one argument more than these
    RATIO = "ratio"
    CONDITIONED = "conditioned"  # an answer and the conditions that it holds under
    CASES = "cases"  # a function in pieces, each a conditioned answer
    LOGIC = "logic"  # "land", "lor"; propositions
    UNION = "union"
    INTERSECTION = "intersection"
    DIFFERENCE = "difference"
    REALS = "reals"
    EMPTYSET = "emptyset"
    BUILDER = "builder"  # a form and the condition on it
    TEXT = "text"  # normalised words
    CHOICE = "choice"  # the letter; what it stands for, where that is written
    TIME = "time"  # (seconds after midnight, has am or pm)
    DATE = "date"  # (year or None, month, day)


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One node of the tree, by its `kind`."""

    kind: Kind
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

    def has_symbol(self) -> bool:
        """Whether there is a variable in it."""
        return any(node.kind is Kind.SYMBOL for node in self.walk())

    def with_args(self, args: tuple["Node", ...]) -> "Node":
        """The same kind of node over other arguments."""
        return Node(self.kind, args, self.value, self.digits)


def names(text: str) -> tuple[str, ...]:
    """The words of a text in order; keeps tables of commands and units readable."""
    return tuple(text.split())


def name_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def number(value: Fraction | int, digits: int | None = None) -> Node:
    """A rational number; `digits` is how many significant digits it was written with, None where it is exact."""
    return Node(Kind.NUMBER, (), value if isinstance(value, Fraction) else Fraction(value), digits)


def symbol(name: str) -> Node:
    """A variable."""
    return Node(Kind.SYMBOL, (), name)


def constant(name: str) -> Node:
    """One of "pi", "e", "i", "inf"."""
    return Node(Kind.CONSTANT, (), name)


def negated(node: Node) -> Node:
    """The node with a minus sign before it."""
    return Node(Kind.NEG, (node,))


def is_equation(node: Node) -> bool:
    """Whether a node is `left = right`."""
    return node.kind is Kind.RELATION and node.value == ("=",)
