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

from ..expression import Kind, Node, ParseError, constant, names, negated, number, symbol
from .numerals import based, repeating, written
from .tokens import Token
from .units import (
    COUNTED_IN,
    FILLERS,
    LETTERS,
    MULTIPLIERS,
    NO_UNIT,
    PER,
    POWERS,
    UNITS,
    Unit,
    counted_noun,
    is_describing,
    known_unit,
)
from .vocabulary import (
    ACCENTS,
    CONDITION_WORDS,
    FUNCTIONS,
    GREEK_OR_NAMED,
    MATRICES,
    NAMED_OPERATORS,
    STARTERS,
    SYSTEMS,
)
from .words import spoken_number, words

END: Token = ("end", "")
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "approx": "~", "in": "in", "equiv": "=",
    "sim": "=", "doteq": "=", "notin": "notin", "subset": "subset", "subseteq": "subset", "Rightarrow": "=>",
    "iff": "iff", "parallel": "parallel", "perp": "perp", "cong": "cong", "to": "to", "mapsto": "to",
}  # fmt: skip
_JOINERS_OF_SETS = {"cup": Kind.UNION, "U": Kind.UNION, "cap": Kind.INTERSECTION, "setminus": Kind.DIFFERENCE}
_CLOSERS = frozenset([("mark", ")"), ("mark", "]"), ("mark", "}"), ("command", "}"), ("command", "rangle"),
                      ("command", "rfloor"), ("command", "rceil"), ("mark", "&"), ("command", "newline")])  # fmt: skip
_CURRENCY = {"$": "dollar", "euro": "euro", "pounds": "gbp", "yen": "yuan"}
_SIGNS = (("mark", "+"), ("mark", "-"), ("command", "pm"), ("command", "mp"))
_MODULI = names("pmod bmod mod")
_INVERSES = frozenset(names("sin cos tan cot sec csc sinh cosh tanh"))
_NEW_LINE: Token = ("command", "newline")
_ALIGNED: frozenset[Token] = frozenset(
    [("mark", "="), ("mark", "<"), ("mark", ">"), *(("command", name) for name in ("=", "le", "ge", "approx", "ne"))]
)
_CONDITIONS = frozenset(["in", "notin", "<", "<=", ">", ">=", "!=", "=", "~", "subset"])
_NO_CONDITION = CONDITION_WORDS | {"is", "are"}
_MOST_POWER_OF_UNIT = 12
_INTEGERS, _NATURALS = symbol("mathbb Z"), symbol("mathbb N")
_KINDS_OF_NUMBERS = {
    "integer": _INTEGERS, "integers": _INTEGERS, "natural number": _NATURALS, "natural numbers": _NATURALS,
    "positive integer": _NATURALS, "positive integers": _NATURALS, "real": Node(Kind.REALS),
    "real number": Node(Kind.REALS), "real numbers": Node(Kind.REALS),
}  # fmt: skip


