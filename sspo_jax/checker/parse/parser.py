r"""The grammar of answers: recursive descent over tokens, one method for each level, bounded in depth.

Precedence, loosest first; `[x]` may be missing, `x*` is any number of them (docs/checker.md has the whole grammar):

    answer      item joined by , and or \land \lor, each with its conditions: "for n > 0", (k \in \mathbb{Z})
    item        side [relation side]*            = < > \le \ge \ne \approx \in \equiv \to ...   [mod sum]
    union       ratio [\cup \cap \setminus ratio]*
    ratio       sum [: sum]*
    sum         product [+ - \pm \mp product]*
    product     unary [* / or nothing, power]* [unit]
    unary       [+ - \pm \mp $]* power
    power       atom postfix* [^ script postfix*]*
    postfix     ! % degree ' _base
    atom        number, letter, word, bracketed answer, |sum|, \frac, \sqrt, function, sum, set, matrix, cases

A unit stands only at the end of a whole value: never inside of a fraction, a root, an exponent or an argument.
"""

from collections.abc import Callable

from ..expression import Kind, Node, ParseError, constant, is_equation, name_set, names, negated, number, symbol
from .cursor import CLOSERS, END, RELATIONS, SIGNS, Cursor
from .environments import environment, lines
from .joining import is_condition_on, joined, related
from .notations import combinations, derivative, kind_of_numbers, repeating_decimal
from .numerals import based, written
from .quantity import quantity
from .tokens import Token
from .units import UNITS, Unit
from .vocabulary import (
    ACCENTS,
    CONDITION_WORDS,
    FUNCTIONS,
    GREEK_OR_NAMED,
    NAMED_OPERATORS,
    STARTERS,
)
from .words import words

_JOINERS_OF_SETS = {"cup": Kind.UNION, "U": Kind.UNION, "cap": Kind.INTERSECTION, "setminus": Kind.DIFFERENCE}
_KINDS_OF_SIGNS = {"-": Kind.NEG, "pm": Kind.PM, "mp": Kind.MP}
_CURRENCY = {"$": "dollar", "euro": "euro", "pounds": "gbp", "yen": "yuan"}
_MODULI = names("pmod bmod mod")
_INVERSES = name_set("sin cos tan cot sec csc sinh cosh tanh")
_INTEGERS, _NATURALS = symbol("mathbb Z"), symbol("mathbb N")
_KINDS_OF_NUMBERS = {
    "integer": _INTEGERS, "integers": _INTEGERS, "natural number": _NATURALS, "natural numbers": _NATURALS,
    "positive integer": _NATURALS, "positive integers": _NATURALS, "real": Node(Kind.REALS),
    "real number": Node(Kind.REALS), "real numbers": Node(Kind.REALS),
}  # fmt: skip


