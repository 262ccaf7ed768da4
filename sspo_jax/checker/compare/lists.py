"""When lists, sets, tuples, matrices, ratios and sets of reals are the same."""

from ..expression import Kind, Node, constant
from ..limits import Limits, NeedsWorker, TooLarge
from .definitions import definition, value_of_equation
from .judge import Judge
from .realsets import equal_real_sets, is_real_set, real_set

_MOST_ITEMS = 200


def _unknowns(node: Node) -> set[str]:
    """The variables that the conditions in a set of reals are on."""
    parts = [part for part in node.walk() if part.kind == Kind.RELATION]
    return {str(arg.value) for part in parts for arg in part.args if arg.kind == Kind.SYMBOL}


def _letters(nodes: tuple[Node, ...]) -> set[str] | None:
    """The choice letters that all nodes are, None where one is something else: `ACD` and `A, C, D`."""
    found = {str(node.value) for node in nodes if node.kind in (Kind.SYMBOL, Kind.CHOICE) and not node.args}
    return found if len(found) == len(nodes) and found <= set("ABCDEFGHIJ") else None


def _items(node: Node) -> tuple[Node, ...]:
    return node.args if node.kind in (Kind.LIST, Kind.SET) else (node,)


def same_lists(answer: Node, gold: Node, judge: Judge) -> str | None:
    if is_real_set(answer) and is_real_set(gold) and any(_has_condition(node) for node in (answer, gold)):
        rule = same_real_sets(answer, gold, judge.limits)
        if rule is not None or all(len(_unknowns(node)) <= 1 for node in (answer, gold)):
            return rule
    for node, other in ((answer, gold), (gold, answer)):
        if node.kind == Kind.LIST and other.kind == Kind.GROUP:
            return _list_against_group(node, other, judge)
        if node.kind == Kind.SET and other.kind in (Kind.UNION, Kind.DIFFERENCE, Kind.INTERSECTION, Kind.EMPTYSET):
            return same_real_sets(answer, gold, judge.limits)
    if gold.kind == Kind.LIST and gold.value == "OR" and answer.kind != Kind.LIST:
        rules = (judge.same(answer, alternative) for alternative in gold.args)
        return next((f"{rule}, one of the alternatives" for rule in rules if rule), None)
    for node, other in ((answer, gold), (gold, answer)):
        if node.kind == Kind.LIST and node.value == "or" and other.kind not in (Kind.LIST, Kind.SET):
            is_same = all(judge.same(*((item, gold) if node is answer else (answer, item))) for item in node.args)
            return "the same answer in every form" if is_same else None
        if (
            node.kind == Kind.LIST
            and other.kind == Kind.MUL
            and _letters(node.args) == _letters(other.args) is not None
        ):
            return "the same choice letters"
    left, right = _items(answer), _items(gold)
    if Kind.SET in (answer.kind, gold.kind):
        left, right = _distinct(left, judge), _distinct(right, judge)
    if len(left) != len(right):
        left, right = _flattened(left), _flattened(right)
        if len(left) != len(right):
            return None
    if len(left) > _MOST_ITEMS:
        raise NeedsWorker("a long list") if judge.limits.nodes < 1000 else TooLarge("a list of more than 200 answers")
    is_same = judge.same_in_any_order(left, right, lambda item, wanted: _same_item(item, wanted, judge))
    return "the same answers in any order" if is_same else None


def _same_item(item: Node, wanted: Node, judge: Judge) -> bool:
    if (item.kind == Kind.SET) != (wanted.kind == Kind.SET):
        return False  # inside of a list or set, {1} is not 1
    if item.kind is not Kind.RELATION or wanted.kind is not Kind.RELATION:
        item, wanted = _value(item), _value(wanted)
    return judge.same(item, wanted) is not None


def _value(item: Node) -> Node:
    defined = definition(item)
    return defined[1] if defined is not None else value_of_equation(item) or item


def _flattened(items: tuple[Node, ...]) -> tuple[Node, ...]:
    flat: list[Node] = []
    for item in items:
        flat.extend(item.args if item.kind == Kind.LIST else (item,))
    return tuple(flat)


def _distinct(items: tuple[Node, ...], judge: Judge) -> tuple[Node, ...]:
    kept: list[Node] = []
    for item in items[:_MOST_ITEMS]:
        if not any(judge.same(item, other) for other in kept):
            kept.append(item)
    return tuple(kept) + items[_MOST_ITEMS:]


def _list_against_group(node: Node, group: Node, judge: Judge) -> str | None:
    """`x = 1, y = 2` or `1, 2` against the tuple `(1, 2)`: order counts, brackets must be round."""
    if group.value != "()" or len(node.args) != len(group.args):
        return None
    defined = [found for arg in node.args if (found := definition(arg)) is not None and found[0].kind is Kind.SYMBOL]
    values = node.args
    if len(defined) == len(values):
        if len({str(name.value) for name, _ in defined}) != len(defined):
            return None
        values = tuple(value for _, value in sorted(defined, key=lambda found: str(found[0].value)))
    if any(value.kind in (Kind.GROUP, Kind.RELATION) for value in values):
        return None
    return "the same values in order" if judge.same_in_order(values, group.args) else None


def same_groups(answer: Node, gold: Node, judge: Judge) -> str | None:
    are_groups = answer.kind is gold.kind is Kind.GROUP and answer.value == gold.value
    return (
        "the same brackets and entries in order" if are_groups and judge.same_in_order(answer.args, gold.args) else None
    )


def same_matrix(answer: Node, gold: Node, judge: Judge) -> str | None:
    for node in (answer, gold):
        vector = node.kind == Kind.MATRIX and 1 in node.value
        if node.kind != Kind.MATRIX and not (node.kind == Kind.GROUP and node.value == "()"):
            return None
        other = gold if node is answer else answer
        if node.kind == Kind.MATRIX and other.kind == Kind.GROUP and not vector:
            return None
    is_shaped_alike = answer.kind != gold.kind or answer.value == gold.value
    return "the same entries" if is_shaped_alike and judge.same_in_order(answer.args, gold.args) else None


def _has_condition(node: Node) -> bool:
    """Whether conditions or unions are in it, which make a list a set of reals and not a list of answers."""
    return any(
        part.kind in (Kind.UNION, Kind.REALS) or (part.kind == Kind.RELATION and set(part.value) != {"="})
        for part in node.walk()
    )


def same_real_sets(answer: Node, gold: Node, limits: Limits) -> str | None:
    if any(len(_unknowns(node)) > 1 or constant("i") in node.walk() for node in (answer, gold)):
        return None
    first, second = real_set(answer, limits), real_set(gold, limits)
    if first is None or second is None:
        return None
    return "the same set of real numbers" if equal_real_sets(first, second, limits) else None


def same_ratio(answer: Node, gold: Node, judge: Judge) -> str | None:
    if answer.kind != gold.kind:
        ratio, other = (answer, gold) if answer.kind == Kind.RATIO else (gold, answer)
        if len(ratio.args) != 2 or other.kind in (Kind.UNIT, Kind.DEGREE, Kind.PERCENT):
            return None
        quotient = Node(Kind.DIV, ratio.args)
        return judge.same(*((quotient, other) if ratio is answer else (other, quotient)))
    if len(answer.args) != len(gold.args):
        return None
    for left, right in zip(answer.args[1:], gold.args[1:], strict=True):
        crosswise = Node(Kind.MUL, (left, gold.args[0])), Node(Kind.MUL, (right, answer.args[0]))
        if not judge.equal(crosswise[0], crosswise[1]):
            return None
    return "the same ratio"