class Parser:
    """Reads one list of tokens; `answer` is the start of the grammar. `units=False` reads unit symbols as variables."""

    def __init__(self, tokens: list[Token], max_depth: int, *, units: bool = True) -> None:
        self.tokens = list(tokens)
        self.position = 0
        self.depth = 0
        self.max_depth = max_depth
        self.units = units
        self.bars = 0  # open |absolute values|
        self.in_braces = 0  # inside of \{ before its bar
        self.inside = 0  # fractions, roots, exponents, arguments around the position, where no unit stands
        self.in_integral = False  # where `dx` ends the argument of a function
        self.symbolic = False  # whether the terms before the position hold variables
        self._after_condition = 0
        self.groups: dict[
            int, tuple[Node | ParseError, int]
        ] = {}  # what brackets hold and where they end, by their start

    # Tokens

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
        if self.peek() == (kind, text):
            self.position += 1
            return True
        return False

    def expect(self, kind: str, text: str) -> None:
        """Take this token; ParseError where another one comes."""
        if not self.accept(kind, text):
            raise ParseError(f"expected {text!r}, found {self.peek()[1] or 'the end'!r}")

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

    def _enclosed(self, read: Callable[[], Node], in_braces: int = 0) -> Node:
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
            if joiner is not None and (self.peek() == END or self.peek() in _CLOSERS):
                break
            if self._starts_condition():
                conditions += self._conditions()
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
        while len(items) > 1 and joiners[-1] in (",", "and") and _is_condition_on(items[-1], items[:-1]):
            conditions.insert(0, items.pop())
            joiners.pop()
        node = _joined(items, joiners)
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

    def _conditions(self) -> list[Node]:
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
        while self.peek()[0] == "join" and self.peek(1) != END and self.peek(1) not in _CLOSERS:
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
            operator = _RELATIONS[text]
            side = self.union()
            return side if operator in ("=", "~") else Node(Kind.RELATION, (symbol("_"), side), (operator,))
        sides, operators = [self.union()], []
        while True:
            kind, text = self.peek()
            if kind in ("mark", "command") and text in _RELATIONS:
                self.take()
                operators.append(_RELATIONS[text])
                self.symbolic = False
                sides.append(self.union())
            elif kind == "command" and text in _MODULI:
                self.take()
                chain = Node(Kind.RELATION, tuple(sides), tuple(operators)) if operators else sides[0]
                sides, operators = [Node(Kind.MODULO, (chain, self.sum()))], []
            else:
                return _related(sides, operators)

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
            if kind not in ("mark", "command", "number"):
                break
            self.symbolic = self.symbolic or (text in ("+", "-", "pm", "mp") and _has_symbol(terms[-1]))
            if kind == "mark" and text == "+":
                self.take()
                terms.append(self.product())
            elif kind == "mark" and text == "-":
                self.take()
                terms.append(negated(self.product()))
            elif kind == "command" and text in ("pm", "mp"):
                self.take()
                terms.append(Node(Kind(text), (self.product(),)))
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
            kind, text = self.peek()
            if self.units and not self.inside and (quantity := self._with_unit(_multiplied(factors))) is not None:
                return quantity
            if kind == "mark" and text == "*":
                self.take()
                factors.append(self.unary())
            elif kind == "mark" and text == "/":
                self.take()
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
        while self.peek() in _SIGNS:
            signs.append(self.take()[1])
        kind, text = self.peek()
        if kind == "command" and text in _CURRENCY:
            self.take()
            operand = Node(Kind.UNIT, (self.power(),), UNITS[_CURRENCY[text]])
        elif kind == "command" and text == "neg":
            self.take()
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
        exponent = self._argument(self.script)
        if self.accept("mark", "!"):
            exponent = Node(Kind.FACTORIAL, (exponent,))
        if self.peek() == ("mark", "^"):
            self.take()
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
            if kind == "mark" and text == "!":
                self.take()
                if self.peek() == ("mark", "!"):
                    raise ParseError("double factorials are not read")
                base = Node(Kind.FACTORIAL, (base,))
            elif text == "%" and kind in ("mark", "command"):
                self.take()
                base = Node(Kind.PERCENT, (base,))
            elif kind == "command" and text in _CURRENCY and base.kind is Kind.NUMBER:
                self.take()
                base = Node(Kind.UNIT, (base,), UNITS[_CURRENCY[text]])
            elif kind == "command" and text == "degree":
                self.take()
                base = self._degree(base)
            elif kind == "mark" and text == "_" and _is_written_integer(base):
                base = self._in_base(str(base.value))
            elif kind == "mark" and text == "'" and base.kind is Kind.SYMBOL:
                self.take()
                base = self._primed(base, 1)
            else:
                return base

    # Units

    def _with_unit(self, value: Node) -> Node | None:
        """The value with the unit that follows it up to the end of the item; None where that is no unit."""
        kind, text = self.peek()
        if (kind, text) in (("mark", "/"), ("mark", "*")) and self.peek(1)[0] not in ("word", "run", "mark"):
            return None
        if kind not in ("word", "run") and not (kind == "mark" and text in "/*(") and text not in _UNIT_COMMANDS:
            return None
        start, known = self.position, value.value if value.kind is Kind.UNIT else NO_UNIT
        amount = value.args[0] if value.kind is Kind.UNIT else value
        if kind == "word" and text.lower() in MULTIPLIERS:
            self.take()
            amount = Node(Kind.MUL, (amount, number(MULTIPLIERS[text.lower()])))
            if self._ends_unit():
                return Node(Kind.UNIT, (amount,), known) if known != NO_UNIT else amount
        elif (kind, text) == ("mark", "(") and self.peek(1)[0] == "word":
            in_brackets = self._remark_in_brackets(value)
            if in_brackets is None:
                self.position = start
            return in_brackets
        is_letter = self.position == start and len(text) == 1 and text.isascii()
        unit = self._unit(has_head=value.kind is Kind.PERCENT)
        if unit is not None and self.peek() == ("mark", "("):  # 9 pairs (x, y)
            self._skip_names()
        is_variable = is_letter and self.position - start == 1 and (self.symbolic or _has_symbol(amount))
        if unit is None or not self._ends_unit() or is_variable:
            self.position = start
            return None
        unit = known.times(unit) if known not in (NO_UNIT, unit) else unit
        if unit.dimensions == UNITS["percent"].dimensions:
            return Node(Kind.PERCENT, (amount,))
        if unit == UNITS["degree"]:
            return Node(Kind.DEGREE, (amount,))
        return Node(Kind.UNIT, (amount,), unit) if unit.dimensions else amount

    def _ends_unit(self) -> bool:
        kind, text = self.peek()
        if kind in ("end", "join", "number") or (kind, text) in _CLOSERS or (kind, text) in _SIGNS:
            return True
        if kind == "word":
            return text.lower() in CONDITION_WORDS
        return (kind in ("mark", "command") and text in _RELATIONS) or (kind, text) == ("mark", ":")

    def _remark_in_brackets(self, value: Node) -> Node | None:
        """The value of `7 (seven)` or `12 (ways)`: what stands in brackets repeats it, or is its unit."""
        self.take()
        spoken = []
        start = self.position
        while self.peek()[0] == "word":
            spoken.append(self.take()[1])
        is_whole = self.accept("mark", ")") and self._ends_unit() and value.kind is Kind.NUMBER
        if is_whole and spoken_number(" ".join(spoken).lower()) == value.value:
            return value
        self.position = start
        unit = self._unit()
        if unit is None or not self.accept("mark", ")") or not self._ends_unit() or value.kind is Kind.UNIT:
            return None
        return Node(Kind.UNIT, (value,), unit) if unit.dimensions else value

    def _skip_names(self) -> None:
        start = self.position
        self.take()
        while self.peek()[0] in ("letter", "join") or self.peek() == ("mark", "_"):
            self.take()
        if not self.accept("mark", ")"):
            self.position = start

    def _unit(self, *, has_head: bool = False) -> Unit | None:
        """Unit names and symbols with their powers, joined by "per", slashes, dots; or a counted noun; else None.

        A phrase needs a head: a unit, a plural, or one of the words that say what is counted. Words such as "is" and
        "less", numbers in words, "squared" without a unit make it no unit.
        """
        unit, last, sign, power = NO_UNIT, None, 1, 1
        start = self.position
        while True:
            if self.position - start > _LONGEST_UNIT:
                return None
            kind, text = self.peek()
            if kind == "mark" and text in "/*" and self._unit_follows():
                self.take()
                sign = -1 if text == "/" else sign
                if self.accept("mark", "("):
                    inner = self._unit()
                    if inner is None or not self.accept("mark", ")"):
                        return None
                    unit, has_head = unit.times(inner, sign), True
                continue
            if (kind, text) == ("join", "and") and has_head and counted_noun(self.peek(1)[1]) is not None:
                self.take()  # 7 apples and oranges
                continue
            if (kind, text.lower()) == ("word", "to") and self.peek(1) == ("word", "the"):
                self.position += 2  # 5 m to the right
                continue
            if (kind, text.lower()) == ("word", "to") and self.peek(-1)[1].lower() in ("way", "ways"):
                while self.peek()[0] == "word":  # 7 ways to choose them
                    self.take()
                continue
            if kind == "command" and text == "frac" and self.peek(2)[0] in ("word", "run"):
                fraction = self._unit_fraction()
                if fraction is None:
                    return None
                unit, has_head = unit.times(fraction, sign), True
                continue
            is_beside = last is not None and self.tokens[self.position - 1][1] in ("/", "*")
            if kind == "command" and text in _UNIT_COMMANDS and (self.peek(1)[0] == "word" or text in ("Omega", "AA")):
                self.take()
                text = {"Omega": "ohm", "AA": "angstrom"}.get(text) or "u" + self.take()[1]
            elif (
                kind in ("word", "run")
                or (kind == "letter" and (is_beside or (sign == -1 and self.peek(-1)[1] == "/")))
                or (kind == "command" and text in ("min", "rad", "deg") and self.peek(-1)[1] == "/")
            ):
                self.take()
            else:
                break
            if text in _OHM_PREFIXES and self.accept("command", "Omega"):
                text += "ohm"
            lowered = text.lower().rstrip(".")
            for prefix in ("平方", "立方"):
                if text.startswith(prefix) and len(text) > 2:
                    text, power = text[2:], POWERS[prefix]
            if lowered in POWERS:
                if not lowered.endswith("ed"):
                    power = POWERS[lowered]
                elif last is None:
                    return None
                else:
                    unit = unit.times(last, sign * (POWERS[lowered] - 1))
                continue
            if lowered in PER:
                sign, last = -1, NO_UNIT
                if lowered == "per" and self.peek() == ("word", "cent"):
                    self.take()
                    unit, sign, has_head = unit.times(UNITS["percent"]), 1, True
                continue
            if lowered in COUNTED_IN:
                has_head, last, power = True, NO_UNIT, 1
                if self.accept("mark", "^"):
                    self._argument(self.script)
                continue
            if lowered in ("a", "an") and has_head:
                sign = -1
                continue
            is_inch = lowered == "in" and last is None and (self._ends_unit() or self.peek()[1] in ("^", "/", "*"))
            if lowered in FILLERS and not is_inch:
                has_head = has_head or lowered == "of"
                continue
            last = known_unit(text) or counted_noun(text)
            if last is None or (len(text) == 1 and text.isascii() and text not in LETTERS):
                if kind != "word" or not is_describing(text):
                    return None
                unit, last = unit.times(Unit(NO_UNIT.scale, ((lowered, 1),))), NO_UNIT
                continue
            has_head = True
            exponent = power
            if self.accept("mark", "^"):
                exponent = _small_integer(self._argument(self.script))
                if exponent == 0:
                    return None
            unit, power = unit.times(last, sign * exponent), 1
        if not has_head:
            return None
        scales = {"celsius", "fahrenheit"} & {name for name, _ in unit.dimensions}
        return UNITS[scales.pop()] if scales else unit

    def _unit_follows(self) -> bool:
        """Whether a unit symbol comes after the slash or dot at the position."""
        kind, text = self.peek(1)
        if (kind, text) == ("mark", "("):
            kind, text = self.peek(2)
        if kind == "letter":
            return text in LETTERS
        return kind in ("word", "run") or text in _UNIT_COMMANDS or (kind == "command" and text == "min")

    def _unit_fraction(self) -> Unit | None:
        """`\\frac{\\text{m}}{\\text{s}}`."""
        self.take()
        parts = []
        for _ in range(2):
            if not self.accept("mark", "{"):
                return None
            parts.append(self._unit())
            if parts[-1] is None or not self.accept("mark", "}"):
                return None
        top, bottom = parts
        return top.times(bottom, -1) if top is not None and bottom is not None else None

    # Numbers

    def _number(self, text: str) -> Node:
        if self.peek() == ("mark", "_"):
            return self._in_base(text)
        if "." in text and "e" not in text.lower():
            found = self._repeating(text)
            if found is not None:
                return found
        return written(text)

    def _repeating(self, mantissa: str) -> Node | None:
        """`0.1\\overline{6}`, `0.(3)`, `0.\\dot{3}`, `0.333...` as exact fractions."""
        kind, text = self.peek()
        block = None
        if kind == "command" and text in ("overline", "bar") and self.peek(1) == ("mark", "{"):
            if self.peek(2)[0] == "number" and self.peek(3) == ("mark", "}"):
                block = self.peek(2)[1]
                self.position += 4
        elif kind == "command" and text in ("overline", "bar") and self.peek(1)[0] == "number":
            block = self.peek(1)[1]
            self.position += 2
        elif kind == "mark" and text == "(" and self.peek(1)[0] == "number" and self.peek(2) == ("mark", ")"):
            block = self.peek(1)[1]
            self.position += 3
        elif kind == "command" and text == "dot":
            block = self._dotted()
        elif kind == "command" and text == "dots":
            self.take()
            return repeating(mantissa, None)
        return None if block is None else repeating(mantissa, block)

    def _dotted(self) -> str:
        """`\\dot{1}42\\dot{7}`: the digits from the first dotted one to the last."""
        block = ""
        while self.peek() == ("command", "dot"):
            self.take()
            wrapped = self.accept("mark", "{")
            kind, text = self.take()
            if kind != "number":
                raise ParseError("a dot stands over something that is no digit")
            block += text
            if wrapped:
                self.expect("mark", "}")
            if self.peek()[0] == "number" and self.peek(1) == ("command", "dot"):
                block += self.take()[1]
        return block

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
        base, exponent = None, None
        while self.peek() in (("mark", "_"), ("mark", "^")):
            if self.take()[1] == "_":
                base = self._argument(self.script)
            else:
                exponent = self._argument(self.script)
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
        lower = upper = None
        while self.peek() in (("mark", "_"), ("mark", "^")):
            if self.take()[1] == "_":
                lower = self._argument(self.script)
            else:
                upper = self._argument(self.script)
        outer, self.in_integral = self.in_integral, name == "int"
        body = self._argument(self.product)
        self.in_integral = outer
        if (
            lower is not None and lower.kind is Kind.RELATION and lower.args[0].kind is Kind.CONSTANT
        ):  # i, e as the index
            index = lower.args[0]
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
        node = self._enclosed(self._in_braces)
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
        inner = self._enclosed(self.answer)
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
        return Node(Kind.CALL, (inner,), "abs")

    def set(self) -> Node:
        """What follows `\\{`: a set, a set builder `x | condition`, or lines that a left brace holds together."""
        if self.accept("command", "}"):
            return Node(Kind.EMPTYSET)
        kind, text = self.peek()
        if kind == "command" and text in ("begin array", "begin aligned", "begin matrix", "begin gathered"):
            self.take()
            node = self._lines(text.removeprefix("begin "))
            self.accept("command", "}")
            return node
        inner = self._enclosed(self.answer, in_braces=1)
        if self.peek() in (("mark", "|"), ("command", "|"), ("mark", ":")):
            self.take()
            condition = self._enclosed(self.answer)
            self.expect("command", "}")
            return Node(Kind.BUILDER, (inner, condition))
        self.expect("command", "}")
        return Node(Kind.SET, inner.args if inner.kind is Kind.LIST else (inner,))

    def environment(self, name: str) -> Node:
        """What follows `\\begin{name}`: a matrix, a determinant, or lines."""
        if name in SYSTEMS:
            return self._lines(name)
        if name not in MATRICES:
            raise ParseError(f"the environment {name} is not read")
        rows: list[list[Node]] = [[]]
        while self.peek() != ("command", "end " + name):
            if self.accept("command", "newline"):
                rows.append([])
            elif self.accept("mark", "&") or self.accept("command", "hline"):
                continue
            elif self.peek() == END:
                raise ParseError(f"\\begin{{{name}}} does not close")
            else:
                rows[-1].append(self._enclosed(self.item))
        self.take()
        rows = [row for row in rows if row]
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ParseError("the rows of a matrix differ in length")
        entries = tuple(entry for row in rows for entry in row)
        if name == "array" and len(entries) == 1:
            return entries[0]
        matrix = Node(Kind.MATRIX, entries, (len(rows), len(rows[0])))
        return matrix if MATRICES[name] else Node(Kind.CALL, (matrix,), "det")

    def _lines(self, name: str) -> Node:
        """The lines of `cases` and the like: a list, or a function in pieces where each line has its condition."""
        end = ("command", "end " + name)
        self._drop_alignment(end)
        rows: list[tuple[Node, ...]] = []
        while not self.accept(*end):
            if self.accept("command", "newline"):
                continue
            if self.peek() == END:
                raise ParseError(f"\\begin{{{name}}} does not close")
            row = [self._enclosed(self.answer)]
            while self.accept("mark", "&"):
                row += self._enclosed_conditions()
            rows.append(tuple(row))
        if len({len(row) > 1 for row in rows}) != 1:
            raise ParseError(f"some lines of \\begin{{{name}}} have a condition and others not, or there are none")
        lines = [row[0] if len(row) == 1 else Node(Kind.CONDITIONED, row) for row in rows]
        if len(lines) == 1:
            return lines[0]
        if all(line.kind is Kind.CONDITIONED for line in lines):
            return Node(Kind.CASES, tuple(lines))
        return Node(Kind.LIST, tuple(lines), "and")

    def _enclosed_conditions(self) -> list[Node]:
        if self.peek()[0] == "word" and self.peek()[1].lower() in ("otherwise", "else", "elsewhere"):
            self.take()
            return [Node(Kind.TEXT, (), "otherwise")]
        start, conditions = self.position, []
        try:
            self._enclosed(lambda: conditions.extend(self._conditions()) or conditions[0])
        except ParseError:
            conditions = []
        if conditions and (self.peek() in _CLOSERS or self.peek()[1].startswith("end ")):
            return conditions
        self.position, spoken = start, []
        while self.peek() != END and self.peek() not in _CLOSERS and not self.peek()[1].startswith("end "):
            spoken.append(self.take()[1])
        return [Node(Kind.TEXT, (), " ".join(word for word in spoken if word.lower() not in _NO_CONDITION))]

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
            return self._combinations(text) or (self.accept("mark", "_") and self._subscripted(text)) or symbol(text)
        if text in "ei" and len(text) == 1:
            return constant(text)
        is_call = (
            text == "f" or self.units or self.tokens[self.position - 2][0] != "letter"
        )  # mg(a + b) has two readings
        if text in "fg" and is_call and self.peek() == ("mark", "("):
            self.take()
            arguments = self.group("(")
            return Node(Kind.CALL, arguments.args if arguments.kind is Kind.GROUP else (arguments,), "opaque " + text)
        return self._called(symbol(text), text)

    def _called(self, node: Node, name: str) -> Node:
        """The name with arguments after it, where these cannot be a factor."""
        if self.peek() == ("mark", "("):
            start = self.position
            self.take()
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

    def _combinations(self, name: str) -> Node | None:
        """`C_8^3` and `A_8^3`, ways of choosing; None for other subscripts."""
        if name not in "CAP":
            return None
        found, position = [], self.position
        for mark in "_^":
            if self.tokens[position : position + 1] != [("mark", mark)]:
                return None
            braced = self.tokens[position + 1 : position + 2] == [("mark", "{")]
            token = self.tokens[position + 1 + braced] if position + 1 + braced < len(self.tokens) else END
            if token[0] != "number" or not token[1].isdigit():
                return None
            found.append(int(token[1]))
            position += 2 + 2 * braced
        if found[1] > found[0]:
            return None
        self.position = position
        chosen = Node(Kind.CALL, (number(found[0]), number(found[1])), "binom")
        return chosen if name == "C" else Node(Kind.MUL, (chosen, Node(Kind.FACTORIAL, (number(found[1]),))))

    def _raw_group(self) -> str | None:
        """The text of the tokens in the braces at the position; None where there are none."""
        if not self.accept("mark", "{"):
            return None
        start, depth = self.position, 1
        while depth:
            token = self.take()
            if token == END:
                raise ParseError("a group does not close")
            depth += (token == ("mark", "{")) - (token == ("mark", "}"))
        return "".join(text for _, text in self.tokens[start : self.position - 1])

    def _subscripted(self, name: str) -> Node:
        subscript = self._raw_group()
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
            return self.environment(name[6:])
        if name.startswith("unit "):
            return symbol(name)
        if name in ("sum", "prod", "int", "lim"):
            return self._big(name)
        raise ParseError(f"\\{name} is no command this grammar knows")

    def _accented(self, name: str) -> Node:
        inner = self._raw_group()
        inner = self.take()[1] if inner is None else inner
        if name == "mathbb" and inner == "R":
            return Node(Kind.REALS)
        if name in ("hat", "vec", "widehat") and inner in ("i", "j", "k", "imath", "jmath"):
            return symbol(f"unit {inner[0]}")
        if name in ("dot", "ddot"):
            base = self._subscripted(inner).value if self.accept("mark", "_") else inner
            return symbol(base + "'" * (1 if name == "dot" else 2))
        if name == "mathbb" and self.peek()[1] in ("^", "_"):
            inner += self._kind_of_numbers()
        if name in ("mathcal", "mathbb"):
            return self._called(symbol(f"{name} {inner}"), f"{name} {inner}")
        full = f"{name.removeprefix('wide').removeprefix('over').removeprefix('left').removeprefix('right')} {inner}"
        return self._subscripted(full) if self.accept("mark", "_") else symbol(full)

    def _kind_of_numbers(self) -> str:
        """The star or sign of `\\mathbb{N}^*`, `\\mathbb{Z}_{+}`; nothing for another exponent."""
        start = self.position
        self.take()
        mark = self._raw_group()
        mark = self.take()[1] if mark is None else mark
        if mark in ("*", "+", "-", ">0"):
            return mark.replace(">0", "+")
        self.position = start
        return ""

    def derivative(self) -> Node | None:
        """`{d^2 y}{dx^2}` after `\\frac`: one symbol, `y''|x`; None where that is no derivative."""
        position, found = self.position, []
        for _ in range(2):
            if self.tokens[position : position + 1] != [("mark", "{")]:
                return None
            depth, content = 1, []
            while depth:
                position += 1
                token = self.tokens[position] if position < len(self.tokens) else END
                if token == END or len(content) > 8:
                    return None
                depth += (token == ("mark", "{")) - (token == ("mark", "}"))
                if token not in (("mark", "{"), ("mark", "}")):
                    content.append(token)
            if not content:
                return None
            position += 1
            found.append(content)
        top, bottom = found
        d = bottom[0][1]
        if d not in ("d", "partial") or top[0][1] != d:
            return None
        order, name = _order(top[1:], power_first=True)
        bottom_order, variable = _order(bottom[1:], power_first=False)
        if not variable:
            return None
        if not name or order != bottom_order:
            raise ParseError("a derivative of this form is not read")
        self.position = position
        return symbol(f"{name}{chr(39) * order}|{'' if d == 'd' else d + ' '}{variable}")


