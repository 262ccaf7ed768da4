"""An answer in LaTeX or plain ASCII parsed into an expression tree. Nothing of the text is ever evaluated as code.

Precedence, loosest first: lists (`,` and or), relations, unions, ratios, sums, products (written or not), signs,
powers, postfix marks. `read` is the entry; it falls back to text for answers in words.
"""

import re

from .cursor import END
from .expression import Node, ParseError, constant, names, number, symbol
from .normalise import fold, tidy
from .numerals import Numerals, based
from .tokens import COMMA_GROUPS, FUNCTIONS, Token, join_thousands, tokenize
from .units import MULTIPLIERS, NO_UNIT, POWERS, SINGLE_LETTERS, UNITS, word_unit
from .words import clock_or_date, words

MAX_DEPTH = 60  # nested groups; some eight Python frames each
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "approx": "=", "in": "in", "equiv": "=",
    "sim": "=", "doteq": "=", "notin": "notin", "subset": "subset", "subseteq": "subset", "Rightarrow": "=>",
    "iff": "iff", "parallel": "parallel", "perp": "perp", "cong": "cong", "to": "to", "mapsto": "to",
}  # fmt: skip
_GREEK_OR_NAMED = frozenset(
    names(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
        "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell aleph nabla partial"
    )
)
_ACCENTS = frozenset(
    names("vec hat bar overline dot ddot tilde widehat overrightarrow overleftarrow widetilde mathbb mathcal")
)
_MATRICES = {"pmatrix": 1, "bmatrix": 1, "matrix": 1, "array": 1, "smallmatrix": 1, "Bmatrix": 1, "vmatrix": 0}
_CLOSERS = frozenset([("mark", ")"), ("mark", "]"), ("mark", "}"), ("command", "}"), ("command", "rangle"),
                      ("command", "rfloor"), ("command", "rceil"), ("mark", "&"), ("command", "newline")])  # fmt: skip
_CURRENCY = {"$": "dollar", "euro": "euro", "pounds": "gbp", "yen": "yuan"}


def read(answer: str, *, plain_commas: bool = True, max_depth: int = MAX_DEPTH) -> Node:
    """The tree of an answer as written. `plain_commas`: `1,000` outside of brackets is a number, not a list.

    Raises:
        ParseError: the text is neither mathematics this grammar knows nor words.
    """
    text = join_thousands(tidy(fold(answer)), plain_commas=plain_commas)
    if not text:
        raise ParseError("the answer is empty")
    text = _REMARKS.sub("", text)
    for pattern, replacement in _REWRITES:
        text, count = pattern.subn(replacement, text)
        if count:
            break
    lone_unit = _NUMBER_AND_LETTER.fullmatch(text)
    if lone_unit is not None:
        text = rf"{lone_unit[1]}\text{{ {lone_unit[2]} }}{lone_unit[3] or ''}"
    special = _choice_with_text(text, max_depth) or clock_or_date(text)
    if special is not None:
        return special
    tokens = tokenize(text)
    if not tokens:
        raise ParseError("the answer holds nothing but spaces")
    try:
        parser = Parser(tokens, max_depth)
        node = parser.answer()
        if parser.peek() != END:
            raise ParseError(f"unexpected {parser.peek()[1]!r}")
        if node.kind == "text" or _is_prose(node):
            return words(text)
        return node
    except ParseError:
        if _reads_as_text(tokens):
            return words(text)
        raise


def has_two_readings(answer: str) -> bool:
    """Whether commas in the answer may be thousands marks or separators (`1,234`)."""
    return "," in answer and COMMA_GROUPS.search(answer) is not None


