"""When numbers with units, percentages and angles are the same."""

from fractions import Fraction

from ..evaluate.values import free_symbols
from ..expression import Kind, Node, constant, negated, number
from ..parse.units import UNITS, Unit
from .judge import Judge

_PI = constant("pi")


def _quantity(node: Node) -> tuple[Node, Unit | None]:
    """A value and its unit, None where it has none; a sum of units of one dimension is in the base unit."""
    if node.kind is Kind.UNIT:
        return node.args[0], node.value
    if node.kind is Kind.DEGREE:
        return node.args[0], UNITS["deg"]
    if node.kind is Kind.NEG:
        value, unit = _quantity(node.args[0])
        return (negated(value), unit) if unit is not None else (node, None)
    if node.kind in (Kind.ADD, Kind.MUL, Kind.DIV) and any(part.kind in _MEASURED for part in node.args):
        parts = [_quantity(arg) for arg in node.args]
        units = [unit for _, unit in parts if unit is not None]
        if node.kind is Kind.ADD and len(units) == len(parts) and len({unit.dimensions for unit in units}) == 1:
            terms = tuple(Node(Kind.MUL, (value, number(unit.scale))) for value, unit in parts if unit is not None)
            return Node(Kind.ADD, terms), Unit(Fraction(1), units[0].dimensions)
        bare = [value for value, unit in parts if unit is None]
        if node.kind is Kind.ADD and {*units} == {UNITS["deg"]} and all(map(free_symbols, bare)):
            return Node(Kind.ADD, tuple(value for value, _ in parts)), UNITS["deg"]  # 180° - 2a
        if node.kind is not Kind.ADD and len(units) == 1 and (node.kind is Kind.MUL or parts[0][1] is not None):
            return Node(node.kind, tuple(value for value, _ in parts)), units[0]
    return node, None


_MEASURED = (Kind.UNIT, Kind.DEGREE)


def same_quantity(answer: Node, gold: Node, judge: Judge) -> str | None:
    """Values with their units, one of which may be missing; what has no unit is compared as an expression."""
    (value, unit), (gold_value, gold_unit) = _quantity(answer), _quantity(gold)
    if unit is not None and gold_unit is not None:
        if unit.dimensions != gold_unit.dimensions:
            return None
        if unit != gold_unit:
            value = Node(Kind.MUL, (value, number(unit.scale)))
            gold_value = Node(Kind.MUL, (gold_value, number(gold_unit.scale)))
        return "the same quantity" if judge.equal(value, gold_value) else None
    if value.kind is Kind.PERCENT or gold_value.kind is Kind.PERCENT:
        for side, side_unit in ((value, unit), (gold_value, gold_unit)):
            if side_unit is not None and side.kind is not Kind.PERCENT:  # 6 cm is not 6 %, but 6 % a year is 6 %
                return None
        return _same_percent(value, gold_value, judge)
    for node, other in ((answer, gold), (gold, answer)):
        if node.kind is Kind.ADD and _quantity(node)[1] is not None and other.kind is Kind.NUMBER:
            return _same_compound(node, other, judge)
    if judge.equal(value, gold_value):
        return "equal in value" if unit is gold_unit is None else "equal in value, a unit missing on one side"
    for side, side_unit, other in ((value, unit, gold_value), (gold_value, gold_unit, value)):
        if side_unit == UNITS["deg"] and any(part == _PI or str(part.value).startswith("arc") for part in other.walk()):
            return "the same angle" if judge.equal(Node(Kind.DEGREE, (side,)), other) else None
    return None


def _same_compound(node: Node, other: Node, judge: Judge) -> str | None:
    """`2 hours 30 minutes` against 150 or 2.5: the bare number counts one of its units."""
    total = _quantity(node)[0]
    scales = {part.value.scale for part in node.args if part.kind is Kind.UNIT}
    is_one = any(judge.equal(total, Node(Kind.MUL, (other, number(scale)))) for scale in scales)
    return "equal in value, the unit missing on one side" if is_one else None


def _same_percent(answer: Node, gold: Node, judge: Judge) -> str | None:
    bare_answer = answer.args[0] if answer.kind is Kind.PERCENT else answer
    bare_gold = gold.args[0] if gold.kind is Kind.PERCENT else gold
    if judge.equal(bare_answer, bare_gold):
        return "the same percentage"
    return "a percentage as a fraction" if judge.equal(answer, gold) else None
