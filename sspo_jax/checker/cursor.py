"""A position in a list of tokens, with the bound on how deep groups may nest."""

from .expression import ParseError
from .tokens import Token

END: Token = ("end", "")


class Cursor:
    """Reads tokens one after the other."""

    def __init__(self, tokens: list[Token], max_depth: int) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.max_depth = max_depth
        self.bars = 0  # open |absolute values|
        self.in_braces = 0

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