_LONGEST_CHOICE = 400  # characters of what a choice letter stands for
_OPTION = re.compile(r"(?:\\text\w*\s*\{)?\s*(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s*\(?([A-J])\)?\s*\}?\.?")
_ABOUT = r"(?:approximately|approx\.?|about|around|roughly|nearly|almost|(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?)"
_REMARKS = re.compile(
    rf"^\s*(?:\\text\s*\{{\s*{_ABOUT}\s*\}}|{_ABOUT}(?=\s+\S))\s*|\s*\(\s*(?:approximately|approx\.?|about)\s*\)\s*$",
    re.IGNORECASE,
)
_DIGITS_IN_BASE = r"(?:\\(?:text|mathrm)\s*\{)?\(?((?=[A-F]*[0-9])[0-9A-F]+)\)?\}?"
_REWRITES = (
    (re.compile(rf"^{_DIGITS_IN_BASE}_\{{?\(?(\d+)\)?\}}?$", re.ASCII), r"{\\digits{\1}{\2}}"),
    (
        re.compile(rf"^{_DIGITS_IN_BASE}\s*(?:\\text\s*\{{)?\s*\(?(?:in\s+)?base[ ~-]+(\d+)\)?\s*\}}?$", re.ASCII),
        r"{\\digits{\1}{\2}}",
    ),
    (re.compile(r"^(\d+)\s*(?:\^?\s*\{?\s*(?:\\text\s*\{)?\s*)(?:st|nd|rd|th)\s*\}?\s*\}?$", re.ASCII), r"\1"),
    (re.compile(r"^(\d+)\s+to\s+(\d+)$", re.ASCII), r"\1:\2"),
)  # digits with their base, ordinals, spoken ratios
_NUMBER_AND_LETTER = re.compile(
    r"(-?[\d.]+(?:\s*\\times\s*10\^\{?-?\d+\}?)?)[ ~]+([msgLVWJNKhA])(\^\{?[23]\}?)?", re.ASCII
)
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf|textrm|textit|bf)\s*\{\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:]|([A-J])(?=\s*\}))"
    r"\s*\}?(?P<rest>.*)",
    re.DOTALL,
)


def _choice_with_text(text: str, max_depth: int) -> Node | None:
    """`(B)`, `B.`, `\\text{(B) } 12`: a choice letter with what it stands for, if that can be read."""
    option = _OPTION.fullmatch(text)
    if option is not None:
        return Node("choice", (), option[1])
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter = match[1] or match[2] or match[3]
    rest = match["rest"].strip(" ~:.,").removeprefix("\\").strip(" ~:.,;!") if match["rest"].strip(" ~\\:.,;}!") else ""
    if match["rest"][:1] in ("^", "_", "'", "=", "+", "-", "*", "/"):
        return None
    if not rest:
        return Node("choice", (), letter)
    if len(rest) > _LONGEST_CHOICE:
        return None
    if rest[0] in ",=+-*/^_<>" or rest.startswith(
        (r"\cup", r"\cap", r"\le", r"\ge", "and", "or", r"\text{ and", r"\text{,")
    ):
        return None
    if match[2] and ":" in text[:3] and len(rest) < 3 and rest[0].isupper():  # a ratio of segments, `A:B`
        return None
    if text.count("{") != text.count("}") or rest.count("{") != rest.count("}"):
        rest = rest.rstrip("}") if rest.count("}") > rest.count("{") else rest
    try:
        return Node("choice", (read(rest, max_depth=max_depth),), letter)
    except ParseError:
        return Node("choice", (words(rest),), letter)


def _is_prose(node: Node) -> bool:
    """Whether a tree came out of a sentence: text multiplied with something."""
    if node.kind in ("mul", "add", "div", "neg", "unit"):
        return any(part.kind == "text" for part in node.walk())
    return node.kind in ("list", "relation") and any(_is_prose(part) for part in node.args)


def _reads_as_text(tokens: list[Token]) -> bool:
    """Whether tokens that do not parse are words: at least one, and no mathematics around them."""
    if not any(kind == "word" for kind, _ in tokens):
        return False
    return all(
        kind in ("word", "number", "letter", "join") or (kind == "mark" and text in ".,:;-'()/?!\"&")
        for kind, text in tokens
    )


