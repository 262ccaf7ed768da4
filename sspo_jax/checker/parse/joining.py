"""How the parts of an answer make one tree: lists, alternatives, propositions, chains of relations, conditions."""

from ..expression import Kind, Node, ParseError

_CONDITIONS = frozenset(["in", "notin", "<", "<=", ">", ">=", "!=", "=", "~", "subset"])


def joined(items: list[Node], joiners: list[str]) -> Node:
    """Items as one node: a list by its last word, alternatives of several equations, or a proposition."""
    if len(items) == 1:
        return items[0]
    logical = {joiner for joiner in joiners if joiner in ("land", "lor")}
    if logical:
        if any(item.kind in (Kind.RELATION, Kind.UNION, Kind.GROUP, Kind.SET, Kind.CONDITIONED) for item in items):
            joiners = [{"land": "and", "lor": "or"}.get(joiner, joiner) for joiner in joiners]
        else:
            return _proposition(items, joiners)
    if "or" in joiners and {",", "and"} & set(joiners):
        rows: list[list[Node]] = [[items[0]]]
        for joiner, item in zip(joiners, items[1:], strict=True):
            if joiner == "or":
                rows.append([item])
            else:
                rows[-1].append(item)
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 and all(map(_is_named_value, items)):
            return Node(Kind.LIST, tuple(Node(Kind.LIST, tuple(row), ",") for row in rows), "or")
    kinds = [joiner for joiner in joiners if joiner != ","]
    return Node(Kind.LIST, tuple(items), kinds[-1] if kinds else ",")


def related(sides: list[Node], operators: list[str]) -> Node:
    """A chain of relations; `x < 1 \\cup x > 2` is two of them, joined by "or"."""
    for place, side in enumerate(sides[1:-1], 1):
        if side.kind is Kind.UNION and side.args[1].kind is Kind.SYMBOL:
            left = Node(Kind.RELATION, (*sides[:place], side.args[0]), tuple(operators[:place]))
            return Node(Kind.LIST, (left, related([side.args[1], *sides[place + 1 :]], operators[place:])), "or")
    return Node(Kind.RELATION, tuple(sides), tuple(operators)) if operators else sides[0]


def _proposition(items: list[Node], joiners: list[str]) -> Node:
    """`p \\land q \\lor r`; \\land binds tighter."""
    if set(joiners) - {"land", "lor"}:
        raise ParseError("a proposition stands in a list")
    parts: list[list[Node]] = [[items[0]]]
    for joiner, item in zip(joiners, items[1:], strict=True):
        if joiner == "lor":
            parts.append([item])
        else:
            parts[-1].append(item)
    conjunctions = [part[0] if len(part) == 1 else Node(Kind.LOGIC, tuple(part), "land") for part in parts]
    return conjunctions[0] if len(parts) == 1 else Node(Kind.LOGIC, tuple(conjunctions), "lor")


def _is_named_value(node: Node) -> bool:
    return node.kind is Kind.RELATION and node.value == ("=",) and node.args[0].kind in (Kind.SYMBOL, Kind.GROUP)


def is_condition_on(node: Node, answers: list[Node]) -> bool:
    """Whether the last item of a list says what a variable of those before it may be: `\\pi/4 + k\\pi, k \\in Z`."""
    if node.kind is not Kind.RELATION or not set(node.value) <= _CONDITIONS or set(node.value) <= {"=", "~"}:
        return False
    subject = next((arg for arg in node.args if arg.kind in (Kind.SYMBOL, Kind.GROUP, Kind.LIST)), None)
    if subject is None or any(part.kind not in (Kind.SYMBOL, Kind.GROUP, Kind.LIST) for part in subject.walk()):
        return False
    names_in_it = {part.value for part in subject.walk() if part.kind is Kind.SYMBOL}
    used: set[str] = set()
    for answer in answers:
        is_of_numbers = node.value == ("in",) and node.args[1].kind in (Kind.SYMBOL, Kind.REALS)
        if answer.kind is Kind.RELATION and answer.value != ("=",) and is_of_numbers:
            used |= {part.value for part in answer.walk() if part.kind is Kind.SYMBOL}  # 2 <= n <= 5, n in Z
            continue
        if answer.kind is Kind.RELATION and answer.value != ("=",):
            return is_condition_on(answer, answers[: answers.index(answer)]) and names_in_it != set()
        values = answer.args[1:] if answer.kind is Kind.RELATION else (answer,)
        for part in (part for value in values for part in value.walk()):
            if part.kind is Kind.SYMBOL:
                used |= {str(part.value), str(part.value).partition("_")[2]}
    return bool(names_in_it) and names_in_it <= used
