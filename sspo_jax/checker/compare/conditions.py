"""Answers with conditions, functions in pieces, and propositions."""

from ..evaluate.values import free_symbols
from ..expression import Kind, Node, is_equation, negated, number, symbol
from .forms import replaced
from .judge import Judge

_INTEGERS = frozenset(f"mathbb {name}" for name in "ZN")
_OTHERWISE = Node(Kind.TEXT, (), "otherwise")


def with_conditions(node: Node) -> tuple[Node, tuple[Node, ...]] | None:
    """An answer and the conditions on its variables, also of a set builder; None where it has none."""
    if node.kind is Kind.CONDITIONED:
        return node.args[0], node.args[1:]
    if node.kind is not Kind.BUILDER:
        return None
    form, condition = node.args
    if form.kind is not Kind.SYMBOL:
        if form.kind is Kind.RELATION:  # {x in R | x > 2} is a set of reals
            return None
        return form, condition.args if condition.kind in (Kind.LIST, Kind.CONDITIONED) else (condition,)
    if condition.kind is Kind.CONDITIONED and is_equation(condition.args[0]) and condition.args[0].args[0] == form:
        return condition.args[0].args[1], condition.args[1:]
    return None


def same_conditioned(answer: Node, gold: Node, judge: Judge) -> str | None:
    """Answers without their conditions, which may be missing on one side; an integer may have any name."""
    main, conditions = with_conditions(answer) or (answer, ())
    gold_main, gold_conditions = with_conditions(gold) or (gold, ())
    family, gold_family = _parameters(conditions), _parameters(gold_conditions)
    own, gold_own = free_symbols(main) - free_symbols(gold_main), free_symbols(gold_main) - free_symbols(main)
    if len(own) == len(gold_own) == 1 and (own <= family or gold_own <= gold_family):
        renaming = {own.pop(): symbol(gold_own.pop())}
        main, conditions = replaced(main, renaming), tuple(replaced(c, renaming) for c in conditions)
    if conditions and gold_conditions and not _compatible(conditions, gold_conditions, judge):
        return None
    if not (conditions and gold_conditions) and not _is_about(main, conditions) & _is_about(gold_main, gold_conditions):
        return None  # "7 if x = 2" is not 7
    rule = judge.same(main, gold_main)
    if rule is None and (names := _parameters(conditions) | gold_family):
        rule = next(("the same family" for name in names if _same_family(main, gold_main, name, judge)), None)
    return rule and f"{rule}, its conditions " + ("alike" if conditions and gold_conditions else "on one side")


def same_but_for_a_name(answer: Node, gold: Node, judge: Judge) -> str | None:
    """Whether one letter that only stands for any integer, or for any constant, has another name.

    Any integer: k, l, m or n where an angle is in it, `\\frac\\pi4+k\\pi`. Any constant: one side adds C.
    """
    own, gold_own = free_symbols(answer) - free_symbols(gold), free_symbols(gold) - free_symbols(answer)
    if len(own) != 1 or len(gold_own) != 1:
        return None
    name, gold_name = own.pop(), gold_own.pop()
    is_integer = {name, gold_name} <= _ANY_INTEGER and all(map(_has_angle, (answer, gold)))
    is_constant = "C" in (name, gold_name) and {name, gold_name} <= _ANY_CONSTANT
    is_constant = is_constant and _is_added(name, answer) and _is_added(gold_name, gold)
    if not (is_integer or is_constant) or judge.same(replaced(answer, {name: symbol(gold_name)}), gold) is None:
        return None
    return "the same but for the name of an integer" if is_integer else "the same but for the name of a constant"


_ANY_INTEGER = frozenset("klmn")
_ANY_CONSTANT = frozenset(("C", "c", "k", "K", "C_1", "c_1", "C_0"))


def _has_angle(node: Node) -> bool:
    """Whether it is a sum in one letter with pi or degrees in it."""
    node = node.args[-1] if is_equation(node) else node
    is_family = node.kind is Kind.ADD and len(free_symbols(node)) == 1
    return is_family and any(part.kind is Kind.DEGREE or part.value == "pi" for part in node.walk())


