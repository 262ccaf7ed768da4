"""One check, in order: find the answer, compare plain numbers, compare tokens, parse, compare trees.

`decide` runs in the caller's process under small limits and raises `NeedsWorker` where these do not suffice;
`decide_deeply` is what a worker runs instead, with sympy and large limits, and is killed when it takes too long.
"""

import functools
from collections.abc import Callable
from fractions import Fraction

from .compare.trees import same
from .expression import Kind, Node, ParseError, Undecided, number
from .extract.response import extract
from .limits import IN_PROCESS, IN_WORKER, Limits, NeedsWorker, OutsideDomain
from .parse.fastpath import equal_numbers, plain_number
from .parse.normalise import fold, tidy
from .parse.reading import readings
from .verdict import Options

_LONGEST_IN_PROCESS = 3_000  # characters of an answer that is parsed in the caller's process
_LONGEST = 300_000
_PROBLEMS = (Undecided, OutsideDomain, RecursionError, ArithmeticError, ValueError, MemoryError)

Step = Callable[[str], None]
Decision = tuple[str, str]  # status and reason


def _ignore(_: str) -> None:
    return None


def decide(answer: str, gold: str, options: Options, explain: Step = _ignore, *, reuse: bool = True) -> Decision:
    """The status and reason for an extracted answer; `reuse` keeps parsed answers for the next time.

    Raises:
        NeedsWorker: deciding takes more than the caller's process should spend.
    """
    quick = decide_at_once(answer, gold, options)
    if quick is not None:
        return quick
    if len(answer) > _LONGEST_IN_PROCESS or len(gold) > _LONGEST_IN_PROCESS:
        raise NeedsWorker("a long answer")
    return _by_trees(answer, gold, options, IN_PROCESS, _cached_read if reuse else readings, explain)


def decide_at_once(answer: str, gold: str, options: Options) -> Decision | None:
    """A decision that needs no tree, or None."""
    if not answer or answer.isspace():
        return "unparsed", "the answer is empty"
    if answer == gold:
        return "correct", "the same text"
    plain, plain_gold = plain_number(answer), plain_number(gold)
    if plain is not None and plain_gold is not None:
        if equal_numbers(plain, plain_gold):
            return "correct", "the same number"
        if not (options.relative_tolerance or options.absolute_tolerance or "," in answer or "," in gold):
            return "wrong", "different numbers"
    if len(answer) > _LONGEST or len(gold) > _LONGEST:
        return "unparsed", f"an answer of {max(len(answer), len(gold)):,} characters is longer than any that is read"
    return None


def decide_deeply(answer: str, gold: str, options: Options) -> Decision:
    """As `decide`, with large limits and sympy for what the bounded arithmetic does not cover; only in a worker."""
    read_deep = functools.partial(readings, max_depth=2_000)
    return _by_trees(answer, gold, options, IN_WORKER, read_deep, _ignore)


@functools.lru_cache(maxsize=16_384)
def _cached_read(answer: str) -> tuple[Node, ...]:
    return readings(answer)


def _by_trees(
    answer: str, gold: str, options: Options, limits: Limits, reader: Callable[[str], tuple[Node, ...]], explain: Step
) -> Decision:
    found: list[tuple[Node, ...]] = []
    for text, status, name in ((gold, "error", "gold"), (answer, "unparsed", "answer")):
        try:
            found.append(reader(text))
        except (ParseError, RecursionError) as error:
            if _folded(answer) == _folded(gold):
                return "correct", "the same text after normalising"
            if limits is IN_PROCESS and (isinstance(error, RecursionError) or "deeper" in str(error)):
                raise NeedsWorker(str(error)) from error
            return status, f"the {name} {_short(text)} cannot be read: {error}"
    gold_trees, trees = found
    if explain is not _ignore:
        explain(f"read as    {' or '.join(map(describe, trees))}")
        explain(f"gold as    {' or '.join(map(describe, gold_trees))}")
    problem: Exception | None = None
    for tree in trees:
        for gold_tree in gold_trees:
            try:
                rule = same(tree, gold_tree, options, limits)
            except NeedsWorker as error:
                if limits is IN_PROCESS:
                    raise
                problem = error
                continue
            except _PROBLEMS as error:
                problem = error
                continue
            if rule is not None:
                return "correct", rule
    if problem is None:
        return "wrong", "not the same by any rule"
    if isinstance(problem, RecursionError) and limits is IN_PROCESS:
        raise NeedsWorker("a deep expression") from problem
    return _undecided(problem, trees, gold_trees, limits)


def _undecided(problem: Exception, trees: tuple[Node, ...], gold_trees: tuple[Node, ...], limits: Limits) -> Decision:
    """Whose fault it is that a comparison has no outcome: the gold's (error) or the response's (unparsed)."""
    message = str(problem) or type(problem).__name__
    gold_is_fine = any(_agrees_with_itself(tree, limits) for tree in gold_trees)
    if not gold_is_fine:
        return "error", f"the gold has no value within the limits: {message}"
    return "unparsed", f"the answer has no value within the limits: {message}"


def _agrees_with_itself(tree: Node, limits: Limits) -> bool:
    """Whether a tree can be evaluated at all: compared with itself in another form."""
    if tree.kind in (Kind.TEXT, Kind.CHOICE, Kind.TIME, Kind.DATE):
        return True
    try:
        probe = (
            Node(Kind.ADD, (tree, number(0)))
            if tree.kind not in (Kind.LIST, Kind.SET, Kind.GROUP, Kind.RELATION, Kind.UNION)
            else tree
        )
        return same(probe, tree, Options(), limits) is not None
    except _PROBLEMS:
        return False


def _folded(text: str) -> str:
    return " ".join(tidy(fold(text)).replace(r"\left", "").replace(r"\right", "").split())


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def describe(node: Node) -> str:
    """A tree on one line, for people."""
    if not node.args:
        if isinstance(node.value, Fraction) and max(node.value.numerator, node.value.denominator) > 10**60:
            return "a long number"
        return f"{node.kind} {node.value}" if node.value is not None else node.kind
    inner = ", ".join(describe(arg) for arg in node.args[:12]) + (", ..." if len(node.args) > 12 else "")
    label = node.kind if node.value is None or node.kind == Kind.UNIT else f"{node.kind} {node.value}"
    return f"{label}({inner})"


def gold_answer(gold: str) -> str:
    """The answer of a gold that may be a whole solution: its box or what follows `####`, else the text itself."""
    if "\\boxed" in gold or "####" in gold:
        found = extract(gold).answer
        if found is not None:
            return found
    return gold