def _order(tokens: list[Token], *, power_first: bool) -> tuple[int, str]:
    """The order and the name of `^2 y` (power first) or `x^2`; no name where it is neither."""
    power = 1
    mark = 0 if power_first else len(tokens) - 2
    if len(tokens) > 2 and tokens[mark] == ("mark", "^"):
        if tokens[mark + 1][0] != "number" or tokens[mark + 1][1] not in "123456":
            return 0, ""
        power = int(tokens[mark + 1][1])
        tokens = tokens[:mark] + tokens[mark + 2 :]
    is_name = all(kind in ("letter", "number") or len(text) == 1 or text in GREEK_OR_NAMED for kind, text in tokens)
    if not tokens or not is_name or (len(tokens) > 1 and tokens[1] != ("mark", "_")):
        return power, ""
    return power, "".join(text for _, text in tokens)


def _joined(items: list[Node], joiners: list[str]) -> Node:
    """Items as one node: a list by its last word, alternatives of several equations, or a proposition."""
    if len(items) == 1:
        return items[0]
    logical = {joiner for joiner in joiners if joiner in ("land", "lor")}
    if logical:
        if any(item.kind in (Kind.RELATION, Kind.UNION, Kind.GROUP, Kind.SET, Kind.CONDITIONED) for item in items):
            joiners = [{"land": "and", "lor": "or"}.get(joiner, joiner) for joiner in joiners]
        else:
            return _proposition(items, joiners)
    if "or" in joiners and {",", "and"} & set(joiners):
        rows: list[list[Node]] = [[items[0]]]
        for joiner, item in zip(joiners, items[1:], strict=True):
            if joiner == "or":
                rows.append([item])
            else:
                rows[-1].append(item)
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 and all(map(_is_named_value, items)):
            return Node(Kind.LIST, tuple(Node(Kind.LIST, tuple(row), ",") for row in rows), "or")
    kinds = [joiner for joiner in joiners if joiner != ","]
    return Node(Kind.LIST, tuple(items), kinds[-1] if kinds else ",")


