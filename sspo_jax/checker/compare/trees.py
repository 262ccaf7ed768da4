"""Whether two parsed answers are the same answer: which rule applies to which kinds of trees.

`same(answer, gold, ...)` returns the rule that found them equal, or None. The rules are in `wordings`, `conditions`,
`relations`, `lists`, `quantities`; numbers and expressions go to `evaluate.values`.
"""

from ..expression import Kind, Node, is_equation
from ..limits import Limits
from ..verdict import Options
from .conditions import same_but_for_a_name, same_cases, same_conditioned, same_proposition, with_conditions
from .definitions import is_name
from .forms import as_vector, matrix_value, signed, with_derivatives_alike
from .judge import Judge
from .lists import same_groups, same_lists, same_matrix, same_ratio, same_real_sets
from .quantities import same_quantity
from .realsets import of_integers
from .relations import same_relations, same_residue
from .wordings import same_choice, same_letter, same_words

_SETS = {Kind.UNION, Kind.INTERSECTION, Kind.DIFFERENCE, Kind.REALS, Kind.EMPTYSET}


def same(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    """The rule by which two answers are the same, None where they differ.

    Raises:
        Undecided: a value is out of reach (`NeedsWorker` where a worker may reach it).
    """
    if same_letter(answer, gold):
        return "the same choice letter"
    answer, gold = with_derivatives_alike(answer, gold)
    return _same_trees(answer, gold, Judge(_same_trees, options, limits))


def _same_trees(answer: Node, gold: Node, judge: Judge) -> str | None:
    if answer == gold:
        return "the same expression"
    if with_conditions(answer) or with_conditions(gold):
        return same_conditioned(answer, gold, judge)
    names = _solved_for(answer), _solved_for(gold)
    if names[0] and names[1] and names[0] != names[1]:
        return None
    if answer.args or gold.args:
        answer, gold = as_vector(answer, gold), as_vector(gold, answer)
    answer, gold = _spread(_both_signs(answer, gold)), _spread(_both_signs(gold, answer))
    if answer == gold:
        return "the same expression"
    if Kind.BUILDER in (answer.kind, gold.kind):
        answer, gold = of_integers(answer, judge.limits), of_integers(gold, judge.limits)
    kinds = {answer.kind, gold.kind}
    if kinds & {Kind.GROUP, Kind.LIST}:
        answer, gold = _without_point_name(answer), _without_point_name(gold)
        kinds = {answer.kind, gold.kind}
    if Kind.CHOICE in kinds:
        return same_choice(answer, gold, judge)
    if kinds & {Kind.TEXT, Kind.TIME, Kind.DATE}:
        return same_words(answer, gold)
    if Kind.MODULO in kinds:
        return same_residue(answer, gold, judge)
    if kinds & {Kind.RELATION, Kind.BUILDER}:
        return same_relations(answer, gold, judge) or same_but_for_a_name(answer, gold, judge)
    if Kind.CASES in kinds:
        return same_cases(answer, gold, judge)
    if Kind.LOGIC in kinds:
        return same_proposition(answer, gold, judge)
    if Kind.MATRIX in kinds:
        return same_matrix(answer, gold, judge)
    if kinds & {Kind.LIST, Kind.SET}:
        return same_lists(answer, gold, judge)
    if kinds & _SETS:
        return same_real_sets(answer, gold, judge.limits)
    if Kind.GROUP in kinds:
        return same_groups(answer, gold, judge)
    if Kind.RATIO in kinds:
        return same_ratio(answer, gold, judge)
    return same_quantity(answer, gold, judge) or same_but_for_a_name(answer, gold, judge)


def _spread(node: Node) -> Node:
    """An answer with `\\pm` written out, `x = 1, 2` as `1, 2`, sums and products of matrices carried out."""
    if not node.args:
        return node
    parts = node.walk()
    if any(part.kind in (Kind.PM, Kind.MP) for part in parts):
        if node.kind in (Kind.LIST, Kind.SET):
            items: list[Node] = []
            for arg in node.args:
                spread = _spread(arg)
                items.extend(spread.args if spread.kind is Kind.LIST and arg.kind is not Kind.LIST else (spread,))
            return node.with_args(tuple(items))
        if is_equation(node) and is_name(node.args[0]):
            return _spread(node.args[1])
        joiner = "and" if node.kind is Kind.RELATION and node.value == ("!=",) else "or"
        return Node(Kind.LIST, (signed(node, 1), signed(node, -1)), joiner)
    if node.kind is Kind.LIST and is_equation(node.args[0]):
        first, rest = node.args[0], node.args[1:]
        if is_name(first.args[0]) and not any(arg.kind is Kind.RELATION for arg in rest):
            return Node(Kind.LIST, (first.args[1], *rest), node.value)
    if node.kind is Kind.LIST and node.value == "and" and all(arg.kind is Kind.UNIT for arg in node.args):
        units = [arg.value for arg in node.args]  # "1 hour and 30 minutes" is one quantity
        if len(set(units)) == len(units) and len({unit.dimensions for unit in units}) == 1:
            return Node(Kind.ADD, node.args)
    if node.kind is Kind.ADD and len(node.args) == 2 and node.args[0].kind in (Kind.REALS, Kind.UNION, Kind.GROUP):
        removed = node.args[1]
        if removed.kind is Kind.NEG and removed.args[0].kind is Kind.SET:
            return Node(Kind.DIFFERENCE, (node.args[0], removed.args[0]))
    is_product = node.kind in (Kind.ADD, Kind.MUL, Kind.NEG, Kind.DIV, Kind.POW)
    return matrix_value(node) if is_product and any(part.kind in (Kind.MATRIX, Kind.GROUP) for part in parts) else node


def _solved_for(node: Node) -> str | None:
    """The unknown of `x = 1, 2`, `x = \\pm 1`, `x \\in (1, 2)`; their names are left out below."""
    relation = node.args[0] if node.kind is Kind.LIST else node
    is_one = node.kind is Kind.RELATION or not any(arg.kind is Kind.RELATION for arg in node.args[1:])
    if relation.kind is not Kind.RELATION or not is_one or relation.args[0].kind is not Kind.SYMBOL:
        return None
    several = node.kind is Kind.LIST or any(part.kind in (Kind.PM, Kind.MP) for part in relation.args[1].walk())
    return str(relation.args[0].value) if relation.value == ("in",) or (is_equation(relation) and several) else None


def _both_signs(node: Node, other: Node) -> Node:
    """`|x| = 3` as `x = \\pm 3` where it is compared with an equation or several."""
    if not is_equation(node) or node.args[0].kind is not Kind.CALL or node.args[0].value != "abs":
        return node
    if other.kind not in (Kind.RELATION, Kind.LIST) or any(part.kind is Kind.CALL for part in other.walk()):
        return node
    inside = node.args[0].args[0]
    return Node(Kind.RELATION, (inside, Node(Kind.PM, (node.args[1],))), ("=",)) if inside.kind is Kind.SYMBOL else node


def _without_point_name(node: Node) -> Node:
    """The coordinates of a named point, `A(1, 2)`."""
    if node.kind is Kind.CALL and len(node.args) > 1 and str(node.value).removeprefix("opaque ")[:1].isupper():
        return Node(Kind.GROUP, node.args, "()")
    if node.kind is Kind.LIST:
        return node.with_args(tuple(_without_point_name(arg) for arg in node.args))
    return node
