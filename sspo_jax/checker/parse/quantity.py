"""A value and what it counts or is measured in: `12 \\text{ cm}^2`, `5 \\text{ m/s}`, `3 \\text{ men}`, `7 (ways)`."""

from collections.abc import Callable

from ..expression import Kind, Node, ParseError, names, number
from .cursor import CLOSERS, RELATIONS, SIGNS, Cursor
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
from .vocabulary import CONDITION_WORDS
from .words import spoken_number

_MOST_POWER = 12
_LONGEST = 40  # tokens; what is longer is a sentence
_OHM_PREFIXES = names("k M G m")
_COMMANDS = frozenset(["mu", "Omega", "AA", "frac"])


def quantity(cursor: Cursor, value: Node, exponent: Callable[[], Node], *, symbolic: bool) -> Node | None:
    """The value with the unit that follows it up to the end of the item; None where that is no unit.

    `symbolic`: variables stand before it, so that a single letter is one as well.
    """
    kind, text = cursor.peek()
    if kind == "mark" and text in "/*" and cursor.peek(1)[0] not in ("word", "run", "mark"):
        return None
    if kind not in ("word", "run") and text not in _COMMANDS and (kind != "mark" or text not in "/*("):
        return None
    start, known = cursor.position, value.value if value.kind is Kind.UNIT else NO_UNIT
    amount = value.args[0] if value.kind is Kind.UNIT else value
    if kind == "word" and text.lower() in MULTIPLIERS:
        cursor.take()
        amount = Node(Kind.MUL, (amount, number(MULTIPLIERS[text.lower()])))
        if _is_over(cursor):
            return Node(Kind.UNIT, (amount,), known) if known != NO_UNIT else amount
    elif (kind, text) == ("mark", "(") and cursor.peek(1)[0] == "word":
        found = _in_brackets(cursor, value, exponent)
        cursor.position = start if found is None else cursor.position
        return found
    is_letter = cursor.position == start and len(text) == 1 and text.isascii()
    unit = _UnitPhrase(cursor, exponent, has_head=value.kind is Kind.PERCENT).read()
    if unit is not None and cursor.peek() == ("mark", "("):  # 9 pairs (x, y)
        _skip_names(cursor)
    is_variable = is_letter and cursor.position - start == 1 and (symbolic or amount.has_symbol())
    if unit is None or not _is_over(cursor) or is_variable:
        cursor.position = start
        return None
    unit = known.times(unit) if known not in (NO_UNIT, unit) else unit
    if unit.dimensions == UNITS["percent"].dimensions:
        return Node(Kind.PERCENT, (amount,))
    if unit == UNITS["degree"]:
        return Node(Kind.DEGREE, (amount,))
    return Node(Kind.UNIT, (amount,), unit) if unit.dimensions else amount


def _is_over(cursor: Cursor) -> bool:
    """Whether the whole value ends here, so that what was read may be its unit."""
    kind, text = cursor.peek()
    if kind == "word":
        return text.lower() in CONDITION_WORDS
    is_relation = kind in ("mark", "command") and text in RELATIONS
    return kind in ("end", "join", "number") or is_relation or (kind, text) in (*SIGNS, ("mark", ":"), *CLOSERS)


def _in_brackets(cursor: Cursor, value: Node, exponent: Callable[[], Node]) -> Node | None:
    """The value of `7 (seven)` or `12 (ways)`: what stands in brackets repeats it, or is its unit."""
    cursor.take()
    spoken, start = [], cursor.position
    while cursor.peek()[0] == "word":
        spoken.append(cursor.take()[1])
    is_whole = cursor.accept("mark", ")") and _is_over(cursor) and value.kind is Kind.NUMBER
    if is_whole and spoken_number(" ".join(spoken).lower()) == value.value:
        return value
    cursor.position = start
    unit = _UnitPhrase(cursor, exponent).read()
    if unit is None or not cursor.accept("mark", ")") or not _is_over(cursor) or value.kind is Kind.UNIT:
        return None
    return Node(Kind.UNIT, (value,), unit) if unit.dimensions else value


def _skip_names(cursor: Cursor) -> None:
    start = cursor.position
    cursor.take()
    while cursor.peek()[0] in ("letter", "join") or cursor.peek() == ("mark", "_"):
        cursor.take()
    if not cursor.accept("mark", ")"):
        cursor.position = start


