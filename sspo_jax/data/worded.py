r"""Chains of arithmetic, worded freely: as `arithmetic`, but each clause of a solution may be put in many ways.

    Modulo ten, start with 7, plus 4, minus 2, then times 3. What is the result?

    we take 7 plus 4 = 1 and 1 minus 2 ends at 9, then the number 9 times 3 is 7.
    The answer is \boxed{7}.

The wording decides nothing, so a policy that has learned it keeps an entropy of some 0.5 nats a token however well it
computes: objectives that read the entropy have something to read, which they do not have where one wording is left.
"""

import dataclasses
import hashlib
import json
import random
import re
from typing import Annotated, Any

from sspo_jax.data.arithmetic import ArithmeticData, Split
from sspo_jax.data.problems import Problem
from sspo_jax.ranges import Count, FileOnly, Fraction, Range, Seed

_JOINS = (",", ".\n", " and", " then", ", and", ", then")
_OPENINGS = ("", " we take", " the number", " take")
_VERBS = (" is", " =", " is the number", " ends at", " is the result")
_CLAUSE = re.compile(r"(\d \w+ \d) is (\d)")
_VERSION = 1  # part of the digest: raise it when the same (config, index) would give another problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordedData:
    """Settings of the generated problems; `.open()` gives the source."""

    wordings: Annotated[int, Range(1, len(_JOINS))]
    """Ways to join clauses, to begin one and to say `is`, at most as many as there are of each; 1: the first of each.
    Always given, so that a record of these problems is never taken for other data."""
    split: FileOnly[Split] = "train"
    """`train` or `held_out`; the two share no chain."""
    seed: FileOnly[Seed] = 0
    """Problems are a function of (seed, index)."""
    size: Count = 1_000_000
    """Number of problems; they are made on demand, so a large number costs nothing."""
    min_steps: Count = 3
    """Fewest steps of a chain."""
    max_steps: Count = 5
    """Most steps of a chain."""
    reasoned_fraction: FileOnly[Fraction] = 0.4
    """Share of the demonstrations that reason step by step; the others guess a digit at once."""

    def __post_init__(self) -> None:
        _ = self.plain  # which refuses what it cannot be

    @property
    def plain(self) -> ArithmeticData:
        """The same problems with solutions in one wording."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["wordings"]
        return ArithmeticData(**fields)

    def open(self, tokenizer: Any = None) -> "WordedSource":
        """The source of these problems; the tokenizer is not used, other data counts tokens with it."""
        del tokenizer
        return WordedSource(self)


class WordedSource:
    """Random access to the generated problems; nothing is stored."""

    def __init__(self, data: WordedData):
        self.data, self._plain = data, data.plain.open()
        self.name = f"worded_{data.split}"
        content = json.dumps({"version": _VERSION, **dataclasses.asdict(data)}, sort_keys=True)
        self.digest = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._plain)

    def __getitem__(self, index: int) -> Problem:
        plain = self._plain[index]
        assert plain.solution is not None
        return dataclasses.replace(
            plain,
            id=plain.id.replace("arithmetic-", "worded-"),
            solution=self._worded(plain.solution, index),
            source="worded",
        )

    def demonstration(self, index: int) -> str:
        """A response to problem `index` to imitate: the solution, or (more often) a digit at random."""
        return self._worded(self._plain.demonstration(index), index)

    def _worded(self, solution: str, index: int) -> str:
        """A solution with each clause in a wording of its own; a guess has no clause and stays as it is."""
        rng = random.Random(f"wording/{self.data.seed}/{self.data.split}/{index}")
        clauses, count = _CLAUSE.findall(solution), self.data.wordings
        if not clauses:
            return solution
        text = ""
        for number, (calculation, result) in enumerate(clauses):
            join = rng.choice(_JOINS[:count]) if number else ""
            opening = rng.choice(_OPENINGS[:count])
            text += f"{join}{opening} {calculation}{rng.choice(_VERBS[:count])} {result}"
        return f"{text.lstrip()}.\n{solution.splitlines()[-1]}"
