"""The terms that need no function of one's own: the checker's verdict, the form of the answer, its length."""

import dataclasses
import re

from sspo_jax.checker import Verdict
from sspo_jax.ranges import Count, FileOnly
from sspo_jax.rewards.calls import Real

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correctness:
    """`correct` or `wrong`, each its value; a response without a readable answer counts as `unparsed`."""

    weight: FileOnly[Real] = 1.0
    """Multiplies this term in the sum."""
    correct: FileOnly[Real] = 1.0
    """Value of a correct answer."""
    wrong: FileOnly[Real] = 0.0
    """Value of a wrong answer."""
    unparsed: FileOnly[Real] = 0.0
    """Value of a response in which no answer was found, or whose answer cannot be read."""
    undecided: FileOnly[str] = "exclude"
    """For the statuses `timeout` and `error`: "exclude" takes the sample out of its group, "zero" scores it 0."""

    def __post_init__(self) -> None:
        if self.undecided not in ("exclude", "zero"):
            raise ValueError(f"undecided is {self.undecided!r}; expected 'exclude' or 'zero'")

    def value(self, verdict: Verdict) -> float:
        """The term for one verdict."""
        return {"correct": self.correct, "wrong": self.wrong, "unparsed": self.unparsed}.get(verdict.status, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """1 where the answer (what follows the last `</think>`) has exactly one box, and it closes; else 0."""

    weight: Real = 1.0
    """Multiplies this term in the sum."""
    require_think: FileOnly[bool] = False
    """Also ask for exactly one `<think>...</think>` before it (the opening tag may be part of the prompt)."""

    def value(self, response: str) -> float:
        """The term for one response."""
        if self.require_think and (response.count("</think>") != 1 or response.count("<think>") > 1):
            return 0.0
        answer = response.rpartition("</think>")[2]
        boxes = _BOX.findall(answer)
        if len(boxes) != 1:
            return 0.0
        opened = answer[_BOX.search(answer).end() :].lstrip()  # type: ignore[union-attr]
        if not opened.startswith("{"):
            return float(bool(opened))
        depth = 0
        for brace in re.finditer(r"\\?[{}]", opened):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return float(brace.start() > 1)
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlong:
    """DAPO's soft overlong punishment (arXiv:2503.14476, section 3.4), between -1 and 0, of a response of |y| tokens.

    0                                        where |y| <= max_tokens - buffer_tokens
    ((max_tokens - buffer_tokens) - |y|) / buffer_tokens   up to max_tokens
    -1                                       beyond
    """

    max_tokens: Count | None = None
    """L_max, the generation budget in tokens; None: the longest response of the run (--rollout.max-new-tokens)."""
    buffer_tokens: Count | None = None
    """L_cache, the last part of the budget, over which the punishment grows; in tokens, at least 1. None: a fifth of
    the budget, as in DAPO."""
    weight: Real = 1.0
    """Multiplies this term in the sum."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; expected at least 1")
        if self.buffer_tokens is not None and not 1 <= self.buffer_tokens <= (self.max_tokens or self.buffer_tokens):
            raise ValueError(f"buffer_tokens is {self.buffer_tokens}; expected 1 to max_tokens ({self.max_tokens})")

    def within(self, budget: int) -> "Overlong":
        """The same with nothing left open, for responses of at most `budget` tokens.

        Raises:
          ValueError: the buffer is longer than the budget.
        """
        most = budget if self.max_tokens is None else self.max_tokens
        buffer = max(1, most // 5) if self.buffer_tokens is None else self.buffer_tokens
        return dataclasses.replace(self, max_tokens=most, buffer_tokens=buffer)

    def value(self, length: int) -> float:
        """The term for one response of `length` tokens."""
        if self.max_tokens is None or self.buffer_tokens is None:
            raise ValueError("max_tokens or buffer_tokens is not set: use Overlong(...).within(budget)")
        expected = self.max_tokens - self.buffer_tokens
        if length <= expected:
            return 0.0
        return (expected - length) / self.buffer_tokens if length <= self.max_tokens else -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """-length / scale_tokens, at least -1: a price on each token; only for correct answers where asked."""

    scale_tokens: Count | None = None
    """The length, in tokens, that costs 1; None: the longest response of the run (--rollout.max-new-tokens)."""
    weight: Real = 1.0
    """Multiplies this term in the sum."""
    only_correct: FileOnly[bool] = True
    """Leave other answers alone, so that giving up early does not pay."""

    def __post_init__(self) -> None:
        if self.scale_tokens is not None and self.scale_tokens < 1:
            raise ValueError(f"scale_tokens is {self.scale_tokens}; expected at least 1")

    def within(self, budget: int) -> "Length":
        """The same with nothing left open, for responses of at most `budget` tokens."""
        return dataclasses.replace(self, scale_tokens=budget if self.scale_tokens is None else self.scale_tokens)

    def value(self, length: int, verdict: Verdict) -> float:
        """The term for one response of `length` tokens."""
        if self.scale_tokens is None:
            raise ValueError("scale_tokens is not set: use Length(...).within(budget)")
        if self.only_correct and not verdict.is_correct:
            return 0.0
        return -min(1.0, length / self.scale_tokens)
