"""Verdicts of one set to its scores: every number with its interval, in all, by subject and by level."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from sspo_jax.data.problems import Problem
from sspo_jax.evaluation.intervals import Estimate, estimate
from sspo_jax.evaluation.pass_at_k import average_at_k, majority_at_k, pass_at_k

STATUSES = ("correct", "wrong", "unparsed", "timeout", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One response with its verdict: a line of samples.jsonl."""

    set: str
    """Name of the set."""
    id: str
    """Id of the problem."""
    sample: int
    """Index among the problem's responses."""
    response: str
    """Decoded, without special tokens."""
    tokens: int
    """Length of the response, the end token included; -1 where it is not known."""
    truncated: bool
    """Whether the length budget ended it."""
    status: str
    """The checker's verdict: correct, wrong, unparsed, timeout or error."""
    extracted: str | None
    """The answer found in the response."""
    gold: str
    """The gold answer."""
    reason: str
    """Which rule decided."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetScores:
    """The scores of one set."""

    name: str
    """Name of the set."""
    digest: str
    """sha256 of its problems."""
    problems: int
    """Number of problems."""
    samples: int
    """Responses per problem."""
    metrics: Mapping[str, Estimate]
    """`avg@k`, `pass@1` ..., `maj@k`, `length_mean` (tokens), `truncated_fraction`, `unparsed_fraction`,
    `timeout_fraction`, `error_fraction`."""
    by_subject: Mapping[str, tuple[int, Estimate]]
    """Number of problems and avg@k of each subject; empty where the data has none."""
    by_level: Mapping[str, tuple[int, Estimate]]
    """The same for levels."""
    correct: Bool[np.ndarray, "problems samples"]
    """Which responses were judged correct."""
    problem_ids: tuple[str, ...]
    """Problem ids of the rows of `correct`."""

    @property
    def accuracy(self) -> Estimate:
        """avg@k: the share of responses that are correct."""
        return self.metrics[f"avg@{self.samples}"]


def score_set(
    name: str,
    digest: str,
    problems: Sequence[Problem],
    rows: Sequence[SampleRow],
    *,
    equivalent: Callable[[str, str], bool],
    seed: int = 0,
) -> SetScores:
    """Scores of a set from its judged responses.

    Args:
      name, digest: of the set.
      problems: all its problems.
      rows: the same number of responses for each problem, in any order.
      equivalent: whether two extracted answers are the same, for maj@k.
      seed: of the bootstrap.

    Raises:
      ValueError: a response of another problem, one that is there twice, or one that is missing.
    """
    table = _arrange(name, problems, rows)
    samples = len(table[0])
    correct = np.array([[row.status == "correct" for row in line] for line in table])
    metrics = {f"avg@{samples}": estimate(correct, seed=seed)}
    if samples > 1:
        metrics |= {f"pass@{k}": estimate(pass_at_k(correct, k)[:, None], seed=seed) for k in _ks(samples)}
        answers = [[row.extracted for row in line] for line in table]
        metrics[f"maj@{samples}"] = estimate(majority_at_k(correct, answers, equivalent)[:, None], seed=seed)
    if all(row.tokens >= 0 for line in table for row in line):
        lengths = np.array([[row.tokens for row in line] for line in table])
        metrics["length_mean"] = estimate(lengths, seed=seed, is_share=False)
    fractions = {"truncated": [[row.truncated for row in line] for line in table]}
    fractions |= {status: [[row.status == status for row in line] for line in table] for status in STATUSES[2:]}
    metrics |= {f"{key}_fraction": estimate(np.array(value), seed=seed) for key, value in fractions.items()}
    return SetScores(
        name=name,
        digest=digest,
        problems=len(problems),
        samples=samples,
        metrics=metrics,
        by_subject=_by([problem.subject for problem in problems], correct, seed),
        by_level=_by([problem.level for problem in problems], correct, seed),
        correct=correct,
        problem_ids=tuple(problem.id for problem in problems),
    )


def _ks(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples: what pass@k is reported for."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent < samples]
    return [*powers, samples]


def _arrange(name: str, problems: Sequence[Problem], rows: Sequence[SampleRow]) -> list[list[SampleRow]]:
    by_id: dict[str, dict[int, SampleRow]] = {problem.id: {} for problem in problems}
    for row in rows:
        if row.id not in by_id:
            raise ValueError(f"{name}: a response to {row.id!r}, which is not in the set: the data has changed")
        if row.sample in by_id[row.id]:
            raise ValueError(f"{name}: response {row.sample} to {row.id!r} is there twice: remove one")
        by_id[row.id][row.sample] = row
    counts = Counter(len(responses) for responses in by_id.values())
    if len(counts) != 1 or 0 in counts:
        found = ", ".join(f"{count} for {problems_} problems" for count, problems_ in sorted(counts.items()))
        raise ValueError(f"{name}: responses are missing, expected the same number for each problem: found {found}")
    return [[responses[sample] for sample in sorted(responses)] for responses in by_id.values()]


def _by(keys: Sequence[Any], correct: np.ndarray, seed: int) -> dict[str, tuple[int, Estimate]]:
    """Count and accuracy of the problems with each key, in order of the keys; problems without one are left out."""
    found = {}
    for key in sorted({key for key in keys if key is not None}):
        members = np.array([other == key for other in keys])
        found[str(key)] = (int(members.sum()), estimate(correct[members], seed=seed))
    return found


def accuracy_per_problem(scores: SetScores) -> dict[str, float]:
    """avg@k of each problem by its id."""
    return dict(zip(scores.problem_ids, average_at_k(scores.correct).tolist(), strict=True))