def _related(sides: list[Node], operators: list[str]) -> Node:
    """A chain of relations; `x < 1 \\cup x > 2` is two of them, joined by "or"."""
    for place, side in enumerate(sides[1:-1], 1):
        if side.kind is Kind.UNION and side.args[1].kind is Kind.SYMBOL:
            left = Node(Kind.RELATION, (*sides[:place], side.args[0]), tuple(operators[:place]))
            return Node(Kind.LIST, (left, _related([side.args[1], *sides[place + 1 :]], operators[place:])), "or")
    return Node(Kind.RELATION, tuple(sides), tuple(operators)) if operators else sides[0]


def _is_point(arguments: tuple[Node, ...]) -> bool:
    """Whether numbers after a capital C are coordinates: one is negative or broken, or the second one is larger."""
    if any(arg.kind is not Kind.NUMBER for arg in arguments):
        return any(arg.kind in (Kind.NEG, Kind.FRAC, Kind.ROOT) for arg in arguments)
    return arguments[1].value > arguments[0].value or any(arg.value.denominator != 1 for arg in arguments)


def _proposition(items: list[Node], joiners: list[str]) -> Node:
    """`p \\land q \\lor r`; \\land binds tighter."""
    if set(joiners) - {"land", "lor"}:
        raise ParseError("a proposition stands in a list")
    parts: list[list[Node]] = [[items[0]]]
    for joiner, item in zip(joiners, items[1:], strict=True):
        if joiner == "lor":
            parts.append([item])
        else:
            parts[-1].append(item)
    conjunctions = [part[0] if len(part) == 1 else Node(Kind.LOGIC, tuple(part), "land") for part in parts]
    return conjunctions[0] if len(parts) == 1 else Node(Kind.LOGIC, tuple(conjunctions), "lor")


