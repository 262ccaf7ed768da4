"""`sspo data audit`: gold answers that a checker cannot rely on, listed with the reason.

A gold is reported when it cannot be read, when it does not match itself or a reformatting of itself, or when it is
ambiguous: prose, several alternatives in one text, commas that may be thousands marks or separators, a stray bracket,
a problem that occurs twice with different answers, a solution whose boxes differ from the gold.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sspo_jax.checker import Verifier
from sspo_jax.checker.expression import Node, ParseError, Undecided
from sspo_jax.checker.parse.reading import has_two_readings, read
from sspo_jax.files import read_json_lines

_ALTERNATIVES = re.compile(r"\\text\s*\{\s*OR\s*\}|\bOR\b")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One gold to look at."""

    id: str
    """Of the problem."""
    answer: str
    """The gold, as given."""
    kind: str
    """`unreadable`, `not itself`, `reformatting`, `prose`, `alternatives`, `two readings`, `repeated`, `solution`,
    `contradiction` or `no value`."""
    detail: str
    """What was found."""


def audit(rows: Sequence[Mapping[str, Any]], *, solutions: bool = True) -> list[Finding]:
    """The findings on problems given as mappings with `id`, `problem`, `answer` and perhaps `solution`."""
    findings = [finding for row in rows for finding in _look_at(row)]
    with Verifier(timeout_seconds=5.0) as verifier:
        findings += _contradictions(rows, verifier)
        findings += _matches(rows, verifier)
        if solutions:
            findings += _solutions([row for row in rows if row.get("solution")], verifier)
    return findings


def reformattings(answer: str) -> list[str]:
    """The same answer as others would write it: spaced, in dollars, with `\\dfrac`, with `\\left` and `\\right`."""
    forms = [f" {answer} ", answer + "."] + ([f"${answer}$"] if "$" not in answer else [])
    if "\\frac" in answer:
        forms.append(answer.replace("\\frac", "\\dfrac"))
    if "\\left" not in answer and answer.startswith("(") and answer.endswith(")"):
        forms.append(f"\\left{answer[:-1]}\\right)")
    if "\\text" not in answer and re.search(r"[-+=]", answer):
        forms.append(re.sub(r"(?<=[\w)}])(?<!\d[eE])([-+=])(?=[\w(\\])", r" \1 ", answer))
    return forms


def _look_at(row: Mapping[str, Any]) -> Iterator[Finding]:
    answer = row["answer"]
    try:
        tree = read(answer)
    except ParseError as error:
        yield Finding(row["id"], answer, "unreadable", str(error))
        return
    if _ALTERNATIVES.search(answer):
        yield Finding(row["id"], answer, "alternatives", "several alternatives in one text")
    elif tree.kind == "text" and len(str(tree.value).split()) > 4:
        yield Finding(row["id"], answer, "prose", "compared word by word")
    if has_two_readings(answer) and read(answer, plain_commas=False) != tree:
        yield Finding(row["id"], answer, "two readings", "its commas may be thousands marks or separators")
    if tree.kind in ("list", "set") and len(set(tree.args)) < len(tree.args):
        yield Finding(row["id"], answer, "repeated", "the same answer twice in a list")
    yield from _without_value(row["id"], answer, tree)


def _without_value(name: str, answer: str, tree: Node) -> Iterator[Finding]:
    from sspo_jax.checker.evaluate.values import exact_value, free_symbols
    from sspo_jax.checker.limits import IN_PROCESS, NotRational, OutsideDomain

    if tree.kind in ("add", "mul", "div", "frac", "pow", "root", "call") and not free_symbols(tree):
        try:
            exact_value(tree, IN_PROCESS)
        except (NotRational, OutsideDomain, Undecided) as error:
            yield Finding(name, answer, "no value", str(error))


def _matches(rows: Sequence[Mapping[str, Any]], verifier: Verifier) -> Iterator[Finding]:
    answers = [row["answer"] for row in rows]
    # A sign or brackets around the whole would change some; a space inside of the box makes the texts differ at least.
    for row, verdict in zip(rows, verifier.verify_batch([_boxed(answer) for answer in answers], answers), strict=True):
        if not verdict.is_correct:
            yield Finding(row["id"], row["answer"], "not itself", f"{verdict.status}: {verdict.reason}")
    pairs = [(row, form) for row in rows for form in reformattings(row["answer"])]
    verdicts = verifier.verify_batch([_boxed(form) for _, form in pairs], [row["answer"] for row, _ in pairs])
    reported = set()
    for (row, form), verdict in zip(pairs, verdicts, strict=True):
        if not verdict.is_correct and row["id"] not in reported:
            reported.add(row["id"])
            yield Finding(row["id"], row["answer"], "reformatting", f"{form!r} is {verdict.status}: {verdict.reason}")


def _solutions(rows: Sequence[Mapping[str, Any]], verifier: Verifier) -> Iterator[Finding]:
    verdicts = verifier.verify_batch([row["solution"] for row in rows], [row["answer"] for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.status not in ("correct", "unparsed"):
            detail = f"the solution arrives at {verdict.extracted!r:.60}: {verdict.status}"
            yield Finding(row["id"], row["answer"], "solution", detail)


def _contradictions(rows: Iterable[Mapping[str, Any]], verifier: Verifier) -> Iterator[Finding]:
    """Problems that occur more than once, with answers that differ."""
    by_problem: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        by_problem["".join(row["problem"].split())].append(row)
    for same in by_problem.values():
        first = same[0]["answer"]
        if any(not verifier.verify(_boxed(row["answer"]), first).is_correct for row in same[1:]):
            for row in same:
                others = ", ".join(other["id"] for other in same if other is not row)
                yield Finding(row["id"], row["answer"], "contradiction", f"the same problem is {others}")


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of problems.

    Raises:
      ValueError: a line is not JSON, or has no `id`, `problem` and `answer`; names file and line.
    """
    for where, row in read_json_lines(path):
        needed = ("id", "problem", "answer")
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in needed):
            raise ValueError(f"{where}: expected an object with the texts id, problem and answer")
        yield row
