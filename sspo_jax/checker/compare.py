"""Whether two parsed answers are the same answer: the rules for lists, tuples, sets of reals, relations, units, words.

`same(answer, gold, ...)` returns the rule that found them equal, or None; numbers and expressions go to `values`.
"""

from fractions import Fraction

from .expression import Node, number
from .limits import Limits, NeedsWorker, TooLarge
from .realsets import equal_real_sets, is_real_set, real_set
from .units import NO_UNIT, SINGLE_LETTERS, UNITS, Unit
from .values import constant_ratio, equal_values, exact_value, free_symbols
from .verdict import Options

_MOST_ITEMS = 200
_MINUS_ONE = Node("neg", (number(1),))
_FUNCTION_NAMES = frozenset("fghpqrsuvyFGHPQRSTNVA")
_NOTHING = frozenset(
    [
        "no solution",
        "no solutions",
        "none",
        "empty set",
        "no real solution",
        "no real solutions",
        "does not exist",
        "无解",
        "empty",
    ]
)


def same(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    """The rule by which two answers are the same, None where they differ.

    Raises:
        Undecided: a value is out of reach (`NeedsWorker` where a worker may reach it).
    """
    if answer == gold:
        return "the same expression"
    answer, gold = _spread(answer), _spread(gold)
    if answer == gold:
        return "the same expression"
    kinds = {answer.kind, gold.kind}
    if "choice" in kinds:
        return _same_choice(answer, gold, options, limits)
    if kinds & {"text", "time", "date"}:
        return _same_words(answer, gold)
    if "modulo" in kinds:
        return _same_residue(answer, gold, options, limits)
    if kinds & {"relation", "builder"}:
        return _same_relations(answer, gold, options, limits)
    if "matrix" in kinds:
        return _same_matrix(answer, gold, options, limits)
    if kinds & {"list", "set"}:
        return _same_lists(answer, gold, options, limits)
    if kinds & {"union", "intersection", "difference", "reals", "emptyset"}:
        return _same_real_sets(answer, gold, limits)
    if "group" in kinds:
        return _same_groups(answer, gold, options, limits)
    if "ratio" in kinds:
        return _same_ratio(answer, gold, options, limits)
    return _same_quantity(answer, gold, options, limits)


def _spread(node: Node) -> Node:
    """An answer with `\\pm` written out, `x = 1, 2` as `1, 2`, sums and multiples of matrices carried out."""
    if any(part.kind in ("pm", "mp") for part in node.walk()):
        if node.kind in ("list", "set"):
            items: list[Node] = []
            for arg in node.args:
                spread = _spread(arg)
                items.extend(spread.args if spread.kind == "list" and arg.kind != "list" else (spread,))
            return Node(node.kind, tuple(items), node.value)
        if node.kind == "relation" and node.value == ("=",) and _is_name(node.args[0]):
            return _spread(node.args[1])
        return Node("list", (_signed(node, 1), _signed(node, -1)), "or")
    if node.kind == "list" and node.args[0].kind == "relation" and node.args[0].value == ("=",):
        first, rest = node.args[0], node.args[1:]
        if _is_name(first.args[0]) and not any(arg.kind == "relation" for arg in rest):
            return Node("list", (first.args[1], *rest), node.value)
    if node.kind == "list" and node.value == "and" and all(arg.kind == "unit" for arg in node.args):
        units = [arg.value for arg in node.args]  # "1 hour and 30 minutes" is one quantity
        if len(set(units)) == len(units) and len({unit.dimensions for unit in units}) == 1:  # type: ignore[union-attr]
            return Node("add", node.args)
    if node.kind == "add" and len(node.args) == 2 and node.args[0].kind in ("reals", "union", "group"):
        removed = node.args[1]
        if removed.kind == "neg" and removed.args[0].kind == "set":
            return Node("difference", (node.args[0], removed.args[0]))
    if node.kind in ("mul", "neg", "div") and any(arg.kind == "matrix" for arg in node.args):
        return _scaled_matrix(node)
    return node


def _signed(node: Node, sign: int) -> Node:
    """The node with every `\\pm` read as `sign` and every `\\mp` as its opposite."""
    args = tuple(_signed(arg, sign) for arg in node.args)
    if node.kind in ("pm", "mp"):
        return args[0] if (sign > 0) == (node.kind == "pm") else Node("neg", args)
    return Node(node.kind, args, node.value, node.digits)


def _scaled_matrix(node: Node) -> Node:
    matrices = [arg for arg in node.args if arg.kind == "matrix"]
    if len(matrices) != 1 or (node.kind == "div" and node.args[1].kind == "matrix"):
        return node
    matrix = matrices[0]
    if node.kind == "neg":
        entries = tuple(Node("neg", (entry,)) for entry in matrix.args)
    elif node.kind == "div":
        entries = tuple(Node("div", (entry, node.args[1])) for entry in matrix.args)
    else:
        factors = tuple(arg for arg in node.args if arg is not matrix)
        entries = tuple(Node("mul", (*factors, entry)) for entry in matrix.args)
    return Node("matrix", entries, matrix.value)


# words and letters


def _same_choice(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    letters = [node.value if node.kind in ("choice", "symbol") else None for node in (answer, gold)]
    if answer.kind == gold.kind == "choice" and letters[0] != letters[1]:
        return None
    if letters[0] == letters[1]:
        return "the same choice letter"
    if "list" in (answer.kind, gold.kind):
        return None
    contents = [node.args[0] if node.kind == "choice" and node.args else node for node in (answer, gold)]
    if any(node.kind == "choice" for node in contents) or letters[0] is not None is not letters[1]:
        return None
    rule = same(contents[0], contents[1], options, limits)
    return rule and f"what the choice letter stands for is {rule}"


def _same_words(answer: Node, gold: Node) -> str | None:
    if answer.kind == gold.kind == "text":
        return "the same words" if answer.value == gold.value or _plural(answer.value) == _plural(gold.value) else None
    if answer.kind == gold.kind == "time":
        (seconds, has_half), (gold_seconds, gold_has_half) = answer.value, gold.value  # type: ignore[misc]
        if seconds == gold_seconds:
            return "the same time"
        half_day = 12 * 3600
        loose = not (has_half and gold_has_half) and seconds % half_day == gold_seconds % half_day
        afternoon = max(seconds, gold_seconds) >= 13 * 3600 and not (has_half or gold_has_half)
        twelve_hour = all(value < 13 * 3600 or half for value, half in (answer.value, gold.value))  # type: ignore[misc]
        return "the same time, am or pm missing on one side" if loose and twelve_hour and not afternoon else None
    if answer.kind == gold.kind == "date":
        (year, *day), (gold_year, *gold_day) = answer.value, gold.value  # type: ignore[misc]
        return "the same date" if day == gold_day and (year == gold_year or None in (year, gold_year)) else None
    texts = [node.value if node.kind == "text" else None for node in (answer, gold)]
    if "emptyset" in (answer.kind, gold.kind) and (texts[0] in _NOTHING or texts[1] in _NOTHING):
        return "both say that there is nothing"
    names = [_as_name(node) for node in (answer, gold)]
    return "the same words" if names[0] is not None and names[0] == names[1] else None


def _plural(text: object) -> str:
    return str(text).removesuffix("s")


def _as_name(node: Node) -> str | None:
    if node.kind == "text":
        return str(node.value).replace(" ", "")
    if node.kind in ("symbol", "constant"):
        return str(node.value).lower()
    if node.kind == "choice" and not node.args:
        return str(node.value).lower()
    if node.kind == "mul" and all(arg.kind in ("symbol", "constant") for arg in node.args):
        return "".join(str(arg.value) for arg in node.args).lower()
    return None


# relations


def _is_name(node: Node) -> bool:
    """What may stand for an answer on the left of `=`: `x`, `f(x)`, `\\text{Area}`, `(x, y)`."""
    if node.kind in ("symbol", "text"):
        return True
    if node.kind == "constant":
        return False
    if node.kind == "call" and (str(node.value).startswith("opaque ") or node.value == "abs"):
        return all(_is_name(arg) or arg.kind == "number" for arg in node.args) and node.value != "abs"
    if node.kind == "group":
        return all(_is_name(arg) for arg in node.args)
    if node.kind == "mul":
        first, last = node.args[0], node.args[-1]
        inverse = first.kind == "pow" and first.args[0].kind == "symbol" and first.args[1] == _MINUS_ONE
        if inverse and len(node.args) == 2 and last.kind == "symbol":
            return True
        if not all(arg.kind == "symbol" for arg in node.args):
            return False
        if str(last.value).startswith("figure"):  # m\\angle ABC
            return True
        names = [str(arg.value) for arg in node.args]
        function = len(names) == 2 and (names[0] in _FUNCTION_NAMES or (names[0].isupper() and names[1].islower()))
        return function or all(name.isupper() for name in names)
    return False


def _definition(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `name = ... = value`, or of `value = name`."""
    if node.kind != "relation" or set(node.value) != {"="}:  # type: ignore[arg-type]
        return None
    first, last = node.args[0], node.args[-1]
    if _is_name(first):
        return first, last
    if _is_name(last) and not free_symbols(first):
        return last, first
    if len(node.args) > 2 or not free_symbols(first):  # a computation, `3 * 4 = 12`, arrives at its last side
        return first, last
    return None


def _same_relations(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    if answer.kind == gold.kind == "relation":
        rule = _same_two_relations(answer, gold, options, limits)
        if rule is not None:
            return rule
    for node, other, is_gold in ((answer, gold, False), (gold, answer, True)):
        if node.kind == "relation" and node.value == ("in",) and _is_name(node.args[0]):
            inside = node.args[1]
            return same(*((other, inside) if is_gold else (inside, other)), options, limits)
        definition = _definition(node)
        if definition is not None and other.kind != "relation":
            name, value = definition
            if name.kind != "group" and other.kind == "group" and value.kind != "group":
                return None
            rule = same(*((other, value) if is_gold else (value, other)), options, limits)
            return rule and f"{rule}, the name before = left out"
    named = [free_symbols(node) - {"_"} for node in (answer, gold)]
    if named[0] and named[1] and named[0] != named[1]:
        return None
    if is_real_set(answer) and is_real_set(gold):
        return _same_real_sets(answer, gold, limits)
    return None


def _same_residue(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    """`3 (mod 7)`: the modulus may be missing on one side, residues that differ by a multiple of it are the same."""
    if answer.kind != gold.kind:
        bare = [node.args[0] if node.kind == "modulo" else node for node in (answer, gold)]
        rule = same(bare[0], bare[1], options, limits)
        return rule and f"{rule}, the modulus missing on one side"
    if same(answer.args[1], gold.args[1], options, limits) is None:
        return None
    rule = same(answer.args[0], gold.args[0], options, limits)
    if rule is not None:
        return rule
    sides = [((definition := _definition(node.args[0])) and definition[1]) or node.args[0] for node in (answer, gold)]
    names = [(definition := _definition(node.args[0])) and definition[0] for node in (answer, gold)]
    if names[0] != names[1] or any(side.kind == "relation" or free_symbols(side) for side in sides):
        return None
    values = [exact_value(node, limits) for node in (*sides, gold.args[1])]
    if any(value is None for value in values) or not values[2]:
        return None
    steps = (values[0] - values[1]) / values[2]  # type: ignore[operator]
    return "the same residue" if steps.denominator == 1 else None


def _same_two_relations(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    first, second = _definition(answer), _definition(gold)
    if first is not None and second is not None:
        names = _renamed(first[0]), _renamed(second[0])
        if first[0] == second[0]:
            return same(first[1], second[1], options, limits)
        if names[0][0] == names[1][0] and len(names[0][1]) == len(names[1][1]) > 0:
            renaming = dict(zip(names[0][1], names[1][1], strict=True))
            return same(_substitute(first[1], renaming), second[1], options, limits)
        if first[0].kind == "text" or second[0].kind == "text":
            return None
    if len(answer.value) == len(gold.value) == 1:  # type: ignore[arg-type]
        return _same_single_relation(answer, gold, limits)
    left, right = _ascending(answer), _ascending(gold)
    if left.value == right.value and len(left.args) == len(right.args):
        if set(left.value) == {"="}:  # type: ignore[arg-type]
            pairs = zip(left.args, right.args, strict=True)
            return "the same chain" if all(same(a, b, options, limits) for a, b in pairs) else None
        if all(_equal_sides(a, b, options, limits) for a, b in zip(left.args, right.args, strict=True)):
            return "the same chain of relations"
    return None


def _equal_sides(first: Node, second: Node, options: Options, limits: Limits) -> bool:
    return same(first, second, options, limits) is not None


def _same_single_relation(answer: Node, gold: Node, limits: Limits) -> str | None:
    (operator,), (gold_operator,) = answer.value, gold.value  # type: ignore[misc]
    if operator not in _FLIPPED or gold_operator not in _FLIPPED:
        return None
    scalar_kinds = {"group", "list", "set", "text", "matrix", "union", "ratio", "choice"}
    if any(arg.kind in scalar_kinds for arg in answer.args + gold.args):
        return None
    sign = constant_ratio(_difference(answer), _difference(gold), limits)
    if sign == 0:
        return None
    if operator in ("=", "!="):
        return "the same equation up to a factor" if operator == gold_operator else None
    return (
        "the same inequality up to a factor"
        if gold_operator == (operator if sign > 0 else _FLIPPED[operator])
        else None
    )


_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _difference(relation: Node) -> Node:
    return Node("add", (relation.args[0], Node("neg", (relation.args[1],))))


def _ascending(relation: Node) -> Node:
    operators: tuple[str, ...] = relation.value  # type: ignore[assignment]
    if operators and all(operator in (">", ">=", "=") for operator in operators) and set(operators) != {"="}:
        return Node("relation", relation.args[::-1], tuple(_FLIPPED[operator] for operator in operators[::-1]))
    return relation


def _renamed(name: Node) -> tuple[str, list[str]]:
    """The function of a name such as `f(x)`, and the names of its arguments."""
    if name.kind == "call":
        return str(name.value), [str(arg.value) for arg in name.args if arg.kind == "symbol"]
    if name.kind == "mul" and len(name.args) == 2:
        return f"opaque {name.args[0].value}", [str(name.args[1].value)]
    return str(name.value), []


def _substitute(node: Node, renaming: dict[str, str]) -> Node:
    if node.kind == "symbol":
        return Node("symbol", (), renaming.get(node.value, node.value))  # type: ignore[arg-type]
    return Node(node.kind, tuple(_substitute(arg, renaming) for arg in node.args), node.value, node.digits)


# lists, tuples, matrices, sets of reals


def _items(node: Node) -> tuple[Node, ...]:
    return node.args if node.kind in ("list", "set") else (node,)


def _same_lists(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    if is_real_set(answer) and is_real_set(gold) and any(_has_condition(node) for node in (answer, gold)):
        return _same_real_sets(answer, gold, limits)
    for node, other in ((answer, gold), (gold, answer)):
        if node.kind == "list" and other.kind == "group":
            return _list_against_group(node, other, options, limits)
        if node.kind == "set" and other.kind in ("union", "difference", "intersection", "emptyset"):
            return _same_real_sets(answer, gold, limits)
    if gold.kind == "list" and gold.value == "OR" and answer.kind != "list":
        rules = (same(answer, alternative, options, limits) for alternative in gold.args)
        return next((f"{rule}, one of the alternatives" for rule in rules if rule), None)
    left, right = _items(answer), _items(gold)
    if "set" in (answer.kind, gold.kind):
        left, right = _distinct(left, options, limits), _distinct(right, options, limits)
    if len(left) != len(right):
        left, right = _flattened(left), _flattened(right)
        if len(left) != len(right):
            return None
    if len(left) > _MOST_ITEMS:
        raise NeedsWorker("a long list") if limits.nodes < 1000 else TooLarge("a list of more than 200 answers")
    remaining = list(left)
    for wanted in right:
        for index, item in enumerate(remaining):
            if _same_item(item, wanted, options, limits):
                del remaining[index]
                break
        else:
            return None
    return "the same answers in any order"


def _same_item(item: Node, wanted: Node, options: Options, limits: Limits) -> bool:
    first, second = _definition(item), _definition(wanted)
    if first is not None and second is None and wanted.kind != "relation":
        item = first[1]
    if second is not None and first is None and item.kind != "relation":
        wanted = second[1]
    return same(item, wanted, options, limits) is not None


def _flattened(items: tuple[Node, ...]) -> tuple[Node, ...]:
    flat: list[Node] = []
    for item in items:
        flat.extend(item.args if item.kind == "list" else (item,))
    return tuple(flat)


def _distinct(items: tuple[Node, ...], options: Options, limits: Limits) -> tuple[Node, ...]:
    kept: list[Node] = []
    for item in items[:_MOST_ITEMS]:
        if not any(same(item, other, options, limits) for other in kept):
            kept.append(item)
    return tuple(kept) + items[_MOST_ITEMS:]


def _list_against_group(node: Node, group: Node, options: Options, limits: Limits) -> str | None:
    """`x = 1, y = 2` or `1, 2` against the tuple `(1, 2)`: order counts, brackets must be round."""
    if group.value != "()" or len(node.args) != len(group.args):
        return None
    definitions = [_definition(arg) for arg in node.args]
    values = list(node.args)
    if all(definition is not None and definition[0].kind == "symbol" for definition in definitions):
        named = sorted((str(d[0].value), i) for i, d in enumerate(definitions) if d is not None)
        if len({name for name, _ in named}) != len(named):
            return None
        values = [definitions[i][1] for _, i in named]  # type: ignore[index]
    if any(value.kind in ("group", "relation") for value in values):
        return None
    pairs = zip(values, group.args, strict=True)
    return "the same values in order" if all(same(a, b, options, limits) for a, b in pairs) else None


def _same_groups(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    if answer.kind != "group" or gold.kind != "group":
        return None
    if answer.value != gold.value or len(answer.args) != len(gold.args):
        return None
    pairs = zip(answer.args, gold.args, strict=True)
    if all(same(a, b, options, limits) for a, b in pairs):
        return "the same brackets and entries in order"
    return None


def _same_matrix(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    for node in (answer, gold):
        vector = node.kind == "matrix" and 1 in node.value  # type: ignore[operator]
        if node.kind != "matrix" and not (node.kind == "group" and node.value == "()"):
            return None
        other = gold if node is answer else answer
        if node.kind == "matrix" and other.kind == "group" and not vector:
            return None
    if answer.kind == gold.kind and answer.value != gold.value:
        return None
    if len(answer.args) != len(gold.args):
        return None
    pairs = zip(answer.args, gold.args, strict=True)
    return "the same entries" if all(same(a, b, options, limits) for a, b in pairs) else None


def _has_condition(node: Node) -> bool:
    """Whether conditions or unions are in it, which make a list a set of reals and not a list of answers."""
    return any(
        part.kind in ("union", "reals") or (part.kind == "relation" and set(part.value) != {"="})  # type: ignore[arg-type]
        for part in node.walk()
    )


def _same_real_sets(answer: Node, gold: Node, limits: Limits) -> str | None:
    first, second = real_set(answer, limits), real_set(gold, limits)
    if first is None or second is None:
        return None
    return "the same set of real numbers" if equal_real_sets(first, second, limits) else None


def _same_ratio(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    if answer.kind != gold.kind:
        ratio, other = (answer, gold) if answer.kind == "ratio" else (gold, answer)
        if len(ratio.args) != 2 or other.kind in ("unit", "degree", "percent"):
            return None
        quotient = Node("div", ratio.args)
        return same(*((quotient, other) if ratio is answer else (other, quotient)), options, limits)
    if len(answer.args) != len(gold.args):
        return None
    for left, right in zip(answer.args[1:], gold.args[1:], strict=True):
        crosswise = Node("mul", (left, gold.args[0])), Node("mul", (right, answer.args[0]))
        if not equal_values(crosswise[0], crosswise[1], options, limits):
            return None
    return "the same ratio"


# numbers with units


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


def _same_quantity(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
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
        return "the same quantity" if equal_values(value, gold_value, options, limits) else None
    if value.kind == "percent" or gold_value.kind == "percent":
        if unit is not None or gold_unit is not None:
            return None
        return _same_percent(value, gold_value, options, limits)
    if equal_values(value, gold_value, options, limits):
        return "equal in value" if unit is gold_unit is None else "equal in value, a unit missing on one side"
    for side, side_unit, other in ((value, unit, gold_value), (gold_value, gold_unit, value)):
        if side_unit == UNITS["deg"] and any(part == _PI or str(part.value).startswith("arc") for part in other.walk()):
            radians = Node("degree", (side,))
            return "the same angle" if equal_values(radians, other, options, limits) else None
    return None


_PI = Node("constant", (), "pi")


def _same_percent(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    bare_answer = answer.args[0] if answer.kind == "percent" else answer
    bare_gold = gold.args[0] if gold.kind == "percent" else gold
    if equal_values(bare_answer, bare_gold, options, limits):
        return "the same percentage"
    return "a percentage as a fraction" if equal_values(answer, gold, options, limits) else None