class Parser(Cursor):
    """Reads one list of tokens; `answer` is the start of the grammar. `units=False` reads unit symbols as variables."""

    def __init__(self, tokens: list[Token], max_depth: int, *, units: bool = True) -> None:
        super().__init__(tokens)
        self.depth = 0
        self.max_depth = max_depth
        self.units = units
        self.bars = 0  # open |absolute values|
        self.in_braces = 0  # inside of \{ before its bar
        self.inside = 0  # fractions, roots, exponents, arguments around the position, where no unit stands
        self.in_integral = False  # where `dx` ends the argument of a function
        self.symbolic = False  # whether the terms before the position hold variables
        self._after_condition = 0
        self.groups: dict[int, tuple[Node | ParseError, int]] = {}  # what brackets hold, and where they end, by start

    # Tokens

    def _nested(self, read: Callable[[], Node]) -> Node:
        """What `read` returns, one level deeper."""
        self.depth += 1
        if self.depth > self.max_depth:
            raise ParseError(f"groups nest deeper than {self.max_depth}")
        node = read()
        self.depth -= 1
        return node

    def _argument(self, read: Callable[[], Node]) -> Node:
        """What `read` returns, in a place where no unit stands."""
        self.inside += 1
        node = read()
        self.inside -= 1
        return node

    def enclosed(self, read: Callable[[], Node], in_braces: int = 0) -> Node:
        """What `read` returns between brackets of its own: bars and colons outside of them do not matter."""
        kept = self.in_braces, self.bars, self.symbolic
        self.in_braces, self.bars, self.symbolic = in_braces, 0, False
        node = read()
        self.in_braces, self.bars, self.symbolic = kept
        return node

    # Lists, conditions, relations

    def answer(self) -> Node:
        """A whole answer: items joined by commas, "and", "or", with the conditions that they hold under."""
        items, joiners, conditions = [self.item()], [], []
        while True:
            joiner = None
            while self.peek()[0] == "join":  # ", and"
                following = self.take()[1]
                joiner = following if joiner in (None, ",") else joiner
            if joiner is not None and (self.peek() == END or self.peek() in CLOSERS):
                break
            is_next_of_points = joiner is not None and items[-1].kind is Kind.GROUP and is_equation(items[-1].args[0])
            if self._starts_condition() and not is_next_of_points:  # (p = 2, q = 5), (p = 5, q = 2)
                conditions += self.conditions()
                if self.peek()[0] == "join":
                    conditions_end = self.position
                    self.take()
                    if self.peek() != END:
                        self.position = conditions_end
                        raise ParseError("an answer follows the conditions of another")
            elif joiner is not None:
                joiners.append(joiner)
                items.append(self.item())
            else:
                break
        while len(items) > 1 and joiners[-1] in (",", "and") and is_condition_on(items[-1], items[:-1]):
            conditions.insert(0, items.pop())
            joiners.pop()
        node = joined(items, joiners)
        return Node(Kind.CONDITIONED, (node, *conditions)) if conditions else node

    def _starts_condition(self) -> bool:
        kind, text = self.peek()
        if kind == "word":
            return text.lower() in CONDITION_WORDS
        return (kind, text) == ("mark", "(") and self._condition_in_brackets() is not None

    def _condition_in_brackets(self) -> Node | None:
        """The relation of `(k \\in \\mathbb{Z})`; the position stays before it."""
        start = self.position
        kept = self.symbolic, self.depth, self.inside, self.in_braces, self.bars
        self.position += 1
        try:
            while self.peek()[0] == "word" and self.peek()[1].lower() in CONDITION_WORDS:
                self.take()
            group = self.group("(")
        except ParseError:
            return None
        finally:
            after, self.position = self.position, start
            self.symbolic, self.depth, self.inside, self.in_braces, self.bars = kept
        if group.kind is Kind.GROUP and group.value == "()" and group.args[0].kind is Kind.RELATION:
            self._after_condition = after
            return group
        return None

    def conditions(self) -> list[Node]:
        """The conditions after `for`, `where`, `if` or in brackets."""
        found: list[Node] = []
        if self.peek() == ("mark", "("):
            group = self._condition_in_brackets()
            assert group is not None
            self.position = self._after_condition
            return list(group.args)
        while self.peek()[0] == "word" and self.peek()[1].lower() in CONDITION_WORDS:
            self.take()
        found.append(self._of_a_kind(self.item()))
        while self.peek()[0] == "join" and self.peek(1) != END and self.peek(1) not in CLOSERS:
            self.take()
            found.append(self.item())
        return found

    def _of_a_kind(self, subject: Node) -> Node:
        """`n \\in \\mathbb{Z}` where "is an integer" follows n; other subjects as they are."""
        if self.peek() not in (("word", "is"), ("word", "are")):
            return subject
        start, spoken = self.position, []
        while self.peek()[0] == "word":
            spoken.append(self.take()[1].lower())
        kind = _KINDS_OF_NUMBERS.get(
            " ".join(word for word in spoken[1:] if word not in ("a", "an", "any", "some", "all"))
        )
        if kind is None:
            self.position = start
            return subject
        return Node(Kind.RELATION, (subject, kind), ("in",))

    def item(self) -> Node:
        """A relation chain, or what stands on one side of it."""
        kind, text = self.peek()
        if (kind == "mark" and text in "=<>") or (kind == "command" and text in ("approx", "le", "ge", "ne", "=")):
            self.take()
            operator = RELATIONS[text]
            side = self.union()
            return side if operator in ("=", "~") else Node(Kind.RELATION, (symbol("_"), side), (operator,))
        sides, operators = [self.union()], []
        while True:
            kind, text = self.peek()
            if kind in ("mark", "command") and text in RELATIONS:
                self.take()
                operators.append(RELATIONS[text])
                self.symbolic = False
                sides.append(self.union())
            elif kind == "command" and text in _MODULI:
                self.take()
                chain = Node(Kind.RELATION, tuple(sides), tuple(operators)) if operators else sides[0]
                sides, operators = [Node(Kind.MODULO, (chain, self.sum()))], []
            else:
                return related(sides, operators)

    def union(self) -> Node:
        """Sets with \\cup, \\cap, \\setminus between them."""
        left = self.ratio()
        while (self.peek()[0] == "command" and self.peek()[1] in _JOINERS_OF_SETS) or self._u_between_brackets():
            left = Node(_JOINERS_OF_SETS[self.take()[1]], (left, self.ratio()))
        return left

    def _u_between_brackets(self) -> bool:
        return (
            self.peek() == ("letter", "U")
            and self.position > 0
            and self.tokens[self.position - 1] in (("mark", ")"), ("mark", "]"), ("command", "}"))
            and self.peek(1) in (("mark", "("), ("mark", "["), ("command", "{"))
        )

    def ratio(self) -> Node:
        """`1 : 2 : 3`."""
        parts = [self.sum()]
        while not self.in_braces and self.accept("mark", ":"):
            parts.append(self.sum())
        return Node(Kind.RATIO, tuple(parts)) if len(parts) > 1 else parts[0]

    # Arithmetic

    def sum(self) -> Node:
        """Terms with their signs; a unit after the last one is that of the sum."""
        outer, terms = self.symbolic, [self.product()]
        while True:
            kind, text = self.peek()
            if (kind, text) in SIGNS:
                self.take()
                self.symbolic = self.symbolic or terms[-1].has_symbol()
                term = self.product()
                terms.append(term if text == "+" else Node(_KINDS_OF_SIGNS[text], (term,)))
            elif kind == "number" and terms[-1].kind is Kind.UNIT:  # 5 ft 3 in
                terms.append(self.product())
                if terms[-1].kind is not Kind.UNIT:
                    raise ParseError("a number follows a unit")
            else:
                break
        self.symbolic = outer
        if len(terms) == 1:
            return terms[0]
        units = [_unit_of(term) for term in terms]
        if units[-1] is not None and not any(units[:-1]):
            return Node(Kind.UNIT, (Node(Kind.ADD, (*terms[:-1], _bare(terms[-1]))),), units[-1])
        if any(units) and not all(units):
            raise ParseError("some terms of a sum have a unit")
        return Node(Kind.ADD, tuple(terms))

    def product(self) -> Node:
        """Factors, written with a sign between them or not, and the unit of their product."""
        factors = [self.unary()]
        while True:
            if self.units and not self.inside:
                value = _multiplied(factors)
                found = quantity(self, value, lambda: self._argument(self.script), symbolic=self.symbolic)
                if found is not None:
                    return found
            if self.accept("mark", "*"):
                factors.append(self.unary())
            elif self.accept("mark", "/"):
                slope = self._derivative_with_slash(factors)
                factors = [slope or Node(Kind.DIV, (_multiplied(factors), self.unary()))]
            elif self.starts_factor():
                self._put_beside(factors)
            else:
                return _multiplied(factors)

    def _derivative_with_slash(self, factors: list[Node]) -> Node | None:
        """`dy/dx`, where the slash has been taken."""
        if len(factors) != 2 or factors[0] != symbol("d") or factors[1].kind is not Kind.SYMBOL:
            return None
        if self.peek()[1] != "d" or self.peek(1)[0] != "letter":
            return None
        self.take()
        return symbol(f"{factors[1].value}'|{self.take()[1]}")

    def _put_beside(self, factors: list[Node]) -> None:
        """A value written beside the last factor: the fraction of a mixed number, or a factor."""
        left = factors[-1]
        if self.peek()[0] == "number" and self.peek(1) == ("mark", "/") and self.peek(2)[0] == "number":
            if len(factors) > 1 or not _is_written_integer(_unsigned(left)):
                raise ParseError("two numbers stand side by side")
            top = self.power()
            self.take()
            right, is_written = Node(Kind.FRAC, (top, self.power())), False
        else:
            is_written = self.peek()[0] == "number"
            right = self.power()
        if is_written and right.kind is Kind.NUMBER and _unsigned(left).kind is Kind.NUMBER:
            raise ParseError("two numbers stand side by side")
        mark = right.kind if right.kind in (Kind.PERCENT, Kind.DEGREE) else None
        fraction = right.args[0] if mark else right
        if len(factors) == 1 and _is_written_integer(_unsigned(left)) and _is_plain_fraction(fraction):
            mixed = Node(Kind.ADD, (_unsigned(left), fraction))
            mixed = Node(mark, (mixed,)) if mark else mixed
            factors[0] = negated(mixed) if left.kind is Kind.NEG else mixed
        else:
            factors.append(right)

    def unary(self) -> Node:
        """A power with signs or a currency before it."""
        signs = []
        while self.peek() in SIGNS:
            signs.append(self.take()[1])
        kind, text = self.peek()
        if kind == "command" and text in _CURRENCY:
            unit = UNITS[_CURRENCY[self.take()[1]]]
            operand = Node(Kind.UNIT, (self.power(),), unit)
        elif self.accept("command", "neg"):
            operand = Node(Kind.CALL, (self.power(),), "opaque not")
        else:
            operand = self.power()
        if signs.count("-") % 2:
            operand = negated(operand)
        for sign in signs:
            if sign in ("pm", "mp"):
                operand = Node(Kind(sign), (operand,))
        return operand

    def starts_factor(self) -> bool:
        """Whether a value that multiplies the one before it comes next."""
        kind, text = self.peek()
        if kind in ("number", "letter", "run"):
            return not self._u_between_brackets()
        if kind == "mark":
            if text == "[" and (self.peek(1)[0] in ("end", "join") or self.peek(1)[1] in ("cup", "cap")):
                return False  # it closes an interval written `]0, 1[`
            if text == "(" and not self.inside and self._condition_in_brackets() is not None:
                return False
            return text in "({[" or (text == "|" and not self.bars and not self.in_braces)
        if kind == "command":
            return text in STARTERS or (text == "|" and not self.bars and not self.in_braces)
        if kind == "word":
            return len(text) == 1 or (self.tokens[self.position - 1][0] == "word" and text not in CONDITION_WORDS)
        return False

    def power(self) -> Node:
        """An atom with its exponents and postfix marks."""
        base = self.postfix(self.atom())
        while self.accept("mark", "^"):
            base = self.postfix(self._raise(base))
        return base

    def _raise(self, base: Node) -> Node:
        if self.accept("command", "circ") or self.accept("command", "degree"):
            return self._degree(base)
        if self.peek() == ("mark", "{") and self.peek(1)[1] in ("circ", "degree") and self.peek(2) == ("mark", "}"):
            self.position += 3
            return self._degree(base)
        is_braced = self.peek(1) == ("command", "prime") and self.accept("mark", "{")
        primes = 0
        while (is_braced or not primes) and self.accept("command", "prime"):
            primes += 1
        if is_braced:
            self.expect("mark", "}")
        if primes:
            return self._primed(base, primes)
        exponent = self._argument(self.script)
        if self.accept("mark", "!"):
            exponent = Node(Kind.FACTORIAL, (exponent,))
        if self.accept("mark", "^"):
            exponent = Node(Kind.POW, (exponent, self._argument(self.script)))
        return Node(Kind.POW, (base, exponent))

    def _degree(self, base: Node) -> Node:
        if self.peek()[0] in ("letter", "word", "run") and self.peek()[1] in ("C", "F"):
            return Node(Kind.UNIT, (base,), UNITS["celsius" if self.take()[1] == "C" else "fahrenheit"])
        node = Node(Kind.DEGREE, (base,))
        if self.peek()[0] == "number" and (self.peek(1) == ("mark", "'")):
            minutes = self.atom()
            self.take()
            return Node(Kind.ADD, (node, Node(Kind.DEGREE, (Node(Kind.DIV, (minutes, number(60))),))))
        return node

    def _primed(self, base: Node, primes: int) -> Node:
        if base.kind is Kind.NUMBER and primes <= 2:  # minutes and seconds of arc
            return Node(Kind.UNIT, (base,), UNITS["arcmin" if primes == 1 else "arcsec"])
        if base.kind is not Kind.SYMBOL:
            raise ParseError("a prime follows something that is no name")
        return symbol(str(base.value) + "'" * primes)

    def postfix(self, base: Node) -> Node:
        """The base with the marks that follow it."""
        while True:
            kind, text = self.peek()
            if self.accept("mark", "!"):
                if self.peek() == ("mark", "!"):
                    raise ParseError("double factorials are not read")
                base = Node(Kind.FACTORIAL, (base,))
            elif self.accept("mark", "%") or self.accept("command", "%"):
                base = Node(Kind.PERCENT, (base,))
            elif kind == "command" and text in _CURRENCY and base.kind is Kind.NUMBER:
                base = Node(Kind.UNIT, (base,), UNITS[_CURRENCY[self.take()[1]]])
            elif self.accept("command", "degree"):
                base = self._degree(base)
            elif (kind, text) == ("mark", "_") and _is_written_integer(base):
                base = self._in_base(str(base.value))
            elif base.kind is Kind.SYMBOL and self.accept("mark", "'"):
                base = self._primed(base, 1)
            else:
                return base

    # Numbers

    def _number(self, text: str) -> Node:
        if self.peek() == ("mark", "_"):
            return self._in_base(text)
        if "." in text and "e" not in text.lower():
            found = repeating_decimal(self, text)
            if found is not None:
                return found
        return written(text)

    def _in_base(self, digits: str) -> Node:
        self.expect("mark", "_")
        base = self._argument(self.script)
        if base.kind is Kind.TEXT:
            base = words(str(base.value))  # 101_{two}
        if base.kind is not Kind.NUMBER or base.value.denominator != 1:
            return Node(Kind.CALL, (Node(Kind.TEXT, (), digits), base), "subscripted")
        return based(digits, int(base.value))

    # Functions, sums, integrals

    def function(self, name: str) -> Node:
        """A function with its base, exponent and argument."""
        base, exponent = self._scripts()
        if name in ("max", "min", "gcd", "lcm"):
            argument = self._argument(self.atom)
            several = argument.kind in (Kind.GROUP, Kind.SET)
            return Node(Kind.CALL, argument.args if several else (argument,), name)
        bracketed = self.peek() in (("mark", "("), ("mark", "{"), ("mark", "["))
        argument = self._argument((lambda: self.postfix(self.atom())) if bracketed else self._factors_of_argument)
        if name in NAMED_OPERATORS:
            return Node(Kind.CALL, (argument,), f"opaque {name}")
        if name == "lg":
            name, base = "log", number(10)
        arguments = (argument,) if base is None else (argument, base)
        if exponent is not None and exponent == negated(number(1)) and name in _INVERSES:
            return Node(Kind.CALL, arguments, "arc" + name)
        node = Node(Kind.CALL, arguments, name)
        return node if exponent is None else Node(Kind.POW, (node, exponent))

    def _scripts(self) -> tuple[Node | None, Node | None]:
        """What stands below and above a function or sum, in either order."""
        found: dict[str, Node] = {}
        while self.peek() in (("mark", "_"), ("mark", "^")):
            mark = self.take()[1]
            found[mark] = self._argument(self.script)
        return found.get("_"), found.get("^")

    def _factors_of_argument(self) -> Node:
        """The argument of a function without brackets: factors up to a sign, a slash or another function."""
        if self.peek() in (("mark", "-"), ("mark", "+")):
            return self.unary()
        factors = [self.power()]
        while (
            self.starts_factor()
            and self.peek()[1] not in FUNCTIONS
            and self.peek() not in (("mark", "("), ("mark", "["))
            and not (self.in_integral and self.peek() == ("letter", "d") and self.peek(1)[0] == "letter")
        ):
            factors.append(self.power())
        return _multiplied(factors)

    def _big(self, name: str) -> Node:
        """A sum, product, integral or limit with its bounds and body."""
        lower, upper = self._scripts()
        outer, self.in_integral = self.in_integral, name == "int"
        body = self._argument(self.product)
        self.in_integral = outer
        index = lower.args[0] if lower is not None and lower.kind is Kind.RELATION else None
        if lower is not None and index is not None and index.kind is Kind.CONSTANT:  # i, e as the index
            lower = lower.with_args((symbol(str(index.value)), *lower.args[1:]))
            body = _with_index(body, index)
        parts = tuple(part for part in (body, lower, upper) if part is not None)
        return Node(Kind.BIG, parts, (name, lower is not None, upper is not None))

    # Brackets

    def script(self) -> Node:
        """What `^` or `\\frac` applies to: a group, a command with its arguments, or one number or letter."""
        kind, text = self.peek()
        if kind == "mark" and text == "{":
            return self.braced()
        if kind == "mark" and text in "+-":
            self.take()
            operand = self._nested(self.script)
            return operand if text == "+" else negated(operand)
        if kind in ("number", "letter", "run") or (kind, text) == ("mark", "("):
            return self.atom()
        if (kind == "command" and text in STARTERS) or (kind == "word" and len(text) == 1):
            return self.atom()
        raise ParseError(f"expected an exponent or argument, found {text or 'the end'!r}")

    def _fraction_argument(self) -> Node:
        """An argument of `\\frac` or `\\binom`: a group, or the one digit or letter TeX would take."""
        kind, text = self.peek()
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                raise ParseError(f"\\frac or \\binom is followed by {text} without braces")
            self.tokens[self.position] = ("number", text[1:])
            return number(int(text[0]))
        return self._argument(self.script)

    def braced(self) -> Node:
        """`{...}`, with `\\choose` or `\\over` inside."""
        self.expect("mark", "{")
        node = self.enclosed(self._in_braces)
        self.expect("mark", "}")
        return node

    def _in_braces(self) -> Node:
        node = self.answer()
        if self.accept("command", "choose"):
            return Node(Kind.CALL, (node, self.answer()), "binom")
        return Node(Kind.FRAC, (node, self.answer())) if self.accept("command", "over") else node

    def group(self, opening: str) -> Node:
        """What follows an opening `(`, `[` or `]`: a tuple, an interval, or one value in brackets.

        It is kept for when the same brackets are read again: `r(...)` is tried as a call or a condition before it is a
        product, and without this the time would double with each pair of brackets in one another.
        """
        start = self.position
        if start not in self.groups:
            try:
                self.groups[start] = (self._group(opening), self.position)
            except ParseError as error:
                self.groups[start] = (error, start)
        node, self.position = self.groups[start]
        if isinstance(node, ParseError):
            raise node
        return node

    def _group(self, opening: str) -> Node:
        inner = self.enclosed(self.answer)
        kind, closing = self.take()
        if kind != "mark" or closing not in ")][":
            raise ParseError(f"a bracket {opening} is closed by {closing or 'the end'!r}")
        items = inner.args if inner.kind is Kind.LIST else (inner,)
        if len(items) == 1:
            if (opening, closing) in (("(", ")"), ("[", "]")):
                return inner if inner.kind is not Kind.RELATION else Node(Kind.GROUP, (inner,), "()")
            raise ParseError(f"one value stands between {opening} and {closing}")
        if opening == "]" or closing == "[":
            opening, closing = {"]": "("}.get(opening, opening), {"[": ")"}.get(closing, closing)
        return Node(Kind.GROUP, tuple(items), opening + closing)

    def absolute(self) -> Node:
        """What follows an opening bar."""
        self.bars += 1
        inner = self._argument(self.union)
        self.bars -= 1
        kind, text = self.take()
        if text != "|" or kind == "end":
            raise ParseError("an absolute value does not close")
        return Node(Kind.CALL, (inner,), "det" if inner.kind is Kind.MATRIX else "abs")

    def set(self) -> Node:
        """What follows `\\{`: a set, a set builder `x | condition`, or lines that a left brace holds together."""
        if self.accept("command", "}"):
            return Node(Kind.EMPTYSET)
        kind, text = self.peek()
        if kind == "command" and text in ("begin array", "begin aligned", "begin matrix", "begin gathered"):
            self.take()
            node = lines(self, text.removeprefix("begin "))
            self.accept("command", "}")
            return node
        inner = self.enclosed(self.answer, in_braces=1)
        if self.peek() in (("mark", "|"), ("command", "|"), ("mark", ":")):
            self.take()
            condition = self.enclosed(self.answer)
            self.expect("command", "}")
            return Node(Kind.BUILDER, (inner, condition))
        self.expect("command", "}")
        return Node(Kind.SET, inner.args if inner.kind is Kind.LIST else (inner,))

    # Atoms

    def atom(self) -> Node:
        """One value: a number, a name, a group, a command with its arguments."""
        return self._nested(self._atom)

    def _atom(self) -> Node:
        kind, text = self.peek()
        if kind == "run":  # no unit here: a product of letters
            self.tokens[self.position : self.position + 1] = [("letter", letter) for letter in text]
        kind, text = self.take()
        if kind == "number":
            return self._number(text)
        if kind == "letter" or (kind == "word" and len(text) == 1 and self.peek()[0] != "word"):
            return self.letter(text)
        if kind == "word":
            return self._subscripted(text) if self.accept("mark", "_") else self._text(text)
        if kind == "mark" and text in "([]":
            return self.group(text)
        if kind == "mark" and text == "{":
            self.position -= 1
            return self.braced()
        if kind == "mark" and text == "|":
            return self.absolute()
        if kind == "command":
            return self.command(text)
        raise ParseError(f"expected a value, found {text or 'the end'!r}")

    def letter(self, text: str) -> Node:
        """A variable, a constant, or a call such as `f(x)`."""
        if self.peek() == ("mark", "_"):
            return combinations(self, text) or (self.accept("mark", "_") and self._subscripted(text)) or symbol(text)
        if text in "ei" and len(text) == 1:
            return constant(text)
        is_call = text == "f" or self.units or self.tokens[self.position - 2][0] != "letter"  # mg(a + b) is ambiguous
        if text in "fg" and is_call and self.peek() == ("mark", "("):
            self.take()
            arguments = self.group("(")
            return Node(Kind.CALL, arguments.args if arguments.kind is Kind.GROUP else (arguments,), "opaque " + text)
        return self._called(symbol(text), text)

    def _called(self, node: Node, name: str) -> Node:
        """The name with arguments after it, where these cannot be a factor."""
        start = self.position
        if self.accept("mark", "("):
            group = self.group("(")
            if group == number(0):  # no product, I(0) is a value of I
                return Node(Kind.CALL, (group,), "opaque " + name)
            if group.kind is Kind.GROUP and group.value == "()":
                is_binomial = name == "C" and len(group.args) == 2 and not _is_point(group.args)
                is_condition = group.args[0].kind is Kind.RELATION and not name[-1].isupper()
                if not is_condition:
                    return Node(Kind.CALL, group.args, "binom" if is_binomial else "opaque " + name)
            self.position = start
        return node

    def _subscripted(self, name: str) -> Node:
        subscript = self.raw_group() if self.peek() == ("mark", "{") else None
        if subscript is None:
            kind, subscript = self.take()
            if kind == "end":
                raise ParseError("a subscript is missing")
            if kind == "run":
                self.tokens[self.position : self.position] = [("letter", letter) for letter in subscript[1:]]
                subscript = subscript[0]
        return symbol(f"{name}_{subscript.strip()}")

    def _text(self, first: str) -> Node:
        parts = [first]
        while self.peek()[0] == "word" or (self.peek()[0] == "letter" and self.peek(1)[0] in ("word", "end", "join")):
            if self.peek()[1].lower() in CONDITION_WORDS and parts:
                break
            parts.append(self.take()[1])
        return words(" ".join(parts), whole=False)

    def command(self, name: str) -> Node:
        """What a command stands for, its arguments read."""
        handler = _COMMANDS.get(name)
        if handler is not None:
            return handler(self)
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK_OR_NAMED:
            return self._subscripted(name) if self.accept("mark", "_") else self._called(symbol(name), name)
        if name in ACCENTS:
            return self._accented(name)
        if name.startswith("begin "):
            return environment(self, name[6:])
        if name.startswith("unit "):
            return symbol(name)
        if name in ("sum", "prod", "int", "lim"):
            return self._big(name)
        raise ParseError(f"\\{name} is no command this grammar knows")

    def _accented(self, name: str) -> Node:
        inner = self.raw_group(or_token=True)
        if name == "mathbb" and inner == "R":
            return Node(Kind.REALS)
        if name in ("hat", "vec", "widehat") and inner in ("i", "j", "k", "imath", "jmath"):
            return symbol(f"unit {inner[0]}")
        if name in ("dot", "ddot"):
            base = self._subscripted(inner).value if self.accept("mark", "_") else inner
            return symbol(base + "'" * (1 if name == "dot" else 2))
        if name == "mathbb" and self.peek()[1] in ("^", "_"):
            inner += kind_of_numbers(self)
        if name in ("mathcal", "mathbb"):
            return self._called(symbol(f"{name} {inner}"), f"{name} {inner}")
        full = f"{name.removeprefix('wide').removeprefix('over').removeprefix('left').removeprefix('right')} {inner}"
        return self._subscripted(full) if self.accept("mark", "_") else symbol(full)


