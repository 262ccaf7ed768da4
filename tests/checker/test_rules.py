"""The table of docs/checker.md from each rule to the pairs of the corpus that hold it."""

import ast
import collections
import pathlib

import pytest

from .corpus import Pair, corpus_verdicts

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "checker.md"
HEADER = "| rule | pairs | one of them |\n|---|---|---|\n"
RULES = PAGE.parents[1] / "sspo_jax" / "checker" / "compare"
LONGEST_EXAMPLE = 60


def rules_of(reason: str) -> list[str]:
    """The parts of a verdict's reason, without how the answer was found."""
    return reason.split("; ")[-1].split(", ")


def table(pairs: list[Pair], reasons: list[str]) -> str:
    """The rules by which pairs are the same, with their number and the first short example."""
    counts: collections.Counter[str] = collections.Counter()
    examples: dict[str, Pair] = {}
    for pair, reason in zip(pairs, reasons, strict=True):
        for rule in rules_of(reason):
            counts[rule] += 1
            if (
                rule not in examples
                and len(pair.answer + pair.gold) < LONGEST_EXAMPLE
                and "|" not in pair.answer + pair.gold
            ):
                examples[rule] = pair
    rows = [
        f"| {rule} | {count} | "
        + (f"`{examples[rule].answer}` and `{examples[rule].gold}`" if rule in examples else "")
        + " |"
        for rule, count in sorted(counts.items())
    ]
    return HEADER + "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def current() -> str:
    verdicts = {pair: verdict for pair, verdict in corpus_verdicts().items() if pair.is_same}
    return table(list(verdicts), [verdict.reason for verdict in verdicts.values()])


def test_the_table_is_that_of_the_corpus(current: str):
    page = PAGE.read_text(encoding="utf-8")
    assert current in page, f"docs/checker.md wants this table:\n\n{current}"


def returned_texts(path: pathlib.Path) -> list[str]:
    """The texts that the functions of a module return, those parts of them that are fixed."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Return) and node.value is not None:
            parts = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            found += [part.strip(", ") for part in parts if isinstance(part, str) and len(part.split()) > 1]
    return found


@pytest.mark.parametrize("path", sorted(RULES.glob("*.py")), ids=lambda path: path.name)
def test_every_rule_is_held_by_a_pair(path: pathlib.Path, current: str):
    """A text that a function of `compare` returns is a rule; each has decided some pair."""
    for text in returned_texts(path):
        if not text.startswith(("opaque", "unit ")):
            assert all(part in current for part in text.split(", ")), text
