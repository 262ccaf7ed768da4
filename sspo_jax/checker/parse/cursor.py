"""The place in a list of tokens that the grammar reads at, and the sets of tokens that end a value."""

from ..expression import ParseError
from .tokens import Token

END: Token = ("end", "")
RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "approx": "~", "in": "in", "equiv": "=",
    "sim": "=", "doteq": "=", "notin": "notin", "subset": "subset", "subseteq": "subset", "Rightarrow": "=>",
    "iff": "iff", "parallel": "parallel", "perp": "perp", "cong": "cong", "to": "to", "mapsto": "to",
}  # fmt: skip
CLOSERS = frozenset([("mark", ")"), ("mark", "]"), ("mark", "}"), ("command", "}"), ("command", "rangle"),
                     ("command", "rfloor"), ("command", "rceil"), ("mark", "&"), ("command", "newline")])  # fmt: skip
SIGNS = (("mark", "+"), ("mark", "-"), ("command", "pm"), ("command", "mp"))


class Cursor:
    """A list of tokens and the position of the next one."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = list(tokens)
        self.position = 0

    def peek(self, ahead: int = 0) -> Token:
        """The token at the position, or so many after it."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else END

    def take(self) -> Token:
        """The token at the position, which moves on."""
        token = self.peek()
        self.position += 1
        return token

    def accept(self, kind: str, text: str) -> bool:
        """Whether this token comes next; it is taken then."""
        is_next = self.position < len(self.tokens) and self.tokens[self.position] == (kind, text)
        self.position += is_next
        return is_next

    def expect(self, kind: str, text: str) -> None:
        """Take this token; ParseError where another one comes."""
        if not self.accept(kind, text):
            raise ParseError(f"expected {text!r}, found {self.peek()[1] or 'the end'!r}")

    def tokens_in_braces(self, *, most: int = 10**9) -> list[Token] | None:
        """The tokens in the braces at the position, which moves behind them; None where there are none, or too many."""
        if not self.accept("mark", "{"):
            return None
        start, depth = self.position, 1
        while depth:
            token = self.take()
            if self.position - start > most:
                return None
            if token == END:
                raise ParseError("a group does not close")
            depth += (token == ("mark", "{")) - (token == ("mark", "}"))
        return self.tokens[start : self.position - 1]

    def raw_group(self, *, or_token: bool = False) -> str:
        """The text in the braces at the position; without braces that of the next token, or nothing."""
        group = self.tokens_in_braces()
        if group is None:
            return self.take()[1] if or_token else ""
        return "".join(text for _, text in group)