def _is_named_value(node: Node) -> bool:
    return node.kind is Kind.RELATION and node.value == ("=",) and node.args[0].kind in (Kind.SYMBOL, Kind.GROUP)


def _is_condition_on(node: Node, answers: list[Node]) -> bool:
    """Whether the last item of a list says what a variable of those before it may be: `\\pi/4 + k\\pi, k \\in Z`."""
    if node.kind is not Kind.RELATION or not set(node.value) <= _CONDITIONS or set(node.value) <= {"=", "~"}:
        return False
    subject = next((arg for arg in node.args if arg.kind in (Kind.SYMBOL, Kind.GROUP, Kind.LIST)), None)
    if subject is None or any(part.kind not in (Kind.SYMBOL, Kind.GROUP, Kind.LIST) for part in subject.walk()):
        return False
    names_in_it = {part.value for part in subject.walk() if part.kind is Kind.SYMBOL}
    used: set[str] = set()
    for answer in answers:
        is_of_numbers = node.value == ("in",) and node.args[1].kind in (Kind.SYMBOL, Kind.REALS)
        if answer.kind is Kind.RELATION and answer.value != ("=",) and is_of_numbers:
            used |= {part.value for part in answer.walk() if part.kind is Kind.SYMBOL}  # 2 <= n <= 5, n in Z
            continue
        if answer.kind is Kind.RELATION and answer.value != ("=",):
            return _is_condition_on(answer, answers[: answers.index(answer)]) and names_in_it != set()
        values = answer.args[1:] if answer.kind is Kind.RELATION else (answer,)
        for part in (part for value in values for part in value.walk()):
            if part.kind is Kind.SYMBOL:
                used |= {str(part.value), str(part.value).partition("_")[2]}
    return bool(names_in_it) and names_in_it <= used


