"""Leakage: training problems that are evaluation problems, exactly or nearly. `sspo data overlap TRAIN EVAL`.

Three tests, from strict to loose:

- `equal`: the same text without white space, case, `$` and display commands (`\\left`, `\\,`, `dfrac`, ...);
- `letters`: the same letters and digits;
- `near`: at least `near_share` of the word n-grams of the shorter text are in the other one. The default, half of the
  8-grams, finds reworded endings and prefixed stories, and a few siblings (the same wording, other numbers), which is
  the side to err on.

A translated problem cannot be found this way.
"""

import dataclasses
import pathlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from sspo_jax.data.problems import Problem, ProblemSource, iterate
from sspo_jax.files import write_json_lines

Kind = Literal["equal", "letters", "near"]

_DISPLAY = re.compile(r"\\(?:left|right|,|!|;|:|displaystyle)(?![A-Za-z])")
_WORD = re.compile(r"\\?\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """A training problem that is, or nearly is, an evaluation problem."""

    train_index: int
    """Row in the training source."""
    train_id: str
    """Its id."""
    eval_set: str
    """Name of the evaluation set."""
    eval_id: str
    """Id of the problem in it."""
    kind: Kind
    """Which test found it; the strictest."""
    share: float
    """Of the n-grams of the shorter text that are in the other; 1 for `equal` and `letters`."""


def find_overlap(
    train: ProblemSource, evals: Sequence[ProblemSource], *, ngram: int = 8, near_share: float = 0.5
) -> list[Overlap]:
    """Training problems found in evaluation sets, at most one entry for each, in order of the training source.

    Args:
      train: the training problems.
      evals: the evaluation sets.
      ngram: words of an n-gram; a text of fewer words is tested for equality only.
      near_share: share of n-grams from which a pair is near, in (0, 1].

    Raises:
      ValueError: ngram below 1 or near_share outside of its range.
    """
    if ngram < 1 or not 0 < near_share <= 1:
        raise ValueError(f"ngram is {ngram} and near_share {near_share}; expected at least 1 and in (0, 1]")
    problems = [(source.name, problem) for source in evals for problem in iterate(source)]
    equal = {strict_key(problem.problem): index for index, (_, problem) in enumerate(problems)}
    letters = {loose_key(problem.problem): index for index, (_, problem) in enumerate(problems)}
    grams = [word_ngrams(problem.problem, ngram) for _, problem in problems]
    holders: dict[str, list[int]] = defaultdict(list)
    for index, found in enumerate(grams):
        for gram in found:
            holders[gram].append(index)

    overlaps = []
    for row, problem in enumerate(iterate(train)):
        match = _match(problem, equal, letters, grams, holders, ngram, near_share)
        if match is not None:
            index, kind, share = match
            name, other = problems[index]
            overlaps.append(
                Overlap(train_index=row, train_id=problem.id, eval_set=name, eval_id=other.id, kind=kind, share=share)
            )
    return overlaps


def strict_key(text: str) -> str:
    """The text without white space, case, `$` and display commands; operators stay."""
    text = unicodedata.normalize("NFKC", text).lower().replace("dfrac", "frac").replace("tfrac", "frac")
    text = _DISPLAY.sub("", text)
    for mark in ("$", "\\(", "\\)", "\\[", "\\]"):
        text = text.replace(mark, "")
    return re.sub(r"\s+", "", text).rstrip(".?")


def loose_key(text: str) -> str:
    """Letters and digits only."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower().replace("dfrac", "frac"))


def word_ngrams(text: str, n: int) -> set[str]:
    """The runs of n words; a word is letters and digits, with its backslash if it is a command."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return {" ".join(words[first : first + n]) for first in range(len(words) - n + 1)}


def _match(
    problem: Problem,
    equal: dict[str, int],
    letters: dict[str, int],
    grams: list[set[str]],
    holders: dict[str, list[int]],
    ngram: int,
    near_share: float,
) -> tuple[int, Kind, float] | None:
    index = equal.get(strict_key(problem.problem))
    if index is not None:
        return index, "equal", 1.0
    loose = loose_key(problem.problem)
    index = letters.get(loose) if loose else None
    if index is not None:
        return index, "letters", 1.0
    own = word_ngrams(problem.problem, ngram)
    shared = Counter(holder for gram in own for holder in holders.get(gram, ()))
    found = [(count / min(len(own), len(grams[holder])), holder) for holder, count in shared.items()]
    share, holder = max(found, default=(0.0, -1))
    return (holder, "near", share) if share >= near_share else None


def write_problems(path: str, problems: Iterable[Problem]) -> None:
    """Writes problems as JSON lines, without fields at their defaults and the set they were read as."""
    rows = (dataclasses.asdict(dataclasses.replace(problem, set="")) for problem in problems)
    kept = ({key: value for key, value in row.items() if value not in (None, "", {})} for row in rows)
    write_json_lines(pathlib.Path(path), kept)


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:120]} ... {text[-36:]}"