class Parser(Numerals):
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
            return side if operator == "=" else Node("relation", (symbol("_"), side), (operator,))
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
                factors = [Node("div", (_multiplied(factors), self.unary()))]
            elif kind == "word" and factors[-1].kind != "text":
                if text not in UNITS and all(factor.kind in ("symbol", "constant") for factor in factors):
                    raise ParseError("letters stand before words")
                factors = [self.with_unit(_multiplied(factors))]
            elif self._starts_factor():
                self._put_beside(factors)
            else:
                return _multiplied(factors)

    def _put_beside(self, factors: list[Node]) -> None:
        """A value written beside the last factor: a mixed number, a smaller unit (`5 ft 3 in`), or a factor."""
        left = factors[-1]
        if left.kind == "unit" and self.peek()[0] == "number" and self.peek(1)[0] == "word":
            factors[:] = [Node("add", (_multiplied(factors), self.with_unit(self.power())))]
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
            factors[:] = [Node("unit", (_multiplied(factors),), top.times(bottom, -1))]
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

    def _starts_factor(self) -> bool:
        kind, text = self.peek()
        if kind in ("number", "letter"):
            return not self._u_between_brackets()
        if kind == "mark":
            return text in "({[" or (text == "|" and not self.bars and not self.in_braces)
        if kind == "command":
            return text in _STARTERS or (text == "|" and not self.bars and not self.in_braces)
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
        if kind in ("number", "letter") or (kind == "command" and text in _STARTERS):
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
        self.in_braces, self.bars = in_braces, bars
        self.expect("mark", "}")
        return node

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

    def group(self, opening: str) -> Node:
        """What follows an opening `(`, `[` or `]`: a tuple, an interval, or one value in brackets."""
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

    def command(self, name: str) -> Node:
        handler = _COMMANDS.get(name)
        if handler is not None:
            return handler(self)
        if name in FUNCTIONS:
            return self.function(name)
        if name in _GREEK_OR_NAMED:
            return self._subscripted(name) if self.accept("mark", "_") else symbol(name)
        if name in _ACCENTS:
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

    def environment(self, name: str) -> Node:
        if name == "cases" or name not in _MATRICES:
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
        return matrix if _MATRICES[name] else Node("call", (matrix,), "det")

    def function(self, name: str) -> Node:
        base, exponent = None, None
        while self.peek() in (("mark", "_"), ("mark", "^")):
            mark = self.take()[1]
            if mark == "_":
                base = self.script()
            else:
                exponent = self.script()
        if name in ("max", "min", "gcd", "lcm"):
            argument = self.atom()
            return Node("call", argument.args if argument.kind in ("group", "set") else (argument,), name)
        bracketed = self.peek() in (("mark", "("), ("mark", "{"), ("mark", "["))
        argument = self.postfix(self.atom()) if bracketed else self.argument()
        if name == "lg":
            name, base = "log", number(10)
        arguments = (argument,) if base is None else (argument, base)
        if exponent is not None and exponent == Node("neg", (number(1),)) and name in _INVERSES:
            return Node("call", arguments, "arc" + name)
        node = Node("call", arguments, name)
        return node if exponent is None else Node("pow", (node, exponent))

    def argument(self) -> Node:
        """The argument of a function without brackets: factors up to a sign, a slash or another function."""
        if self.peek() in (("mark", "-"), ("mark", "+")):
            return self.unary()
        factors = [self.power()]
        while (
            self._starts_factor()
            and self.peek()[1] not in FUNCTIONS
            and self.peek() not in (("mark", "("), ("mark", "["))
        ):
            factors.append(self.power())
        return _multiplied(factors)

    def big(self, name: str) -> Node:
        lower = upper = None
        while self.peek() in (("mark", "_"), ("mark", "^")):
            if self.take()[1] == "_":
                lower = self.script()
            else:
                upper = self.script()
        body = self.product()
        if lower is not None and lower.kind == "relation" and lower.args[0].kind == "constant":  # i or e as the index
            index = lower.args[0]
            lower = Node("relation", (symbol(str(index.value)), *lower.args[1:]), lower.value)
            body = _with_index(body, index)
        parts = tuple(part for part in (body, lower, upper) if part is not None)
        return Node("big", parts, (name, lower is not None, upper is not None))

    def _unit_follows(self) -> bool:
        kind, text = self.peek(1)
        return kind == "word" or (kind == "letter" and text in SINGLE_LETTERS)

    def with_unit(self, value: Node) -> Node:
        """A value followed by words: `5 cm`, `20 miles per hour`, `45 square units`, `3 apples`."""
        unit, last, sign, power_of_next, any_word = NO_UNIT, NO_UNIT, 1, 1, False
        currency = value.value if value.kind == "unit" else NO_UNIT
        if value.kind == "unit":
            value = value.args[0]
        while True:
            kind, text = self.peek()
            if kind == "word" or (
                any_word and kind == "letter" and self.tokens[self.position - 1][1] in ("/", "per", "*")
            ):
                self.take()
                lowered = text.lower().rstrip(".")
                if lowered in MULTIPLIERS and not any_word:
                    value = Node("mul", (value, number(MULTIPLIERS[lowered])))
                    continue
                if lowered in ("per", "every", "each", "an", "a", "每"):
                    sign = -1 if lowered in ("per", "every") else sign
                    continue
                if lowered in POWERS:
                    exponent = POWERS[lowered]
                    if lowered.endswith("ed"):
                        unit = unit.times(last, sign * (exponent - 1))
                    else:
                        power_of_next = exponent
                    continue
                for chinese, exponent in (("平方", 2), ("立方", 3)):
                    if text.startswith(chinese):
                        text, power_of_next = text[2:], exponent
                last = word_unit(text)
                exponent = power_of_next
                if self.peek() == ("mark", "^"):
                    self.take()
                    script = self.script()
                    exponent = _small_integer(script)
                unit = unit.times(last, sign * exponent)
                power_of_next, any_word = 1, True
                if last == UNITS["percent"]:
                    value, unit = Node("percent", (value,)), NO_UNIT
            elif any_word and text == "/" and kind == "mark" and self.peek(1)[0] in ("word", "letter"):
                self.take()
                sign = -1
            elif any_word and text == "*" and kind == "mark" and self._unit_follows():
                self.take()
            else:
                break
        if currency not in (NO_UNIT, unit):
            unit = currency.times(unit)
        if unit == UNITS["degree"]:
            return Node("degree", (value,))
        return Node("unit", (value,), unit) if unit.dimensions else value


