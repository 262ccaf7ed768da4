"""The labelled pairs of corpus.txt."""

import functools
import pathlib
from typing import Any, NamedTuple

from .plain import plain_verdicts


class Pair(NamedTuple):
    """An answer as a model may box it, a gold, and whether they are the same answer."""

    kind: str
    is_same: bool
    answer: str
    gold: str


def read_corpus() -> list[Pair]:
    """All pairs, in the order of the file."""
    pairs, kind = [], ""
    for line in (pathlib.Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
        elif line[:2] in ("+ ", "- "):
            answer, separator, gold = line[2:].partition(" ~~ ")
            assert separator, f"no ~~ in {line!r}"
            pairs.append(Pair(kind, line[0] == "+", answer, gold))
    return pairs


def as_response(answer: str) -> str:
    """A response that boxes the answer; one with unbalanced braces states it in words."""
    balanced = answer.count("{") - answer.count(r"\{") == answer.count("}") - answer.count(r"\}")
    return f"So we are done.\n\nThe answer is $\\boxed{{{answer}}}$." if balanced else f"The answer is {answer}"


@functools.cache
def corpus_verdicts() -> dict[Pair, Any]:
    """The verdict on every pair of the corpus, the answer against the gold."""
    pairs = read_corpus()
    verdicts = plain_verdicts([as_response(pair.answer) for pair in pairs], [pair.gold for pair in pairs])
    return dict(zip(pairs, verdicts, strict=True))
