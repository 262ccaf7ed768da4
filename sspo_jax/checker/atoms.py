"""The part of the parser that reads single values: letters, words, brackets, sets, matrices, commands."""

from collections.abc import Callable

from .cursor import END
from .expression import Node, ParseError, constant, number, symbol
from .groups import Groups
from .numerals import based
from .vocabulary import ACCENTS, FUNCTIONS, GREEK_OR_NAMED
from .words import words


class Atoms(Groups):
    """Values that stand for themselves."""

    def atom(self) -> Node:
        self.enter()
        node = self._atom()
        self.depth -= 1
        return node

    def _atom(self) -> Node:
        kind, text = self.take()
        if kind == "number":
            return self.number(text)
        if kind == "letter":
            return self.letter(text)
        if kind == "word":
            return self.text(text)
        if kind == "mark":
            if text in "([":
                return self.group(text)
            if text == "{":
                self.position -= 1
                return self.braced()
            if text == "|":
                return self.absolute()
            if text == "]":
                return self.group("]")
        if kind == "command":
            return self.command(text)
        raise ParseError(f"a value is wanted where {text or 'the end'!r} stands")

    def letter(self, text: str) -> Node:
        if self.peek() == ("mark", "_"):
            self.take()
            return self._subscripted(text)
        if text == "e":
            return constant("e")
        if text == "i":
            return constant("i")
        if text in "fg" and self.peek() == ("mark", "("):
            self.take()
            arguments = self.group("(")
            return Node("call", arguments.args if arguments.kind == "group" else (arguments,), "opaque " + text)
        node = symbol(text)
        if self.peek() == ("mark", "("):
            start = self.position
            self.take()
            group = self.group("(")
            if group == number(0):  # no product, I(0) is a value of I
                return Node("call", (group,), "opaque " + text)
            if group.kind == "group" and group.value == "()":
                is_binomial = text == "C" and len(group.args) == 2
                return Node("call", group.args, "binom" if is_binomial else "opaque " + text)
            self.position = start
        return node

    def _subscripted(self, name: str) -> Node:
        start = self.position
        if self.accept("mark", "{"):
            depth = 1
            while depth:
                kind, text = self.take()
                if kind == "end":
                    raise ParseError("a subscript does not close")
                depth += ((kind, text) == ("mark", "{")) - ((kind, text) == ("mark", "}"))
            subscript = "".join(text for _, text in self.tokens[start + 1 : self.position - 1])
        else:
            kind, subscript = self.take()
            if kind == "end":
                raise ParseError("a subscript is missing")
        return symbol(f"{name}_{subscript.strip()}")

    def text(self, first: str) -> Node:
        parts = [first]
        while self.peek()[0] == "word" or (self.peek()[0] == "letter" and self.peek(1)[0] in ("word", "end", "join")):
            parts.append(self.take()[1])
        return words(" ".join(parts), whole=False)

    def command(self, name: str) -> Node:
        handler = _COMMANDS.get(name)
        if handler is not None:
            return handler(self)
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK_OR_NAMED:
            return self._subscripted(name) if self.accept("mark", "_") else symbol(name)
        if name in ACCENTS:
            return self.accented(name)
        if name.startswith("begin "):
            return self.environment(name[6:])
        if name in ("sum", "prod", "int", "lim"):
            return self.big(name)
        raise ParseError(f"\\{name} is no command this grammar knows")

    def accented(self, name: str) -> Node:
        start = self.position
        if self.peek() == ("mark", "{"):
            depth = 0
            while True:
                token = self.take()
                depth += (token == ("mark", "{")) - (token == ("mark", "}"))
                if token == END:
                    raise ParseError("a group does not close")
                if depth == 0:
                    break
            inner = "".join(text for _, text in self.tokens[start + 1 : self.position - 1])
        else:
            inner = self.take()[1]
        if name == "mathbb" and inner == "R":
            return Node("reals")
        if name in ("mathcal", "mathbb"):
            return symbol(f"{name} {inner}")
        full = f"{name.removeprefix('wide').removeprefix('over').removeprefix('left').removeprefix('right')} {inner}"
        return self._subscripted(full) if self.accept("mark", "_") else symbol(full)


def _digits_in_base(parser: Atoms) -> Node:
    """`\\digits{2A}{16}`, what `read` makes of a number written with its base."""
    parts = []
    for _ in range(2):
        parser.expect("mark", "{")
        parts.append("")
        while parser.peek()[0] in ("number", "letter", "word"):
            parts[-1] += parser.take()[1]
        parser.expect("mark", "}")
    return based(parts[0], int(parts[1]))


def _fraction(parser: Atoms) -> Node:
    top = parser.fraction_argument()
    bottom = parser.fraction_argument()
    return Node("frac", (top, bottom))


def _root(parser: Atoms) -> Node:
    degree = number(2)
    if parser.accept("mark", "["):
        degree = parser.answer()
        parser.expect("mark", "]")
    radicand = parser.atom() if parser.peek()[0] == "number" else parser.script()  # \\sqrt27 is meant as a whole
    return Node("root", (radicand, degree))


def _binomial(parser: Atoms) -> Node:
    return Node("call", (parser.fraction_argument(), parser.fraction_argument()), "binom")


def _between(name: str, closing: str) -> "Callable[[Atoms], Node]":
    def parse(parser: Atoms) -> Node:
        inner = parser.answer()
        parser.expect("command", closing)
        return Node("call", (inner,), name)

    return parse


def _angle_brackets(parser: Atoms) -> Node:
    inner = parser.answer()
    parser.expect("command", "rangle")
    return Node("group", inner.args if inner.kind == "list" else (inner,), "()")


def _named_points(parser: Atoms) -> Node:
    """`\\angle ABC`, `\\triangle ABC`: the letters are one name."""
    letters = ""
    while parser.peek()[0] == "letter":
        letters += parser.take()[1]
        if parser.accept("mark", "_"):
            letters += "_" + str(parser.script().value)
    return symbol("figure " + letters)


_COMMANDS = {
    "frac": _fraction,
    "sqrt": _root,
    "cbrt": lambda parser: Node("root", (parser.fraction_argument(), number(3))),
    "binom": _binomial,
    "digits": _digits_in_base,
    "pi": lambda parser: constant("pi"),
    "e": lambda parser: constant("e"),
    "i": lambda parser: constant("i"),
    "infty": lambda parser: constant("inf"),
    "emptyset": lambda parser: Node("emptyset"),
    "{": Atoms.set,
    "|": Atoms.absolute,
    "langle": _angle_brackets,
    "lfloor": _between("floor", "rfloor"),
    "lceil": _between("ceil", "rceil"),
    "angle": _named_points,
    "triangle": _named_points,
    "R": lambda parser: Node("reals"),
}