def _with_index(node: Node, index: Node) -> Node:
    """The node with a constant read as the variable of a sum."""
    if node == index:
        return symbol(str(index.value))
    return Node(node.kind, tuple(_with_index(arg, index) for arg in node.args), node.value, node.digits)


def _small_integer(node: Node) -> int:
    if node.kind == "neg":
        return -_small_integer(node.args[0])
    if node.kind != "number" or node.value.denominator != 1 or abs(node.value) > 12:
        raise ParseError("the power of a unit is no small integer")
    return int(node.value)


_INVERSES = frozenset(["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"])
_STARTERS = (
    FUNCTIONS
    | _GREEK_OR_NAMED
    | _ACCENTS
    | frozenset(
        names("frac sqrt cbrt pi infty binom { lfloor lceil langle sum prod int lim e i emptyset mathbb angle triangle")
    )
    | frozenset("begin " + name for name in _MATRICES)
)


_SIGNS = (("mark", "+"), ("mark", "-"), ("command", "pm"), ("command", "mp"))


def _multiplied(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))


def _unsigned(node: Node) -> Node:
    return node.args[0] if node.kind == "neg" else node


def _is_written_integer(node: Node) -> bool:
    return node.kind == "number" and node.digits is None and node.value.denominator == 1


def _is_plain_fraction(node: Node) -> bool:
    """A fraction of two written integers, as the second part of a mixed number."""
    return node.kind == "frac" and all(part.kind == "number" and part.value.denominator == 1 for part in node.args)


def _digits_in_base(parser: Parser) -> Node:
    """`\\digits{2A}{16}`, what `read` makes of a number written with its base."""
    parts = []
    for _ in range(2):
        parser.expect("mark", "{")
        parts.append("")
        while parser.peek()[0] in ("number", "letter", "word"):
            parts[-1] += parser.take()[1]
        parser.expect("mark", "}")
    return based(parts[0], int(parts[1]))


def _fraction(parser: Parser) -> Node:
    top = parser.fraction_argument()
    bottom = parser.fraction_argument()
    return Node("frac", (top, bottom))


def _root(parser: Parser) -> Node:
    degree = number(2)
    if parser.accept("mark", "["):
        degree = parser.answer()
        parser.expect("mark", "]")
    radicand = parser.atom() if parser.peek()[0] == "number" else parser.script()  # \\sqrt27 is meant as a whole
    return Node("root", (radicand, degree))


def _binomial(parser: Parser) -> Node:
    return Node("call", (parser.fraction_argument(), parser.fraction_argument()), "binom")


def _between(name: str, closing: str) -> "object":
    def parse(parser: Parser) -> Node:
        inner = parser.answer()
        parser.expect("command", closing)
        return Node("call", (inner,), name)

    return parse


def _angle_brackets(parser: Parser) -> Node:
    inner = parser.answer()
    parser.expect("command", "rangle")
    return Node("group", inner.args if inner.kind == "list" else (inner,), "()")


def _named_points(parser: Parser) -> Node:
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
    "{": Parser.set,
    "|": Parser.absolute,
    "langle": _angle_brackets,
    "lfloor": _between("floor", "rfloor"),
    "lceil": _between("ceil", "rceil"),
    "angle": _named_points,
    "triangle": _named_points,
    "R": lambda parser: Node("reals"),
}
