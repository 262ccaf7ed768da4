"""Rewards of sampled responses: weighted terms, added up for each sample. Plain Python, no JAX.

A term is a frozen dataclass with a `weight`: `Correctness` (the checker's verdict), `Format` (boxed exactly once),
`Overlong` (DAPO's soft punishment of length), `Length` (a price on each token) and `UserReward` (a function of yours,
run in the checker's worker processes under the same limits). `score` adds them:

    reward[n] = sum over terms of weight * term[n]

>>> from sspo_jax.checker import Verifier
>>> with Verifier(workers=1) as verifier:
...     scored = score([Correctness(), Format(weight=0.5)], [r"It is \\boxed{2}."], ["2"], [7], verifier=verifier)
>>> scored.rewards
[1.5]
"""

import concurrent.futures
import dataclasses
import math
import pkgutil
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Bool, Float

from sspo_jax.checker import Verdict, Verifier
from sspo_jax.checker.workers.pool import WorkerDied, WorkerError
from sspo_jax.ranges import Count, FileOnly, Positive, Range, Workers

Real = Annotated[float | int, Range()]

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")


class RewardError(ValueError):
    """A user's reward function raised, ran out of time or memory, or returned no finite number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correctness:
    """`correct` or `wrong`, each its value; a response without a readable answer counts as `unparsed`."""

    weight: FileOnly[Real] = 1.0
    """Multiplies this term in the sum."""
    correct: Real = 1.0
    """Value of a correct answer."""
    wrong: Real = 0.0
    """Value of a wrong answer."""
    unparsed: Real = 0.0
    """Value of a response in which no answer was found, or whose answer cannot be read."""
    undecided: str = "exclude"
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
    require_think: bool = False
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserReward:
    """A function of yours by import path, called as `function(response, gold, **arguments)`.

    It returns a number, Python's or NumPy's, or None to take the sample out of its group. It runs in the checker's
    worker processes: it must be importable there, it is killed after `timeout_seconds`, and it shares their memory
    limit. In a run it starts when its response has ended, while others are still sampled.
    """

    function: str
    """`module:function`, importable from the folder the run was started in."""
    weight: Real = 1.0
    """Multiplies this term in the sum."""
    timeout_seconds: Positive = 5.0
    """The most one call may take."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further keyword arguments of every call."""
    on_failure: str = "raise"
    """Where it raises, overruns or returns something else: "raise" stops the run with a RewardError, "exclude" takes
    the sample out, "zero" counts it as 0."""

    def __post_init__(self) -> None:
        module, colon, name = self.function.partition(":")
        if not (module and colon and name):
            raise ValueError(f"function is {self.function!r}; expected module:function")
        if self.on_failure not in ("raise", "exclude", "zero"):
            raise ValueError(f"on_failure is {self.on_failure!r}; expected 'raise', 'exclude' or 'zero'")

    def check(self, verifier: Verifier) -> None:
        """Looks the function up in a worker, without calling it.

        Raises:
          ValueError: it cannot be imported there.
        """
        found = verifier.call("sspo_jax.rewards:is_callable", self.function, timeout_seconds=60.0)
        try:
            if found.result():
                return
            reason = "it is no function"
        except (TimeoutError, WorkerError, WorkerDied) as error:
            reason = str(error)
        raise ValueError(
            f"--reward.user {self.function} cannot be imported: {reason}. Expected module:function, importable from "
            "the working directory"
        )

    def submit(self, verifier: Verifier, response: str, gold: str) -> "concurrent.futures.Future[Any]":
        """Start one call in the worker processes of `verifier`."""
        return verifier.call(self.function, response, gold, timeout_seconds=self.timeout_seconds, **self.arguments)

    def value(self, future: "concurrent.futures.Future[Any]") -> float | None:
        """The number of one call, or None to take the sample out; RewardError where there is neither."""
        try:
            result = future.result()
        except TimeoutError as error:
            raise RewardError(f"{self.function} took longer than {self.timeout_seconds} s") from error
        except (WorkerError, WorkerDied) as error:
            detail = getattr(error, "traceback", "")
            raise RewardError(f"{self.function} failed in its worker: {error}\n{detail}".rstrip()) from error
        if result is None:
            return None
        is_number = isinstance(result, bool | int | float | np.generic) or getattr(result, "shape", None) == ()
        if is_number and np.isrealobj(result) and math.isfinite(result):
            return float(result)
        raise RewardError(f"{self.function} returned {result!r:.200}; expected a finite number, or None")

    def outcome(self, future: "concurrent.futures.Future[Any]") -> tuple[float, bool]:
        """(value, whether the sample is taken out) of one call, after `on_failure`."""
        try:
            value = self.value(future)
        except RewardError:
            if self.on_failure == "raise":
                raise
            return 0.0, self.on_failure == "exclude"
        return (0.0, True) if value is None else (value, False)


