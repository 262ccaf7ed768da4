"""From sampled responses to rewards: decode, judge and reward, while others are still sampled."""

import concurrent.futures
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.advantages import is_rounding
from sspo_jax.checker import Verdict, ledger
from sspo_jax.data.problems import Problem
from sspo_jax.distributed.processes import exchange, share, together
from sspo_jax.evaluation.judging import Judge, Pending
from sspo_jax.files import write_json_lines
from sspo_jax.rewards import Outcome, RewardConfig, RewardError, Runner, UserReward, reward_metrics, score
from sspo_jax.types import FinishReason, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grades:
    """Verdicts and rewards of responses, the samples of a problem beside each other."""

    problems: tuple[Problem, ...]  # one per response
    texts: tuple[str, ...]  # responses without control tokens
    verdicts: tuple[Verdict, ...]
    rewards: Float[np.ndarray, " batch"]
    is_judged: Bool[np.ndarray, " batch"]  # false: there is no reward, and the response is left out
    terms: Mapping[str, Float[np.ndarray, " batch"]]  # of the rewards, unweighted, by name
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the terms in the rewards


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradedRollout(Grades):
    """Responses with their verdicts and rewards."""

    rollout: Rollout

    def __len__(self) -> int:
        return len(self.problems)

    def take(self, rows: np.ndarray) -> "GradedRollout":
        """The given responses."""
        return GradedRollout(
            rollout=self.rollout.take(rows),
            problems=tuple(self.problems[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            verdicts=tuple(self.verdicts[row] for row in rows),
            rewards=self.rewards[rows],
            is_judged=self.is_judged[rows],
            terms={name: values[rows] for name, values in self.terms.items()},
            weights=self.weights,
        )

    def informative(self, *, each_term: bool = False) -> np.ndarray:
        """Indices of the responses whose group has two different rewards; the others have no gradient.

        Rewards that are equal up to rounding are not different.

        Args:
          each_term: two different values of one term that has a weight are enough.
        """
        rows, columns = [], [self.rewards]
        if each_term:
            columns = [values for name, values in self.terms.items() if self.weights[name]]
        for group in dict.fromkeys(self.rollout.group_ids.tolist()):
            members = np.flatnonzero(self.rollout.group_ids == group)
            judged = members[self.is_judged[members]]
            if len(judged) and not all(is_rounding(x[judged].min(), x[judged].max()) for x in columns):
                rows.append(members)
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def columns(self) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
        """The terms of the rewards, one a row, and their weights."""
        weights = [self.weights[name] for name in self.terms]
        return jnp.asarray(np.stack(list(self.terms.values())), jnp.float32), jnp.asarray(weights, jnp.float32)

    @staticmethod
    def concatenate(parts: Sequence["GradedRollout"]) -> "GradedRollout":
        """Several, one after the other; a term that one of them does not have is 0 there."""
        weights = {name: weight for part in parts for name, weight in part.weights.items()}
        names = dict.fromkeys(name for part in parts for name in part.terms)
        return GradedRollout(
            rollout=Rollout.concatenate([part.rollout for part in parts]),
            problems=tuple(problem for part in parts for problem in part.problems),
            texts=tuple(text for part in parts for text in part.texts),
            verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
            rewards=np.concatenate([part.rewards for part in parts]),
            is_judged=np.concatenate([part.is_judged for part in parts]),
            terms={
                name: np.concatenate([part.terms.get(name, np.zeros(len(part))) for part in parts]) for name in names
            },
            weights=weights,
        )

    def metrics(self) -> dict[str, float]:
        """reward/*, response/* and verify/* of these responses."""
        lengths = self.rollout.lengths
        truncated = self.rollout.finish_reasons == FinishReason.LENGTH
        return {
            **reward_metrics(self.rewards, ~self.is_judged, self.terms),
            "reward/informative_fraction": len(self.informative()) / len(self),
            "response/length_mean": float(lengths.mean()),
            "response/length_max": float(lengths.max()),
            "response/truncated_fraction": float(truncated.mean()),
            **ledger(self.verdicts),
        }

    def write(self, file: pathlib.Path) -> None:
        """One JSON line per response."""
        file.parent.mkdir(exist_ok=True)
        write_json_lines(file, map(self.row, range(len(self))))

    def row(self, row: int) -> dict[str, Any]:
        """One response for people and for files."""
        problem, verdict = self.problems[row], self.verdicts[row]
        return {
            "id": problem.id,
            **({"set": problem.set} if problem.set else {}),
            "sample": int(self.rollout.sample_ids[row]),
            "problem": problem.problem,
            "response": self.texts[row],
            "gold": problem.answer,
            **({"extra": dict(problem.extra)} if problem.extra else {}),
            "status": verdict.status,
            "extracted": verdict.extracted,
            "reason": verdict.reason,
            "reward": float(self.rewards[row]),
            "terms": {name: float(values[row]) for name, values in self.terms.items()},
            "tokens": int(self.rollout.lengths[row]),
            "finish": FinishReason(int(self.rollout.finish_reasons[row])).name.lower(),
            **({"versions": _first_and_last(self.rollout.versions[row])} if self.rollout.versions else {}),
        }


def _first_and_last(versions: Int[np.ndarray, " _"]) -> list[int]:
    """Of the weights that sampled a response."""
    return [int(version) for version in versions[[0, -1]]] if len(versions) else []


def between_processes(count: int, start: Callable[[int], Pending]) -> list[Verdict]:
    """How a `Judge` collects verdicts where processes evaluate together: each does its share, all get all of them."""
    started = {index: start(index) for index in share(count)}
    done = {index: dataclasses.asdict(pending.result()) for index, pending in started.items()}
    return [Verdict(**verdict) for verdict in exchange(count, done)]


class Grader:
    """Decodes responses, has them judged and turns verdicts into rewards. A context: it owns the checker's workers.

    Args:
      config: the rewards and the checker's limits.
      tokenizer: of the responses.
      stop_token_ids: what ends a response; one without any of them at its end was cut off.
    """

    def __init__(self, config: RewardConfig, tokenizer: Any, *, stop_token_ids: Sequence[int] = ()):
        self.config = config
        self.stop_token_ids = frozenset(stop_token_ids)
        self._tokenizer = tokenizer
        self.verifier = config.verifier()
        self.judge = Judge(self.verifier, collect=between_processes)
        """Of the responses in training, and in the evaluations of the run."""
        self._runners: list[Runner] | None = None

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_runners()
        self.verifier.close()

    def abandon(self) -> None:
        """Ends the checker's workers at once: nobody waits for their verdicts any more."""
        self._end_runners()
        self.verifier.pool.kill()

    def _end_runners(self) -> None:
        for runner in self._runners or ():
            runner.close()

    @property
    def runners(self) -> list[Runner]:
        """What calls the user's functions, in their order; made when first asked for."""
        if self._runners is None:
            memory = int(self.config.memory_limit_gib * 2**30)
            self._runners = [Runner(user, self.verifier, memory) for user in self.config.user]
        return self._runners

    def begin(self, problems: Sequence[Problem], group_size: int, *, step: int = 0) -> "Grading":
        """For responses that will arrive one by one; `problems` has one entry per group.

        Args:
          step: of the run, for functions that ask for it.
        """
        return Grading(self, problems, group_size, step)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a response, without control tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


class Grading:
    """The grading of one rollout, which goes on in other processes while the rest is sampled.

    Where several processes train together, each has its own share of the responses judged, and of the groups where a
    function is called for a whole group; `result` brings what all have found to each.
    """

    def __init__(self, grader: Grader, problems: Sequence[Problem], group_size: int, step: int):
        self._grader = grader
        self._problems = [problem for problem in problems for _ in range(group_size)]
        self._size, self._step = group_size, step
        self._texts = [""] * len(self._problems)
        self._tokens: list[list[int]] = [[]] * len(self._problems)
        self._mine = share(len(self._problems))
        self._my_groups = share(len(problems))
        self._missing = dict.fromkeys(self._my_groups, group_size)  # responses that have not ended
        self._verdicts: dict[int, Pending] = {}
        self._calls: list[dict[int, _Call]] = [{} for _ in grader.runners]  # by row, or by group

    def finished(self, row: int, tokens: list[int]) -> None:
        """Response `row` has ended: have it judged, and start the user's functions on it, or on its whole group."""
        self._texts[row], self._tokens[row] = self._grader.decode(tokens), tokens
        group, runners = row // self._size, self._grader.runners
        of_groups = [runner.wanted.is_group for runner in runners]
        if row in self._mine:
            self._judge(row)
            for index, runner in enumerate(runners):
                if not of_groups[index]:
                    self._calls[index][row] = _Call(runner, self._verdicts_for(runner, [row]), self._of_response(row))
        if any(of_groups) and group in self._my_groups:
            self._missing[group] -= 1
            if not self._missing[group]:
                self._call_group(group)

    def _judge(self, row: int) -> Pending:
        if row not in self._verdicts:
            self._verdicts[row] = self._grader.judge.submit(self._texts[row], self._problems[row])
        return self._verdicts[row]

    def _call_group(self, group: int) -> None:
        rows = list(range(group * self._size, (group + 1) * self._size))
        for index, runner in enumerate(self._grader.runners):
            if runner.wanted.is_group:
                self._calls[index][group] = _Call(runner, self._verdicts_for(runner, rows), self._of_group(rows))

    def _verdicts_for(self, runner: Runner, rows: list[int]) -> list[Pending]:
        return [self._judge(row) for row in rows] if runner.wanted.wants_verdicts else []

    def _of_problem(self, row: int) -> dict[str, Any]:
        problem = self._problems[row]
        return {
            "problem": problem.problem,
            "gold": problem.answer,
            "solution": problem.solution,
            "id": problem.id,
            "set": problem.set,
            "level": problem.level,
            "subject": problem.subject,
            "extra": dict(problem.extra),
            "step": self._step,
        }

    def _finish(self, row: int) -> str:
        return "stop" if self._tokens[row] and self._tokens[row][-1] in self._grader.stop_token_ids else "length"

    def _of_response(self, row: int) -> dict[str, Any]:
        return self._of_problem(row) | {
            "response": self._texts[row],
            "tokens": self._tokens[row],
            "finish": self._finish(row),
            "sample": row % self._size,
        }

    def _of_group(self, rows: list[int]) -> dict[str, Any]:
        return self._of_problem(rows[0]) | {
            "responses": [self._texts[row] for row in rows],
            "tokens": [self._tokens[row] for row in rows],
            "finishes": [self._finish(row) for row in rows],
        }

    def result(self, lengths: Int[np.ndarray, " batch"], environment: Sequence[float] = ()) -> Grades:
        """Those of all responses; waits for the verdicts and the user's functions that are not there yet.

        Args:
          lengths: tokens of each response.
          environment: its reward of each response, NaN where that is to be left out; none: there is no environment.

        Raises:
          RewardError: a user's reward function failed, on this process or on another; all processes raise.
        """
        try:
            mine = together(self._outcomes)
        except ValueError as error:
            raise error if isinstance(error, RewardError) else RewardError(str(error)) from None
        count = len(self._problems)
        judged = {row: dataclasses.asdict(self._verdicts[row].result()) for row in self._mine}
        verdicts = [Verdict(**verdict) for verdict in exchange(count, judged)]
        users = [index for index, term in enumerate(self._grader.config.terms) if isinstance(term, UserReward)]
        outcomes = {
            index: [Outcome(*outcome) for outcome in exchange(count, own)]
            for index, own in zip(users, mine, strict=True)
        }
        golds = [problem.answer for problem in self._problems]
        scored = score(
            self._grader.config.terms,
            self._texts,
            golds,
            lengths.tolist(),
            verdicts=verdicts,
            outcomes=outcomes,
            environment=environment,
        )
        return Grades(
            problems=tuple(self._problems),
            texts=tuple(self._texts),
            verdicts=tuple(verdicts),
            rewards=np.array(scored.rewards),
            is_judged=~np.array(scored.is_excluded),
            terms={name: np.array(values) for name, values in scored.terms.items()},
            weights=scored.weights,
        )

    def _outcomes(self) -> list[dict[int, Outcome]]:
        """What this process's calls came to, of each function by row."""
        found = []
        for runner, calls in zip(self._grader.runners, self._calls, strict=True):
            size = self._size if runner.wanted.is_group else 1
            found.append(
                {
                    place * size + member: outcome
                    for place, call in calls.items()
                    for member, outcome in enumerate(runner.outcomes(call.result(), size))
                }
            )
        return found


class _Call:
    """A call of a user's function, which waits for the verdicts that it asks for."""

    def __init__(self, runner: Runner, verdicts: Sequence[Pending], values: dict[str, Any]):
        self._runner, self._values, self._verdicts = runner, values, verdicts
        self._lock, self._missing = threading.Lock(), len(verdicts)
        self._submitted: concurrent.futures.Future[concurrent.futures.Future[Any]] = concurrent.futures.Future()
        for pending in verdicts:
            pending.add_done_callback(lambda _: self._one_more())
        if not verdicts:
            self._submit()

    def _one_more(self) -> None:
        with self._lock:
            self._missing -= 1
            is_last = not self._missing
        if is_last:
            self._submit()

    def _submit(self) -> None:
        found = [pending.result() for pending in self._verdicts]
        name = "verdicts" if self._runner.wanted.is_group else "verdict"
        verdicts = {name: found if self._runner.wanted.is_group else found[0]} if found else {}
        try:
            self._submitted.set_result(self._runner.submit(self._values | verdicts))
        except BaseException as error:
            self._submitted.set_exception(error)

    def result(self) -> "concurrent.futures.Future[Any]":
        """The future of the call, once it has begun."""
        return self._submitted.result()
