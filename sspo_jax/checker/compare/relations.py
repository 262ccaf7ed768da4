"""When equations, inequalities, definitions and residues are the same, and when one stands for a bare value."""

from ..evaluate.values import constant_ratio, equal_values, exact_value, free_symbols
from ..expression import Kind, Node, negated, number, symbol
from ..limits import Limits
from ..verdict import Options
from .definitions import definition, is_consistent, is_name, rounded
from .forms import as_vector, replaced
from .judge import Judge
from .lists import same_real_sets
from .realsets import is_real_set


def same_relations(answer: Node, gold: Node, judge: Judge) -> str | None:
    if answer.kind == gold.kind == Kind.RELATION:
        rule = _same_two_relations(answer, gold, judge)
        if rule is not None:
            return rule
    for node, other, is_gold in ((answer, gold, False), (gold, answer, True)):

        def same(value: Node, other: Node = other, is_gold: bool = is_gold) -> str | None:
            return judge.same(other, value) if is_gold else judge.same(value, other)

        if node.kind == Kind.RELATION and node.value == ("in",) and is_name(node.args[0]):
            return same(node.args[1])
        if other.kind == Kind.RELATION:
            continue
        if (defined := definition(node)) is not None:
            name, value = defined[0], as_vector(defined[1], other)
            is_point = name.kind != Kind.GROUP and other.kind == Kind.GROUP and value.kind != Kind.GROUP
            if is_point or not is_consistent(node, judge):
                return None
            about = rounded(node)
            rule = same(value) or (same(about) if about is not None and about is not value else None)
            return rule and f"{rule}, the name before = left out"
        if _is_identity(node, judge):
            rule = same(node.args[-1])
            return rule and f"{rule}, as both sides of an identity"
    named = [free_symbols(node) - {"_"} for node in (answer, gold)]
    if named[0] and named[1] and named[0] != named[1]:
        return None
    unlike = answer.kind is gold.kind is Kind.RELATION and _calls(answer) != _calls(gold)  # x > 0 is not f(x) > 0
    if is_real_set(answer) and is_real_set(gold) and not unlike:
        return same_real_sets(answer, gold, judge.limits)
    return None


def _is_identity(node: Node, judge: Judge) -> bool:
    """Whether a relation equates two forms of one expression, `(x + 1)^2 = x^2 + 2x + 1`."""
    if node.kind != Kind.RELATION or node.value != ("=",) or any(part.kind in _NO_VALUE for part in node.walk()):
        return False
    return node.args[0] != node.args[1] and judge.equal(*node.args)


_NO_VALUE = frozenset(
    [Kind.TEXT, Kind.GROUP, Kind.SET, Kind.LIST, Kind.MATRIX, Kind.UNION, Kind.RATIO, Kind.CHOICE, Kind.BUILDER]
)


def same_residue(answer: Node, gold: Node, judge: Judge) -> str | None:
    """`3 (mod 7)`: the modulus may be missing on one side, residues that differ by a multiple of it are the same."""
    if answer.kind != gold.kind:
        bare = [node.args[0] if node.kind == Kind.MODULO else node for node in (answer, gold)]
        modulo, other = (answer, gold) if answer.kind == Kind.MODULO else (gold, answer)
        rule = None if _is_reducible(modulo, judge) else judge.same(bare[0], bare[1])
        return (rule and f"{rule}, the modulus missing on one side") or _same_remainder(modulo, other, judge)
    if judge.same(answer.args[1], gold.args[1]) is None:
        return None
    rule = judge.same(answer.args[0], gold.args[0])
    if rule is not None:
        return rule
    defined = [definition(node.args[0]) for node in (answer, gold)]
    sides = [found[1] if found else node.args[0] for found, node in zip(defined, (answer, gold), strict=True)]
    names = [found and found[0] for found in defined]
    if names[0] != names[1] or any(side.kind == Kind.RELATION or free_symbols(side) for side in sides):
        return None
    value, gold_value, modulus = (exact_value(node, judge.limits) for node in (*sides, gold.args[1]))
    if value is None or gold_value is None or not modulus:
        return None
    steps = (value - gold_value) / modulus
    return "the same residue" if steps.denominator == 1 else None


def _is_reducible(modulo: Node, judge: Judge) -> bool:
    """Whether `17 \\bmod 5` stands for another number."""
    if any(node.kind == Kind.RELATION or free_symbols(node) for node in modulo.args):
        return False
    value, modulus = (exact_value(arg, judge.limits) for arg in modulo.args)
    return value is not None and modulus is not None and value >= modulus


