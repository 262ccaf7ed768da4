"""The reward of a run: which terms, under which limits, and their sum for each response."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from jaxtyping import Bool, Float

from sspo_jax.checker import Verdict, Verifier
from sspo_jax.ranges import FileOnly, Positive, Range, Workers
from sspo_jax.rewards.calls import Outcome
from sspo_jax.rewards.code_tests import CodeTests
from sspo_jax.rewards.judge import Judge
from sspo_jax.rewards.matching import Choice
from sspo_jax.rewards.own import Runner, UserReward
from sspo_jax.rewards.terms import Correctness, Format, Length, Overlong

Reward = Correctness | Format | Overlong | Length | UserReward


BUILT_IN: dict[str, Callable[[], UserReward]] = {"choice": Choice, "code_tests": CodeTests, "judge": Judge}
"""Rewards that come with the package and need no further settings, by the names of their terms."""


def user_reward(name: str) -> UserReward:
    """The record of `module:function`, or a built-in one by its name.

    Raises:
      ValueError: it is neither.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if ":" not in name:
        raise ValueError(f"--reward.user is {name!r}; expected module:function, or one of {', '.join(BUILT_IN)}")
    return UserReward(function=name)


if TYPE_CHECKING:
    UserRewards = tuple[UserReward, ...]
else:
    from tyro.constructors import PrimitiveConstructorSpec

    UserRewards = Annotated[
        tuple[UserReward, ...],
        PrimitiveConstructorSpec(
            nargs="*",
            metavar="MODULE:FUNCTION ...",
            instance_from_str=lambda names: tuple(map(user_reward, names)),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(own, UserReward) for own in value),
            str_from_instance=lambda users: [user.name for user in users],
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
    """Functions of yours, importable from the working directory, called with what their parameters name, or choice,
    code_tests, judge. Each has options of its own: --reward.FUNCTION.weight, .concurrency, .timeout-seconds and
    .on-failure (stop, exclude, zero); the others are set in an experiment file."""
    timeout_seconds: FileOnly[Positive] = 5.0
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
            named[_free_name(term_name(term), named)] = term
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
    """Each term unweighted, by its name: the class in lower case, for a user's function its path, or the names that it
    gives itself."""
    weights: dict[str, float]
    """Of each term in the sum."""


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
    verifier: Verifier | None = None,
    verdicts: Sequence[Verdict] | None = None,
    outcomes: Mapping[int, Sequence[Outcome]] | None = None,
    environment: Sequence[float] = (),
) -> Scored:
    """The rewards of a batch of responses.

    Args:
      rewards: the terms to add up.
      responses: response texts, without the prompt.
      golds: the gold answer of each.
      lengths: the length of each response in tokens, its end token included.
      verifier: whose processes are used for what is not given.
      verdicts: of these responses, where they were submitted to the verifier before (as the rollout arrives).
      outcomes: of each user's function, by its place in `rewards`, where they were called before. Without, a function
        can ask for `response`, `gold` and `verdict` alone.
      environment: what it gave for each response, a term of weight 1; NaN where a response is left out.

    Raises:
      ValueError: the sequences differ in length, or there is no verifier for what is not given.
      RewardError: a user's function failed and its `on_failure` is "stop".
    """
    sizes = {"responses": len(responses), "golds": len(golds), "lengths": len(lengths)}
    if verdicts is not None:
        sizes["verdicts"] = len(verdicts)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected one of each for every response, there are {sizes}")
    users = {index: reward for index, reward in enumerate(rewards) if isinstance(reward, UserReward)}
    if verifier is None and (verdicts is None or (users and outcomes is None)):
        raise ValueError("there is no verifier; expected one, or verdicts and outcomes")
    found = list(verdicts) if verdicts is not None else _verifier(verifier).verify_batch(responses, golds)
    if outcomes is None:
        outcomes = {index: _called(user, responses, golds, found, _verifier(verifier)) for index, user in users.items()}
    totals, excluded = [0.0] * len(responses), [False] * len(responses)
    terms: dict[str, list[float]] = {}
    weights: dict[str, float] = {}

    def add(name: str, weight: float, values: list[float]) -> None:
        name = _free_name(name, terms)
        terms[name], weights[name] = values, weight
        for row, value in enumerate(values):
            totals[row] += weight * value

    for index, reward in enumerate(rewards):
        match reward:
            case UserReward():
                for row, outcome in enumerate(outcomes[index]):
                    excluded[row] |= outcome.is_excluded
                for name in term_names(outcomes[index]):
                    weight = reward.weight * reward.weights.get(name, 1.0) if name else reward.weight
                    add(name or reward.name, weight, [outcome.terms.get(name, 0.0) for outcome in outcomes[index]])
                continue
            case Correctness():
                values = [reward.value(verdict) for verdict in found]
                if reward.undecided == "exclude":
                    excluded = [
                        out or verdict.status in ("timeout", "error")
                        for out, verdict in zip(excluded, found, strict=True)
                    ]
            case Format():
                values = [reward.value(response) for response in responses]
            case Overlong():
                values = [reward.value(length) for length in lengths]
            case Length():
                values = [reward.value(length, verdict) for length, verdict in zip(lengths, found, strict=True)]
        add(term_name(reward), reward.weight, values)
    if environment:
        excluded = [out or math.isnan(value) for out, value in zip(excluded, environment, strict=True)]
        add("environment", 1.0, [0.0 if math.isnan(value) else value for value in environment])
    totals = [0.0 if out else total for total, out in zip(totals, excluded, strict=True)]
    return Scored(totals, found, excluded, terms, weights)


def term_name(reward: Reward) -> str:
    """The name of a term: its class in lower case, for a user's function its path."""
    return reward.name if isinstance(reward, UserReward) else type(reward).__name__.lower()


def term_names(outcomes: Sequence[Outcome]) -> list[str]:
    """Names of the terms that a function has returned, in the order they were met; '' where nothing was returned."""
    return list(dict.fromkeys(name for outcome in outcomes for name in outcome.terms)) or [""]


def _verifier(verifier: Verifier | None) -> Verifier:
    assert verifier is not None
    return verifier


def _called(
    user: UserReward,
    responses: Sequence[str],
    golds: Sequence[str],
    verdicts: Sequence[Verdict],
    verifier: Verifier,
) -> list[Outcome]:
    """What a function says of responses of which no more is known."""
    runner = Runner(user, verifier, verifier.pool.memory_limit_bytes)
    try:
        rows = [
            {"response": response, "gold": gold, "verdict": verdict}
            for response, gold, verdict in zip(responses, golds, verdicts, strict=True)
        ]
        unknown = [name for name in runner.wanted.names if rows and name not in rows[0]]
        if unknown:
            raise ValueError(f"{user.function} asks for {', '.join(unknown)}; here it can have {', '.join(rows[0])}")
        calls = [runner.submit(row) for row in rows]
        return [runner.outcomes(call)[0] for call in calls]
    finally:
        runner.close()


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