def _multiplied(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node(Kind.MUL, tuple(factors))


def _has_symbol(node: Node) -> bool:
    return any(part.kind is Kind.SYMBOL for part in node.walk())


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


def _small_integer(node: Node) -> int:
    if node.kind is Kind.NEG:
        return -_small_integer(node.args[0])
    if node.kind is not Kind.NUMBER or node.value.denominator != 1 or abs(node.value) > _MOST_POWER_OF_UNIT:
        raise ParseError("the power of a unit is no small integer")
    return int(node.value)


def _is_written_integer(node: Node) -> bool:
    return node.kind is Kind.NUMBER and node.digits is None and node.value.denominator == 1


def _is_plain_fraction(node: Node) -> bool:
    """A fraction of two written integers, as the second part of a mixed number."""
    return node.kind is Kind.FRAC and all(p.kind is Kind.NUMBER and p.value.denominator == 1 for p in node.args)


def _digits_in_base(parser: Parser) -> Node:
    """`\\digits{2A}{16}`, what `read` makes of a number written with its base."""
    digits, base = (parser._raw_group() for _ in range(2))
    return based(digits or "", int(base or 0))


def _fraction(parser: Parser) -> Node:
    return parser.derivative() or Node(Kind.FRAC, (parser._fraction_argument(), parser._fraction_argument()))


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
        inner = parser._argument(lambda: parser._enclosed(parser.answer))
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


_LONGEST_UNIT = 40  # tokens; what is longer is a sentence
_OHM_PREFIXES = names("k M G m")
_UNIT_COMMANDS = frozenset(["mu", "Omega", "AA", "frac"])
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