def _same_remainder(modulo: Node, other: Node, judge: Judge) -> str | None:
    """`17 \\bmod 5` against `2`."""
    if any(node.kind == Kind.RELATION or free_symbols(node) for node in (*modulo.args, other)):
        return None
    value, modulus = (exact_value(arg, judge.limits) for arg in modulo.args)
    if value is None or not modulus or modulus < 0:
        return None
    return "the remainder" if judge.equal(number(value % modulus), other) else None


def _same_two_relations(answer: Node, gold: Node, judge: Judge) -> str | None:
    first, second = definition(answer), definition(gold)
    if first is not None and second is not None:
        names = _renamed(first[0]), _renamed(second[0])
        if first[0] == second[0]:
            return judge.same(first[1], second[1])
        if names[0][0] == names[1][0] and len(names[0][1]) == len(names[1][1]) > 0:
            renaming = dict(zip(names[0][1], names[1][1], strict=True))
            if (free_symbols(first[1]) - set(renaming)) & set(renaming.values()):
                return None  # f(y) = 2x is not f(x) = 2x
            return judge.same(replaced(first[1], {a: symbol(b) for a, b in renaming.items()}), second[1])
        if first[0].kind == Kind.TEXT or second[0].kind == Kind.TEXT:
            return None
    if len(answer.value) == len(gold.value) == 1:
        return _same_single_relation(answer, gold, judge.limits)
    left, right = _ascending(answer), _ascending(gold)
    is_same = left.value == right.value and judge.same_in_order(left.args, right.args)
    return "the same chain of relations" if is_same else None


def _same_single_relation(answer: Node, gold: Node, limits: Limits) -> str | None:
    (operator,), (gold_operator,) = answer.value, gold.value
    if operator not in _FLIPPED or gold_operator not in _FLIPPED:
        return None
    scalar_kinds = {Kind.GROUP, Kind.LIST, Kind.SET, Kind.TEXT, Kind.MATRIX, Kind.UNION, Kind.RATIO, Kind.CHOICE}
    if any(arg.kind in scalar_kinds for arg in answer.args + gold.args):
        return None
    if operator == gold_operator == "=" and (slopes := _derivatives(answer)) and slopes == _derivatives(gold):
        return _same_solved(_difference(answer), _difference(gold), max(slopes, key=len), limits)
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


def _derivatives(node: Node) -> set[str]:
    return {str(part.value) for part in node.walk() if part.kind is Kind.SYMBOL and "'" in str(part.value)}


def _same_solved(first: Node, second: Node, name: str, limits: Limits) -> str | None:
    """Whether two equations that are linear in a derivative, `first = 0` and `second = 0`, give the same one."""
    at = [[replaced(node, {name: number(value)}) for value in (0, 1, 2)] for node in (first, second)]
    slopes = [Node(Kind.ADD, (values[1], negated(values[0]))) for values in at]
    for values, slope in zip(at, slopes, strict=True):
        if not equal_values(Node(Kind.ADD, (values[1], slope)), values[2], Options(), limits):
            return None
    crosswise = Node(Kind.MUL, (at[0][0], slopes[1])), Node(Kind.MUL, (at[1][0], slopes[0]))
    return "the same equation for a derivative" if equal_values(*crosswise, Options(), limits) else None


_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _difference(relation: Node) -> Node:
    return Node(Kind.ADD, (relation.args[0], Node(Kind.NEG, (relation.args[1],))))


def _ascending(relation: Node) -> Node:
    operators: tuple[str, ...] = relation.value
    if operators and all(operator in (">", ">=", "=") for operator in operators) and set(operators) != {"="}:
        return Node(Kind.RELATION, relation.args[::-1], tuple(_FLIPPED[operator] for operator in operators[::-1]))
    return relation


def _renamed(name: Node) -> tuple[str, list[str]]:
    """The function of a name such as `f(x)`, and the names of its arguments."""
    if name.kind == Kind.CALL:
        return str(name.value), [str(arg.value) for arg in name.args if arg.kind == Kind.SYMBOL]
    if name.kind == Kind.MUL and len(name.args) == 2:
        return f"opaque {name.args[0].value}", [str(name.args[1].value)]
    return str(name.value), []


def _calls(node: Node) -> set[object]:
    return {part.value for part in node.walk() if part.kind is Kind.CALL and str(part.value).startswith("opaque ")}
