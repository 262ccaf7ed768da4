"""`\\begin{...}` to `\\end{...}`: matrices and determinants, systems, functions in pieces, aligned lines."""

import typing

from ..expression import Kind, Node, ParseError
from .cursor import CLOSERS, END
from .tokens import Token
from .vocabulary import CONDITION_WORDS, MATRICES, SYSTEMS

if typing.TYPE_CHECKING:
    from .parser import Parser

_NEW_LINE: Token = ("command", "newline")
_ALIGNED: frozenset[Token] = frozenset(
    [("mark", "="), ("mark", "<"), ("mark", ">"), *(("command", name) for name in ("=", "le", "ge", "approx", "ne"))]
)
_NO_CONDITION = CONDITION_WORDS | {"is", "are"}


def environment(parser: "Parser", name: str) -> Node:
    """What follows `\\begin{name}`: a matrix, a determinant, or lines."""
    if name in SYSTEMS:
        return lines(parser, name)
    if name not in MATRICES:
        raise ParseError(f"the environment {name} is not read")
    rows: list[list[Node]] = [[]]
    while parser.peek() != ("command", "end " + name):
        if parser.accept("command", "newline"):
            rows.append([])
        elif parser.accept("mark", "&") or parser.accept("command", "hline"):
            continue
        elif parser.peek() == END:
            raise ParseError(f"\\begin{{{name}}} does not close")
        else:
            rows[-1].append(parser.enclosed(parser.item))
    parser.take()
    rows = [row for row in rows if row]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ParseError("the rows of a matrix differ in length")
    entries = tuple(entry for row in rows for entry in row)
    if name == "array" and len(entries) == 1:
        return entries[0]
    matrix = Node(Kind.MATRIX, entries, (len(rows), len(rows[0])))
    return matrix if MATRICES[name] else Node(Kind.CALL, (matrix,), "det")


def lines(parser: "Parser", name: str) -> Node:
    """The lines of `cases` and the like: a list, or a function in pieces where each line has its condition."""
    end = ("command", "end " + name)
    _drop_alignment(parser, end)
    rows: list[tuple[Node, ...]] = []
    while not parser.accept(*end):
        if parser.accept("command", "newline"):
            continue
        if parser.peek() == END:
            raise ParseError(f"\\begin{{{name}}} does not close")
        row = [parser.enclosed(parser.answer)]
        while parser.accept("mark", "&"):
            row += _conditions_of_line(parser)
        rows.append(tuple(row))
    if len({len(row) > 1 for row in rows}) != 1:
        raise ParseError(f"some lines of \\begin{{{name}}} have a condition and others not, or there are none")
    lines = [row[0] if len(row) == 1 else Node(Kind.CONDITIONED, row) for row in rows]
    if len(lines) == 1:
        return lines[0]
    if all(line.kind is Kind.CONDITIONED for line in lines):
        return Node(Kind.CASES, tuple(lines))
    return Node(Kind.LIST, tuple(lines), "and")


def _conditions_of_line(parser: "Parser") -> list[Node]:
    if parser.peek()[0] == "word" and parser.peek()[1].lower() in ("otherwise", "else", "elsewhere"):
        parser.take()
        return [Node(Kind.TEXT, (), "otherwise")]
    start, conditions = parser.position, []
    try:
        parser.enclosed(lambda: conditions.extend(parser.conditions()) or conditions[0])
    except ParseError:
        conditions = []
    if conditions and (parser.peek() in CLOSERS or parser.peek()[1].startswith("end ")):
        return conditions
    parser.position, spoken = start, []
    while parser.peek() != END and parser.peek() not in CLOSERS and not parser.peek()[1].startswith("end "):
        spoken.append(parser.take()[1])
    return [Node(Kind.TEXT, (), " ".join(word for word in spoken if word.lower() not in _NO_CONDITION))]


def _drop_alignment(parser: "Parser", end: Token) -> None:
    """Takes out the `&` that only align: at the beginning of a line and before or after a relation sign."""
    stop = parser.tokens.index(end, parser.position) if end in parser.tokens[parser.position :] else len(parser.tokens)
    kept: list[Token] = []
    for index in range(parser.position, stop):
        if parser.tokens[index] == ("mark", "&"):
            before = kept[-1] if kept else _NEW_LINE
            if before == _NEW_LINE or before in _ALIGNED or parser.peek(index + 1 - parser.position) in _ALIGNED:
                continue
        kept.append(parser.tokens[index])
    parser.tokens[parser.position : stop] = kept