def _is_added(name: str, node: Node) -> bool:
    node = node.args[-1] if is_equation(node) else node
    return node.kind is Kind.ADD and symbol(name) in node.args and node.walk().count(symbol(name)) == 1


def _is_about(main: Node, conditions: tuple[Node, ...]) -> bool:
    """Whether each condition is about a variable of the answer, so that it may go without saying."""
    used: set[str] = set()
    for name in free_symbols(main):
        used |= {name, name.partition("_")[2]}
    return all(condition.kind is Kind.TEXT or free_symbols(condition) & used for condition in conditions)


def _parameters(conditions: tuple[Node, ...]) -> set[str]:
    """The variables that run through the integers."""
    found: set[str] = set()
    for condition in conditions:
        if condition.kind is Kind.RELATION and condition.value == ("in",):
            inside = {str(part.value) for part in condition.args[1].walk() if part.kind is Kind.SYMBOL}
            if inside & _INTEGERS:
                found |= free_symbols(condition.args[0])
    return found


def _compatible(first: tuple[Node, ...], second: tuple[Node, ...], judge: Judge) -> bool:
    """Whether no condition contradicts the one on the same variable; memberships and inequalities are not compared."""
    for one in first:
        for other in second:
            if one.kind is not Kind.RELATION or other.kind is not Kind.RELATION:
                continue
            about = [free_symbols(c) - {str(p.value) for p in c.walk() if " " in str(p.value)} for c in (one, other)]
            alike = ("in" in one.value) == ("in" in other.value)
            if about[0] == about[1] and alike and judge.same(one, other) is None:
                return False
    return True


def _same_family(first: Node, second: Node, name: str, judge: Judge) -> bool:
    """Whether `a + bk` over all integers k is the same set on both sides: steps alike, starts some steps apart."""
    first, second = (node.args[-1] if is_equation(node) else node for node in (first, second))
    if (
        first.kind in (Kind.LIST, Kind.SET, Kind.GROUP)
        or free_symbols(first) != {name}
        or free_symbols(second) != {name}
    ):
        return False

    def at(node: Node, value: int) -> Node:
        return replaced(node, {name: number(value)})

    def minus(one: Node, other: Node) -> Node:
        return Node(Kind.ADD, (one, negated(other)))

    steps = [minus(at(node, 1), at(node, 0)) for node in (first, second)]
    if not all(
        judge.equal(minus(at(node, 3), at(node, 0)), Node(Kind.MUL, (number(3), step)))
        for node, step in zip((first, second), steps, strict=True)
    ):
        return False
    if judge.equal(steps[1], number(0)) or not (
        judge.equal(steps[0], steps[1]) or judge.equal(steps[0], negated(steps[1]))
    ):
        return False
    offset = Node(Kind.DIV, (minus(at(first, 0), at(second, 0)), steps[1]))
    return judge.equal(
        offset, Node(Kind.CALL, (Node(Kind.ADD, (offset, Node(Kind.FRAC, (number(1), number(2))))),), "floor")
    )


def same_cases(answer: Node, gold: Node, judge: Judge) -> str | None:
    """Functions in pieces: the same values under the same conditions, in any order."""
    is_same = answer.kind is gold.kind and judge.same_in_any_order(
        answer.args, gold.args, lambda piece, other: _same_piece(piece, other, judge)
    )
    return "the same pieces" if is_same else None


def _same_piece(piece: Node, other: Node, judge: Judge) -> bool:
    (value, *conditions), (other_value, *others) = piece.args, other.args
    if judge.same(value, other_value) is None:
        return False
    return _OTHERWISE in conditions + others or judge.same_in_any_order(conditions, others)


def same_proposition(answer: Node, gold: Node, judge: Judge) -> str | None:
    """`p \\land q`: the same operator, what it joins in any order."""
    is_same = answer.kind is gold.kind and answer.value == gold.value
    return "the same proposition" if is_same and judge.same_in_any_order(answer.args, gold.args) else None