def is_callable(name: str) -> bool:
    """Whether `module:function` is found and can be called; raises what importing it raises."""
    return callable(pkgutil.resolve_name(name))


Reward = Correctness | Format | Overlong | Length | UserReward

if TYPE_CHECKING:
    UserRewards = tuple[UserReward, ...]
else:
    from tyro.constructors import PrimitiveConstructorSpec

    UserRewards = Annotated[
        tuple[UserReward, ...],
        PrimitiveConstructorSpec(
            nargs="*",
            metavar="MODULE:FUNCTION ...",
            instance_from_str=lambda names: tuple(UserReward(function=name) for name in names),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(own, UserReward) for own in value),
            str_from_instance=lambda users: [user.function for user in users],
        ),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward of a run: its terms, and the limits of the worker processes that check and score."""

    correctness: Correctness = Correctness()
    """The verdict of the checker."""
    format: Format | None = None
    """Boxed exactly once; None leaves it out."""
    overlong: Overlong | None = None
    """DAPO's punishment of responses near the length limit; None leaves it out."""
    length: Length | None = None
    """A price on each token; None leaves it out."""
    user: UserRewards = ()
    """Functions of yours, importable from the working directory, each called as function(response, gold); their weights
    and limits are set in an experiment file."""
    timeout_seconds: Positive = 5.0
    """The most a worker may spend on one check."""
    workers: Workers | None = None
    """Worker processes; None: as many as processors."""
    memory_limit_gib: FileOnly[Annotated[float | int, Range(0.5)]] = 2.0
    """Address space of each worker, GiB; sympy itself takes a quarter of one."""

    @property
    def terms(self) -> tuple[Reward, ...]:
        """The terms to add up."""
        chosen = (self.correctness, self.format, self.overlong, self.length, *self.user)
        return tuple(term for term in chosen if term is not None)

    def named_terms(self) -> dict[str, Reward]:
        """The terms by the names under which `score` gives them."""
        named: dict[str, Reward] = {}
        for term in self.terms:
            named[_free_name(term, named)] = term
        return named

    def within(self, budget: int) -> "RewardConfig":
        """The same, with what the terms leave open set for responses of at most `budget` tokens.

        Raises:
          ValueError: a term does not fit the budget.
        """
        overlong = self.overlong and self.overlong.within(budget)
        return dataclasses.replace(self, overlong=overlong, length=self.length and self.length.within(budget))

    def check(self) -> None:
        """Looks up the user's functions, in a worker, before anything else starts; see `UserReward.check`."""
        if self.user:
            with dataclasses.replace(self, workers=1).verifier() as verifier:
                for user in self.user:
                    user.check(verifier)

    def verifier(self) -> Verifier:
        """A verifier with these limits; its processes start with the first hard answer."""
        return Verifier(self.workers, self.timeout_seconds, memory_limit_bytes=int(self.memory_limit_gib * 2**30))


