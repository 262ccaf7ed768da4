"""Scores of sampled answers: avg@k, pass@k, maj@k.

`correct[problem, sample]` is true where a sample was judged correct. Every function returns one value per problem, so
that the intervals can be taken over problems; a set's score is the mean of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float


def average_at_k(correct: Bool[np.ndarray, "problems samples"]) -> Float[np.ndarray, " problems"]:
    """avg@k of each problem: the share of its k samples that are correct (also called pass@1 by sampling)."""
    return correct.mean(axis=1, dtype=np.float64)


def pass_at_k(correct: Bool[np.ndarray, "problems samples"], k: int) -> Float[np.ndarray, " problems"]:
    """Unbiased pass@k of each problem: the chance that k of its n samples, without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k) for c correct of n (arXiv:2107.03374, section 2.1), as a product that cannot overflow.

    >>> pass_at_k(np.array([[True, False, False, False]]), 2)
    array([0.5])

    Raises:
      ValueError: k is not between 1 and the number of samples.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, expected 1 to the {n} samples of a problem")
    wrong = n - correct.sum(axis=1)
    drawn = np.arange(k)  # the i-th draw misses with chance (wrong - i) / (n - i)
    misses = np.clip(wrong[:, None] - drawn, 0, None) / (n - drawn)
    return 1.0 - misses.prod(axis=1)


def majority_at_k(
    correct: Bool[np.ndarray, "problems samples"],
    answers: Sequence[Sequence[str | None]],
    equivalent: Callable[[str, str], bool],
) -> Float[np.ndarray, " problems"]:
    """maj@k of each problem: whether the answer that most of its k samples gave is correct.

    Answers vote in groups: those judged correct are one group, as they agree with the gold answer; the others are
    grouped by equivalence (`1/3` and `2/6` vote together). Samples without an answer (None) do not vote. Where m groups
    lead together and the correct one is among them, the score is 1/m: a tie broken at random. Without a vote it is 0.

    Args:
      correct: verdicts.
      answers: [problems][samples], the extracted answers.
      equivalent: whether two answers are the same; asked only where it can change the score.
    """
    scores = []
    for verdicts, texts in zip(correct, answers, strict=True):
        votes = sum(text is not None for text, verdict in zip(texts, verdicts, strict=True) if verdict)
        wrong = [text for text, verdict in zip(texts, verdicts, strict=True) if not verdict and text is not None]
        if votes == 0 or votes > len(wrong):
            scores.append(float(votes > 0))
            continue
        sizes = [len(group) for group in group_answers(wrong, equivalent)]
        leaders = 1 + sizes.count(votes)
        scores.append(0.0 if max(sizes) > votes else 1.0 / leaders)
    return np.array(scores, np.float64)


def group_answers(answers: Sequence[str | None], equivalent: Callable[[str, str], bool]) -> list[list[int]]:
    """Indices of the answers, grouped by equivalence, in order of first appearance; None is in no group.

    Equal texts need no question; a new text is compared with the first text of each group, and joins the first match.
    """
    groups: dict[str, list[int]] = {}
    group_of: dict[str, str] = {}
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        if answer not in group_of:
            group_of[answer] = next((first for first in groups if equivalent(first, answer)), answer)
        groups.setdefault(group_of[answer], []).append(index)
    return list(groups.values())
