"""Whether two parsed answers are the same answer: which rule applies to which kinds of trees.

`same(answer, gold, ...)` returns the rule that found them equal, or None. The rules are in `wordings`, `relations`,
`lists`, `quantities`; numbers and expressions go to `values`.
"""

from .definitions import is_name
from .expression import Node
from .judge import Judge
from .limits import Limits
from .lists import same_groups, same_lists, same_matrix, same_ratio, same_real_sets
from .quantities import same_quantity
from .relations import same_relations, same_residue
from .verdict import Options
from .wordings import same_choice, same_words


def same(answer: Node, gold: Node, options: Options, limits: Limits) -> str | None:
    """The rule by which two answers are the same, None where they differ.

    Raises:
        Undecided: a value is out of reach (`NeedsWorker` where a worker may reach it).
    """
    return _same_trees(answer, gold, Judge(_same_trees, options, limits))


def _same_trees(answer: Node, gold: Node, judge: Judge) -> str | None:
    if answer == gold:
        return "the same expression"
    names = _solved_for(answer), _solved_for(gold)
    if names[0] and names[1] and names[0] != names[1]:
        return None
    answer, gold = _spread(_both_signs(answer, gold)), _spread(_both_signs(gold, answer))
    if answer == gold:
        return "the same expression"
    if {answer.kind, gold.kind} & {"group", "list"}:
        answer, gold = _without_point_name(answer), _without_point_name(gold)
    kinds = {answer.kind, gold.kind}
    if "choice" in kinds:
        return same_choice(answer, gold, judge)
    if kinds & {"text", "time", "date"}:
        return same_words(answer, gold)
    if "modulo" in kinds:
        return same_residue(answer, gold, judge)
    if kinds & {"relation", "builder"}:
        return same_relations(answer, gold, judge)
    if "matrix" in kinds:
        return same_matrix(answer, gold, judge)
    if kinds & {"list", "set"}:
        return same_lists(answer, gold, judge)
    if kinds & {"union", "intersection", "difference", "reals", "emptyset"}:
        return same_real_sets(answer, gold, judge.limits)
    if "group" in kinds:
        return same_groups(answer, gold, judge)
    if "ratio" in kinds:
        return same_ratio(answer, gold, judge)
    return same_quantity(answer, gold, judge)


def _spread(node: Node) -> Node:
    """An answer with `\\pm` written out, `x = 1, 2` as `1, 2`, sums and multiples of matrices carried out."""
    if any(part.kind in ("pm", "mp") for part in node.walk()):
        if node.kind in ("list", "set"):
            items: list[Node] = []
            for arg in node.args:
                spread = _spread(arg)
                items.extend(spread.args if spread.kind == "list" and arg.kind != "list" else (spread,))
            return Node(node.kind, tuple(items), node.value)
        if node.kind == "relation" and node.value == ("=",) and is_name(node.args[0]):
            return _spread(node.args[1])
        return Node("list", (_signed(node, 1), _signed(node, -1)), "or")
    if node.kind == "list" and node.args[0].kind == "relation" and node.args[0].value == ("=",):
        first, rest = node.args[0], node.args[1:]
        if is_name(first.args[0]) and not any(arg.kind == "relation" for arg in rest):
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


def _solved_for(node: Node) -> str | None:
    """The unknown of `x = 1, 2`, `x = \\pm 1`, `x \\in (1, 2)`; their names are left out below."""
    relation = node.args[0] if node.kind == "list" else node
    is_one = node.kind == "relation" or not any(arg.kind == "relation" for arg in node.args[1:])
    if relation.kind != "relation" or not is_one or relation.args[0].kind != "symbol":
        return None
    several = node.kind == "list" or any(part.kind in ("pm", "mp") for part in relation.args[1].walk())
    return str(relation.args[0].value) if relation.value == ("in",) or (relation.value == ("=",) and several) else None


def _both_signs(node: Node, other: Node) -> Node:
    """`|x| = 3` as `x = \\pm 3` where it is compared with an equation or several."""
    is_absolute = node.kind == "relation" and node.value == ("=",) and node.args[0].kind == "call"
    if not is_absolute or node.args[0].value != "abs" or other.kind not in ("relation", "list"):
        return node
    if node.args[0].args[0].kind != "symbol" or any(part.kind == "call" for part in other.walk()):
        return node
    return Node("relation", (node.args[0].args[0], Node("pm", (node.args[1],))), ("=",))


def _without_point_name(node: Node) -> Node:
    """The coordinates of a named point, `A(1, 2)`."""
    if node.kind == "call" and len(node.args) > 1 and str(node.value).removeprefix("opaque ")[:1].isupper():
        return Node("group", node.args, "()")
    if node.kind == "list":
        return Node("list", tuple(_without_point_name(arg) for arg in node.args), node.value)
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
