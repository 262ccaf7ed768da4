"""A curriculum: problems that are always or never solved are drawn less often. Off unless an experiment asks for it.

A group whose responses are all right or all wrong has no advantage and teaches nothing, yet costs a whole group of
responses. With p the running solve rate of a problem, a candidate of the ordinary stream is taken with probability

    w(p) = max(floor, 4 p (1 - p))        1 at p = 1/2; 1 for a problem that has not been seen

and passed over otherwise. `floor` keeps every problem in play, so that one that has become solvable is noticed.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import Problem, ProblemSource
from sspo_jax.ranges import Count, FileOnly, Range, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """How solve rates become weights."""

    floor: Annotated[float | int, Range(above=0, most=1)] = 0.1
    """Least probability with which a candidate is taken."""
    memory: Annotated[float | int, Range(0, below=1)] = 0.5
    """Weight of the old rate when a new one comes in: rate = memory * old + (1 - memory) * new."""
    most_candidates: FileOnly[Count] = 20
    """Candidates looked at per problem taken, on average over a batch; after that all are taken."""


class CurriculumStream:
    """A `ProblemStream` that passes over problems by their solve rates; the same `next`, `state` and `restore`.

    All processes go through the same candidates and take their share of the accepted ones, so `update` has to be
    called with the rates of the whole batch on every process.

    Args:
      source, batch_size, seed, process_index, process_count: as for `ProblemStream`.
      config: of the weights.
    """

    def __init__(
        self,
        source: ProblemSource,
        *,
        config: CurriculumConfig,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check(config, "--curriculum.")
        # The shares are checked there; the candidates come one at a time.
        ProblemStream(
            source, batch_size=batch_size, seed=seed, process_index=process_index, process_count=process_count
        )
        self._candidates = ProblemStream(source, batch_size=1, seed=seed)
        self._config = config
        self._batch_size = batch_size
        self._seed = seed
        self._process_index = process_index
        self._process_count = process_count
        self.rates: dict[str, float] = {}
        """Running solve rate by problem id."""
        self.passed_over = 0
        """Candidates that were not taken, so far."""

    def next(self) -> list[Problem]:
        """This process's share of the next batch."""
        taken: list[Problem] = []
        looked_at = 0
        while len(taken) < self._batch_size:
            place = self._candidates.state()["position"]
            (problem,) = self._candidates.next()
            looked_at += 1
            # A function of (seed, place), so that resuming needs no other state than the rates.
            draw = random.Random(f"curriculum/{self._seed}/{place}").random()
            if draw < self.weight(problem.id) or looked_at > self._config.most_candidates * self._batch_size:
                taken.append(problem)
        self.passed_over += looked_at - self._batch_size
        share = self._batch_size // self._process_count
        return taken[self._process_index * share : (self._process_index + 1) * share]

    def weight(self, problem_id: str) -> float:
        """The probability with which a candidate is taken."""
        rate = self.rates.get(problem_id)
        return 1.0 if rate is None else max(self._config.floor, 4.0 * rate * (1.0 - rate))

    def update(self, problems: Sequence[Problem], solve_rates: Sequence[float]) -> None:
        """Takes in how often the responses to the problems of a whole batch were right.

        Args:
          problems: of the batch, over all processes.
          solve_rates: the share of right responses of each, 0 to 1.
        """
        for problem, new in zip(problems, solve_rates, strict=True):
            if not 0.0 <= new <= 1.0:
                raise ValueError(f"the solve rate of {problem.id!r} is {new}; expected 0 to 1")
            old = self.rates.get(problem.id)
            memory = self._config.memory
            self.rates[problem.id] = float(new) if old is None else memory * old + (1.0 - memory) * float(new)

    @property
    def epoch(self) -> float:
        """How many times the candidates have gone through the source."""
        return self._candidates.epoch

    def state(self) -> dict[str, Any]:
        """As `ProblemStream.state`, with the solve rates."""
        return {
            **self._candidates.state(),
            "batch_size": self._batch_size,
            "process_count": self._process_count,
            "curriculum": dataclasses.asdict(self._config),
            "rates": dict(self.rates),
            "passed_over": self.passed_over,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Raises:
          ValueError: the state is of another stream, by name.
        """
        wanted = {
            "batch_size": self._batch_size,
            "process_count": self._process_count,
            "curriculum": dataclasses.asdict(self._config),
        }
        for key, value in wanted.items():
            if state.get(key) != value:
                raise ValueError(
                    f"the saved position belongs to another stream of problems: {key} was {state.get(key)!r} and is "
                    f"{value!r}. Start again with the old settings, or in a new run directory"
                )
        self._candidates.restore({**state, "batch_size": 1, "process_count": 1})
        self.rates = dict(state["rates"])
        self.passed_over = state["passed_over"]
