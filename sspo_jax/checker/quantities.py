"""When numbers with units, percentages and angles are the same."""

from fractions import Fraction

from .expression import Node, number
from .judge import Judge
from .units import NO_UNIT, SINGLE_LETTERS, UNITS, Unit
from .values import free_symbols


def _quantity(node: Node) -> tuple[Node, Unit | None]:
    if node.kind == "unit":
        return node.args[0], node.value  # type: ignore[return-value]
    if node.kind == "degree":
        return node.args[0], UNITS["deg"]
    if node.kind == "neg":
        value, unit = _quantity(node.args[0])
        return (Node("neg", (value,)), unit) if unit is not None else (node, None)
    if node.kind in ("add", "mul", "div") and any(part.kind in ("unit", "degree") for part in node.args):
        parts = [_quantity(arg) for arg in node.args]
        units = [unit for _, unit in parts if unit is not None]
        if node.kind == "add" and len(units) == len(parts) and len({unit.dimensions for unit in units}) == 1:
            terms = tuple(Node("mul", (value, number(unit.scale))) for value, unit in parts if unit is not None)
            return Node("add", terms), Unit(Fraction(1), units[0].dimensions)
        if node.kind in ("mul", "div") and len(units) == 1 and (node.kind == "mul" or parts[0][1] is not None):
            return Node(node.kind, tuple(value for value, _ in parts)), units[0]
    return node, None


def _letters_as_unit(node: Node) -> tuple[Node, Unit] | None:
    """`5 m` or `5 m/s` read as a quantity, where the other side has a unit."""
    if node.kind == "div":
        top = _letters_as_unit(node.args[0])
        bottom = _unit_letters(node.args[1])
        return (top[0], top[1].times(bottom, -1)) if top and bottom else None
    if node.kind == "mul" and len(node.args) == 2:
        unit = _unit_letters(node.args[1])
        return (node.args[0], unit) if unit is not None and not free_symbols(node.args[0]) else None
    return None


def _unit_letters(node: Node) -> Unit | None:
    if node.kind in ("div", "frac"):
        top, bottom = _unit_letters(node.args[0]), _unit_letters(node.args[1])
        return top.times(bottom, -1) if top is not None and bottom is not None else None
    if node.kind == "symbol" and node.value in SINGLE_LETTERS:
        return UNITS.get(node.value) or UNITS.get(node.value.lower())
    if node.kind == "pow" and node.args[1].kind == "number" and node.args[1].value in (2, 3):
        unit = _unit_letters(node.args[0])
        return NO_UNIT.times(unit, int(node.args[1].value)) if unit is not None else None
    return None


def same_quantity(answer: Node, gold: Node, judge: Judge) -> str | None:
    (value, unit), (gold_value, gold_unit) = _quantity(answer), _quantity(gold)
    if unit is not None and gold_unit is None and (read := _letters_as_unit(gold)):
        gold_value, gold_unit = read
    elif gold_unit is not None and unit is None and (read := _letters_as_unit(answer)):
        value, unit = read
    if unit is None and gold_unit is None:  # `12 m/s` against `12`: a quotient of unit letters is a unit
        if gold.kind == "number" and answer.kind == "div" and (read := _letters_as_unit(answer)):
            value, unit = read
        elif answer.kind == "number" and gold.kind == "div" and (read := _letters_as_unit(gold)):
            gold_value, gold_unit = read
    if unit is not None and gold_unit is not None:
        if unit.dimensions != gold_unit.dimensions:
            return None
        if unit != gold_unit:
            value = Node("mul", (value, number(unit.scale)))
            gold_value = Node("mul", (gold_value, number(gold_unit.scale)))
        return "the same quantity" if judge.equal(value, gold_value) else None
    if value.kind == "percent" or gold_value.kind == "percent":
        for side, side_unit in ((value, unit), (gold_value, gold_unit)):
            if side_unit is not None and side.kind != "percent":  # 6 cm is not 6 %, but 6 % a year is 6 %
                return None
        return _same_percent(value, gold_value, judge)
    if judge.equal(value, gold_value):
        return "equal in value" if unit is gold_unit is None else "equal in value, a unit missing on one side"
    for side, side_unit, other in ((value, unit, gold_value), (gold_value, gold_unit, value)):
        if side_unit == UNITS["deg"] and any(part == _PI or str(part.value).startswith("arc") for part in other.walk()):
            radians = Node("degree", (side,))
            return "the same angle" if judge.equal(radians, other) else None
    return None


_PI = Node("constant", (), "pi")


def _same_percent(answer: Node, gold: Node, judge: Judge) -> str | None:
    bare_answer = answer.args[0] if answer.kind == "percent" else answer
    bare_gold = gold.args[0] if gold.kind == "percent" else gold
    if judge.equal(bare_answer, bare_gold):
        return "the same percentage"
    return "a percentage as a fraction" if judge.equal(answer, gold) else None
