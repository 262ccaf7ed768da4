"""Taking part of a source: filters by level, language, kind of answer and length."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sspo_jax.data.problems import Problem, ProblemSource, iterate
from sspo_jax.ranges import Count, FileOnly, Whole

_INTEGER = re.compile(r"[-+]?\d{1,3}(,?\d{3})*|[-+]?\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemFilter:
    """Which problems to keep; every condition left at its default keeps all."""

    levels: tuple[Whole, ...] = ()
    """Keep these levels (problems without one are dropped); empty keeps all."""
    languages: FileOnly[tuple[str, ...]] = ()
    """Keep these languages (ISO 639-1); empty keeps all."""
    integer_answers: FileOnly[bool] = False
    """Keep only problems whose answer is a plain integer."""
    drop_ambiguous: FileOnly[bool] = False
    """Drop problems whose solution has several different boxes (`extra.boxes`): the gold may be a part only."""
    max_tokens: FileOnly[Count | None] = None
    """Longest problem text kept, in tokens, without the prompt template; None keeps all."""

    def keeps(self, problem: Problem, tokenizer: Any = None) -> bool:
        """Whether a problem passes; the tokenizer is needed for `max_tokens` only."""
        return (
            (not self.levels or problem.level in self.levels)
            and (not self.languages or problem.language in self.languages)
            and not (self.integer_answers and not _INTEGER.fullmatch(problem.answer))
            and not (self.drop_ambiguous and "boxes" in problem.extra)
            and not (
                self.max_tokens is not None
                and len(tokenizer.encode(problem.problem, add_special_tokens=False)) > self.max_tokens
            )
        )


KEEP_ALL = ProblemFilter()


class SubsetSource:
    """Some rows of another source, in a given order."""

    def __init__(self, source: ProblemSource, indices: Sequence[int], *, name: str | None = None):
        self.name = name or source.name
        self._source = source
        self._indices = np.asarray(indices, np.int64)
        self.digest = hashlib.sha256(source.digest.encode() + self._indices.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Problem:
        return self._source[int(self._indices[index])]


def filtered(source: ProblemSource, keep: ProblemFilter, *, tokenizer: Any = None) -> ProblemSource:
    """The problems of a source that pass, as a source; the source itself if nothing is asked of it.

    Raises:
      ValueError: nothing passes, or `max_tokens` without a tokenizer.
    """
    if keep == KEEP_ALL:
        return source
    if keep.max_tokens is not None and tokenizer is None:
        raise ValueError("max_tokens is set but no tokenizer was given; expected one to count tokens with")
    indices = [index for index, problem in enumerate(iterate(source)) if keep.keeps(problem, tokenizer)]
    if not indices:
        raise ValueError(
            f"none of the {len(source)} problems of {source.name} passes the filter "
            f"{json.dumps(dataclasses.asdict(keep))}: loosen it"
        )
    return SubsetSource(source, indices)