class _UnitPhrase:
    """Unit names and symbols with their powers, joined by "per", slashes, dots; or a counted noun.

    A phrase needs a head: a unit, a plural, or one of the words that say what is counted. Words such as "is" and
    "less", numbers in words, "squared" without a unit make it no unit.
    """

    def __init__(self, cursor: Cursor, exponent: Callable[[], Node], *, has_head: bool = False) -> None:
        self.cursor = cursor
        self.exponent = exponent
        self.has_head = has_head
        self.unit = NO_UNIT
        self.last: Unit | None = None  # the one that "squared" is about; NO_UNIT after another word
        self.sign = 1  # -1 after "per" or a slash
        self.power = 1  # after "square"

    def read(self) -> Unit | None:
        """The unit, with the position behind it; None where this is none, with the position anywhere."""
        start = self.cursor.position
        try:
            while self._joined() or self._named():
                if self.cursor.position - start > _LONGEST:
                    return None
        except ParseError:
            return None
        if not self.has_head:
            return None
        scales = {"celsius", "fahrenheit"} & {name for name, _ in self.unit.dimensions}
        return UNITS[scales.pop()] if scales else self.unit

    def _joined(self) -> bool:
        """Takes what stands between units: a slash or dot, "and", "to", or a fraction of units."""
        cursor = self.cursor
        kind, text = cursor.peek()
        if kind == "mark" and text in "/*" and self._unit_follows():
            cursor.take()
            self.sign = -1 if text == "/" else self.sign
            if cursor.accept("mark", "("):
                self._multiply(self._inner(")"))
        elif (kind, text) == ("join", "and") and self.has_head and counted_noun(cursor.peek(1)[1]) is not None:
            cursor.take()  # 7 apples and oranges
        elif (kind, text.lower()) == ("word", "to") and cursor.peek(1) == ("word", "the"):
            cursor.position += 2  # 5 m to the right
        elif (kind, text.lower()) == ("word", "to") and cursor.peek(-1)[1].lower() in ("way", "ways"):
            while cursor.peek()[0] == "word":  # 7 ways to choose them
                cursor.take()
        elif kind == "command" and text == "frac" and cursor.peek(2)[0] in ("word", "run"):
            cursor.take()
            cursor.expect("mark", "{")
            top = self._inner("}")
            cursor.expect("mark", "{")
            self._multiply(top.times(self._inner("}"), -1))
        else:
            return False
        return True

    def _inner(self, closing: str) -> Unit:
        unit = _UnitPhrase(self.cursor, self.exponent).read()
        self.cursor.expect("mark", closing)
        if unit is None:
            raise ParseError("a group holds no unit")
        return unit

    def _multiply(self, unit: Unit) -> None:
        self.unit, self.has_head = self.unit.times(unit, self.sign), True

    def _unit_follows(self) -> bool:
        """Whether a unit symbol comes after the slash or dot at the position."""
        kind, text = self.cursor.peek(1)
        if (kind, text) == ("mark", "("):
            kind, text = self.cursor.peek(2)
        if kind == "letter":
            return text in LETTERS
        return kind in ("word", "run") or text in _COMMANDS or (kind == "command" and text == "min")

    def _named(self) -> bool:
        """Takes a word or symbol; ParseError where it belongs to no unit."""
        kind, text = self._take_name()
        lowered = text.lower().rstrip(".")
        for prefix in ("平方", "立方"):
            if text.startswith(prefix) and len(text) > 2:
                text, self.power = text[2:], POWERS[prefix]
        if not text:
            return False
        if lowered in POWERS:
            if not lowered.endswith("ed"):
                self.power = POWERS[lowered]
            elif self.last is None:
                raise ParseError("nothing is squared")
            else:
                self.unit = self.unit.times(self.last, self.sign * (POWERS[lowered] - 1))
        elif lowered in PER:
            self.sign, self.last = -1, NO_UNIT
            if lowered == "per" and self.cursor.accept("word", "cent"):
                self.sign = 1
                self._multiply(UNITS["percent"])
        elif lowered in COUNTED_IN:
            self.has_head, self.last, self.power = True, NO_UNIT, 1
            if self.cursor.accept("mark", "^"):
                self.exponent()
        elif lowered in ("a", "an") and self.has_head:
            self.sign = -1
        elif lowered in FILLERS and not self._is_inch(lowered):
            self.has_head = self.has_head or lowered == "of"
        else:
            self._measure(kind, text)
        return True

    def _take_name(self) -> tuple[str, str]:
        """The kind and text of a token that may name a unit; no text where another one comes."""
        cursor = self.cursor
        kind, text = cursor.peek()
        before = cursor.peek(-1)[1]
        if kind == "command" and text in _COMMANDS and (cursor.peek(1)[0] == "word" or text in ("Omega", "AA")):
            cursor.take()
            return kind, {"Omega": "ohm", "AA": "angstrom"}.get(text) or "u" + cursor.take()[1]
        is_joined = (before == "/" and self.sign == -1) or (before in ("/", "*") and self.last is not None)
        is_command = kind == "command" and text in ("min", "rad", "deg") and before == "/"
        if kind not in ("word", "run") and not (kind == "letter" and is_joined) and not is_command:
            return kind, ""
        cursor.take()
        return kind, text + "ohm" if text in _OHM_PREFIXES and cursor.accept("command", "Omega") else text

    def _is_inch(self, word: str) -> bool:
        return (
            word == "in" and self.last is None and (_is_over(self.cursor) or self.cursor.peek()[1] in ("^", "/", "*"))
        )

    def _measure(self, kind: str, text: str) -> None:
        """A unit or counted noun with its exponent, or a word that describes the noun after it."""
        self.last = known_unit(text) or counted_noun(text)
        if self.last is None or (len(text) == 1 and text.isascii() and text not in LETTERS):
            if kind != "word" or not is_describing(text):
                raise ParseError(f"{text} is no unit")
            self.unit, self.last = self.unit.times(Unit(NO_UNIT.scale, ((text.lower().rstrip("."), 1),))), NO_UNIT
            return
        power = _small_integer(self.exponent()) if self.cursor.accept("mark", "^") else self.power
        if power == 0:
            raise ParseError("a unit to the power of zero")
        self._multiply(Unit(self.last.scale**power, tuple((name, n * power) for name, n in self.last.dimensions)))
        self.power = 1


def _small_integer(node: Node) -> int:
    if node.kind is Kind.NEG:
        return -_small_integer(node.args[0])
    if node.kind is not Kind.NUMBER or node.value.denominator != 1 or abs(node.value) > _MOST_POWER:
        raise ParseError("the power of a unit is no small integer")
    return int(node.value)