@dataclasses.dataclass(frozen=True)
class Scored:
    """What `score` found, one entry for each response."""

    rewards: list[float]
    """The weighted sum of the terms; 0 where excluded."""
    verdicts: list[Verdict]
    """Verdicts of the checker, also where no term asks for them."""
    is_excluded: list[bool]
    """True where a sample says nothing and has to stay out of its group."""
    terms: dict[str, list[float]]
    """Each term unweighted, by its name: the class in lower case, for a user's function its path."""


def reward_metrics(
    rewards: Float[np.ndarray, " batch"],
    is_excluded: Bool[np.ndarray, " batch"],
    terms: Mapping[str, Float[np.ndarray, " batch"]],
) -> dict[str, float]:
    """reward/mean, reward/std and reward/<term>_mean over the samples not excluded, and reward/excluded_fraction.

    Means over no samples are 0.
    """
    kept = rewards[~is_excluded]
    metrics = {
        "reward/mean": float(kept.mean()) if len(kept) else 0.0,
        "reward/std": float(kept.std()) if len(kept) else 0.0,
        "reward/excluded_fraction": float(is_excluded.mean()) if len(is_excluded) else 0.0,
    }
    for name, values in terms.items():
        metrics[f"reward/{name}_mean"] = float(values[~is_excluded].mean()) if len(kept) else 0.0
    return metrics


def score(
    rewards: Sequence[Reward],
    responses: Sequence[str],
    golds: Sequence[str],
    lengths: Sequence[int],
    *,
    verifier: Verifier,
    verdicts: Sequence[Verdict] | None = None,
    calls: "Mapping[int, Sequence[concurrent.futures.Future[Any]]] | None" = None,
) -> Scored:
    """The rewards of a batch of responses.

    Args:
        rewards: the terms to add up.
        responses: response texts, without the prompt.
        golds: the gold answer of each.
        lengths: the length of each response in tokens, its end token included.
        verifier: whose processes are used.
        verdicts: of these responses, where they were submitted to the verifier before (as the rollout arrives).
        calls: of each user's function, by its place in `rewards`, where they were submitted before.

    Raises:
        ValueError: the sequences differ in length.
        RewardError: a user's function failed and its `on_failure` is "raise".
    """
    sizes = {"responses": len(responses), "golds": len(golds), "lengths": len(lengths)}
    if verdicts is not None:
        sizes["verdicts"] = len(verdicts)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected one of each for every response, there are {sizes}")
    calls = calls or {
        index: [reward.submit(verifier, response, gold) for response, gold in zip(responses, golds, strict=True)]
        for index, reward in enumerate(rewards)
        if isinstance(reward, UserReward)
    }
    found = list(verdicts) if verdicts is not None else verifier.verify_batch(responses, golds)
    totals, excluded = [0.0] * len(responses), [False] * len(responses)
    terms: dict[str, list[float]] = {}
    for index, reward in enumerate(rewards):
        values = []
        for row, (response, verdict, length) in enumerate(zip(responses, found, lengths, strict=True)):
            match reward:
                case Correctness():
                    excluded[row] |= reward.undecided == "exclude" and verdict.status in ("timeout", "error")
                    value = reward.value(verdict)
                case Format():
                    value = reward.value(response)
                case Overlong():
                    value = reward.value(length)
                case Length():
                    value = reward.value(length, verdict)
                case UserReward():
                    value, is_out = reward.outcome(calls[index][row])
                    excluded[row] |= is_out
            values.append(value)
            totals[row] += reward.weight * value
        terms[_free_name(reward, terms)] = values
    totals = [0.0 if out else total for total, out in zip(totals, excluded, strict=True)]
    return Scored(totals, found, excluded, terms)


def _free_name(reward: Reward, taken: Mapping[str, Any]) -> str:
    name = reward.function if isinstance(reward, UserReward) else type(reward).__name__.lower()
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
