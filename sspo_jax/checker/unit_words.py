"""The part of the parser that reads the words after a value: `5 cm`, `20 miles per hour`, `3 apples`, `2 million`."""

from .expression import Node, ParseError, number
from .numerals import Numerals
from .units import MULTIPLIERS, NO_UNIT, POWERS, SINGLE_LETTERS, UNITS, word_unit


class UnitWords(Numerals):
    """Values followed by words."""

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
                    if exponent == 0:
                        raise ParseError("a unit to the power of zero")
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


def _small_integer(node: Node) -> int:
    if node.kind == "neg":
        return -_small_integer(node.args[0])
    if node.kind != "number" or node.value.denominator != 1 or abs(node.value) > 12:
        raise ParseError("the power of a unit is no small integer")
    return int(node.value)
