"""A position in a list of tokens, with the bound on how deep groups may nest, and the levels of the grammar by name."""

import abc

from .expression import Node, ParseError
from .tokens import Token

END: Token = ("end", "")


class Cursor(abc.ABC):
    """Reads tokens one after the other. The parts of the parser call its levels through the methods named last."""

    def __init__(self, tokens: list[Token], max_depth: int) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.max_depth = max_depth
        self.bars = 0  # open |absolute values|
        self.in_braces = 0
        self.groups: dict[int, tuple[Node, int]] = {}  # what stands in brackets, and where it ends, by where it begins

    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else END

    def take(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def accept(self, kind: str, text: str) -> bool:
        if self.peek() == (kind, text):
            self.position += 1
            return True
        return False

    def expect(self, kind: str, text: str) -> None:
        if not self.accept(kind, text):
            raise ParseError(f"{text!r} is wanted where {self.peek()[1] or 'the end'!r} stands")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > self.max_depth:
            raise ParseError(f"groups nest deeper than {self.max_depth}")

    @abc.abstractmethod
    def answer(self) -> Node:
        """A whole answer: items joined by commas, "and", "or"."""

    @abc.abstractmethod
    def item(self) -> Node:
        """A relation chain, or what stands on one side of it."""

    @abc.abstractmethod
    def sum(self) -> Node:
        """Terms with their signs."""

    @abc.abstractmethod
    def product(self) -> Node:
        """Factors, written with a sign between them or not."""

    @abc.abstractmethod
    def unary(self) -> Node:
        """A power with signs before it."""

    @abc.abstractmethod
    def power(self) -> Node:
        """An atom with its exponents and postfix marks."""

    @abc.abstractmethod
    def postfix(self, base: Node) -> Node:
        """The base with the marks that follow it."""

    @abc.abstractmethod
    def atom(self) -> Node:
        """One value: a number, a name, a group, a command with its arguments."""

    @abc.abstractmethod
    def script(self) -> Node:
        """What `^` or `_` applies to."""

    @abc.abstractmethod
    def starts_factor(self) -> bool:
        """Whether a value that multiplies the one before it comes next."""