def _is_point(arguments: tuple[Node, ...]) -> bool:
    """Whether numbers after a capital C are coordinates: one is negative or broken, or the second one is larger."""
    if any(arg.kind is not Kind.NUMBER for arg in arguments):
        return any(arg.kind in (Kind.NEG, Kind.FRAC, Kind.ROOT) for arg in arguments)
    return arguments[1].value > arguments[0].value or any(arg.value.denominator != 1 for arg in arguments)


def _multiplied(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node(Kind.MUL, tuple(factors))


def _with_index(node: Node, index: Node) -> Node:
    """The node with a constant read as the variable of a sum."""
    if node == index:
        return symbol(str(index.value))
    return node.with_args(tuple(_with_index(arg, index) for arg in node.args))


def _unsigned(node: Node) -> Node:
    return node.args[0] if node.kind is Kind.NEG else node


def _unit_of(term: Node) -> Unit | None:
    inner = _unsigned(term)
    return inner.value if inner.kind is Kind.UNIT else None


def _bare(term: Node) -> Node:
    """A term without its unit."""
    return negated(term.args[0].args[0]) if term.kind is Kind.NEG else term.args[0]


def _is_written_integer(node: Node) -> bool:
    return node.kind is Kind.NUMBER and node.digits is None and node.value.denominator == 1


def _is_plain_fraction(node: Node) -> bool:
    """A fraction of two written integers, as the second part of a mixed number."""
    return node.kind is Kind.FRAC and all(p.kind is Kind.NUMBER and p.value.denominator == 1 for p in node.args)


def _digits_in_base(parser: Parser) -> Node:
    """`\\digits{2A}{16}`, what `read` makes of a number written with its base."""
    digits, base = (parser.raw_group() for _ in range(2))
    return based(digits or "", int(base or 0))


def _fraction(parser: Parser) -> Node:
    return derivative(parser) or Node(Kind.FRAC, (parser._fraction_argument(), parser._fraction_argument()))


def _root(parser: Parser) -> Node:
    degree = number(2)
    if parser.accept("mark", "["):
        degree = parser._argument(parser.answer)
        parser.expect("mark", "]")
    is_number = parser.peek()[0] == "number"  # \\sqrt27 is meant as a whole
    return Node(Kind.ROOT, (parser._argument(parser.atom if is_number else parser.script), degree))


def _binomial(parser: Parser) -> Node:
    return Node(Kind.CALL, (parser._fraction_argument(), parser._fraction_argument()), "binom")


def _between(name: str, closing: str) -> Callable[[Parser], Node]:
    def parse(parser: Parser) -> Node:
        inner = parser._argument(lambda: parser.enclosed(parser.answer))
        parser.expect("command", closing)
        return Node(Kind.CALL, (inner,), name)

    return parse


def _angle_brackets(parser: Parser) -> Node:
    inner = parser.answer()
    parser.expect("command", "rangle")
    return Node(Kind.GROUP, inner.args if inner.kind is Kind.LIST else (inner,), "()")


def _named_points(parser: Parser) -> Node:
    """`\\angle ABC`, `\\triangle ABC`: the letters are one name."""
    letters = ""
    while parser.peek()[0] == "letter":
        letters += parser.take()[1]
        if parser.accept("mark", "_"):
            letters += "_" + str(parser.script().value)
    return symbol("figure " + letters)


_COMMANDS: dict[str, Callable[[Parser], Node]] = {
    "frac": _fraction,
    "sqrt": _root,
    "cbrt": lambda parser: Node(Kind.ROOT, (parser._fraction_argument(), number(3))),
    "binom": _binomial,
    "digits": _digits_in_base,
    "pi": lambda parser: constant("pi"),
    "e": lambda parser: constant("e"),
    "i": lambda parser: constant("i"),
    "infty": lambda parser: constant("inf"),
    "emptyset": lambda parser: Node(Kind.EMPTYSET),
    "{": Parser.set,
    "|": Parser.absolute,
    "langle": _angle_brackets,
    "lfloor": _between("floor", "rfloor"),
    "lceil": _between("ceil", "rceil"),
    "angle": _named_points,
    "triangle": _named_points,
    "R": lambda parser: Node(Kind.REALS),
}
