"""The part of the parser that reads what stands in brackets: groups, tuples, intervals, sets, matrices."""

from .calls import Calls
from .cursor import END
from .expression import Node, ParseError, number
from .tokens import Token
from .vocabulary import MATRICES, STARTERS, SYSTEMS

_NEW_LINE: Token = ("command", "newline")
_ALIGNED: frozenset[Token] = frozenset(
    [("mark", "="), ("mark", "<"), ("mark", ">"), *(("command", name) for name in ("=", "le", "ge", "approx", "ne"))]
)


class Groups(Calls):
    """Brackets of every kind, and the arguments that commands take in braces."""

    def script(self) -> Node:
        """What `^` or `\\frac` applies to: a group, a command with its arguments, or one number or letter."""
        kind, text = self.peek()
        if kind == "mark" and text == "{":
            return self.braced()
        if kind == "mark" and text in "+-":
            self.take()
            self.enter()
            operand = self.script()
            self.depth -= 1
            return operand if text == "+" else Node("neg", (operand,))
        if kind == "mark" and text == "(":
            return self.atom()
        if kind in ("number", "letter") or (kind == "command" and text in STARTERS):
            return self.atom()
        raise ParseError(f"an exponent or argument is wanted where {text or 'the end'!r} stands")

    def fraction_argument(self) -> Node:
        """An argument of `\\frac` or `\\sqrt`: a group, or the one digit or letter TeX would take."""
        kind, text = self.peek()
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                raise ParseError(f"\\frac or \\sqrt is followed by {text} without braces")
            self.tokens[self.position] = ("number", text[1:])
            return number(int(text[0]))
        return self.script()

    def braced(self) -> Node:
        self.expect("mark", "{")
        in_braces, bars, self.in_braces, self.bars = self.in_braces, self.bars, 0, 0
        node = self.answer()
        if self.accept("command", "choose"):
            node = Node("call", (node, self.answer()), "binom")
        elif self.accept("command", "over"):
            node = Node("frac", (node, self.answer()))
        self.in_braces, self.bars = in_braces, bars
        self.expect("mark", "}")
        return node

    def group(self, opening: str) -> Node:
        """What follows an opening `(`, `[` or `]`: a tuple, an interval, or one value in brackets.

        It is kept for when the same brackets are read again: `r(...)` is tried as a call first, then as a product, and
        without this the time would double with each pair of brackets in one another.
        """
        start = self.position
        known = self.groups.get(start)
        if known is None:
            node = self._group(opening)
            self.groups[start] = (node, self.position)
            return node
        node, self.position = known
        return node

    def _group(self, opening: str) -> Node:
        in_braces, bars, self.in_braces, self.bars = self.in_braces, self.bars, 0, 0
        inner = self.answer()
        self.in_braces, self.bars = in_braces, bars
        kind, closing = self.take()
        if kind != "mark" or closing not in ")][":
            raise ParseError(f"a bracket {opening} is closed by {closing or 'the end'!r}")
        items = inner.args if inner.kind == "list" else (inner,)
        if len(items) == 1:
            if (opening, closing) in (("(", ")"), ("[", "]")):
                return inner if inner.kind != "relation" else Node("group", (inner,), "()")
            raise ParseError(f"one value stands between {opening} and {closing}")
        if opening == "]" or closing == "[":
            opening, closing = {"]": "("}.get(opening, opening), {"[": ")"}.get(closing, closing)
        return Node("group", tuple(items), opening + closing)

    def absolute(self) -> Node:
        self.bars += 1
        inner = self.sum()
        self.bars -= 1
        kind, text = self.take()
        if text != "|" or kind == "end":
            raise ParseError("an absolute value does not close")
        return Node("call", (inner,), "abs")

    def set(self) -> Node:
        """What follows `\\{`: a set, or a set builder `x | condition`."""
        if self.accept("command", "}"):
            return Node("emptyset")
        in_braces, bars, self.in_braces, self.bars = 1, self.bars, 1, 0
        inner = self.answer()
        if self.peek() in (("mark", "|"), ("command", "|"), ("mark", ":")):
            self.take()
            self.in_braces = 0
            condition = self.answer()
            self.expect("command", "}")
            self.in_braces, self.bars = in_braces - 1, bars
            return Node("builder", (inner, condition))
        self.in_braces, self.bars = 0, bars
        self.expect("command", "}")
        return Node("set", inner.args if inner.kind == "list" else (inner,))

    def environment(self, name: str) -> Node:
        if name in SYSTEMS:
            return self._system(name)
        if name not in MATRICES:
            raise ParseError(f"the environment {name} is not read")
        rows: list[list[Node]] = [[]]
        while self.peek() != ("command", "end " + name):
            if self.accept("command", "newline"):
                rows.append([])
            elif self.accept("mark", "&"):
                continue
            elif self.peek() == END:
                raise ParseError(f"\\begin{{{name}}} does not close")
            elif self.peek() == ("command", "hline"):
                self.take()
            else:
                rows[-1].append(self.item())
        self.take()
        rows = [row for row in rows if row]
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ParseError("the rows of a matrix differ in length")
        matrix = Node("matrix", tuple(entry for row in rows for entry in row), (len(rows), len(rows[0])))
        return matrix if MATRICES[name] else Node("call", (matrix,), "det")

    def _system(self, name: str) -> Node:
        """The lines of `cases` and the like as a list; pairs of value and condition as a matrix of two columns."""
        end = ("command", "end " + name)
        self._drop_alignment(end)
        in_braces, bars, self.in_braces, self.bars = self.in_braces, self.bars, 0, 0
        rows: list[list[Node]] = []
        while not self.accept(*end):
            if self.accept("command", "newline"):
                continue
            if self.peek() == END:
                raise ParseError(f"\\begin{{{name}}} does not close")
            rows.append([self.answer()])
            while self.accept("mark", "&"):
                rows[-1].append(self.answer())
        self.in_braces, self.bars = in_braces, bars
        if not rows or len({len(row) for row in rows}) > 1:
            raise ParseError(f"the lines of \\begin{{{name}}} differ in their columns, or there are none")
        if len(rows[0]) > 1:
            return Node("matrix", tuple(cell for row in rows for cell in row), (len(rows), len(rows[0])))
        return rows[0][0] if len(rows) == 1 else Node("list", tuple(row[0] for row in rows), "and")

    def _drop_alignment(self, end: Token) -> None:
        """Takes out the `&` that only align: at the beginning of a line and before or after a relation sign."""
        stop = self.tokens.index(end, self.position) if end in self.tokens[self.position :] else len(self.tokens)
        kept: list[Token] = []
        for index in range(self.position, stop):
            if self.tokens[index] == ("mark", "&"):
                before = kept[-1] if kept else _NEW_LINE
                if before == _NEW_LINE or before in _ALIGNED or self.peek(index + 1 - self.position) in _ALIGNED:
                    continue
            kept.append(self.tokens[index])
        self.tokens[self.position : stop] = kept
