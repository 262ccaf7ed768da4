"""From sampled responses to rewards: decode, judge and reward, while others are still sampled."""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sspo_jax.advantages import is_rounding
from sspo_jax.checker import Verdict, ledger
from sspo_jax.data.problems import Problem
from sspo_jax.distributed.processes import exchange, share, together
from sspo_jax.evaluation.judging import Judge, Pending
from sspo_jax.files import write_json_lines
from sspo_jax.rewards import RewardConfig, RewardError, Scored, UserReward, reward_metrics, score
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
        )

    def informative(self) -> np.ndarray:
        """Indices of the responses whose group has two different rewards; the others have no gradient.

        Rewards that are equal up to rounding are not different.
        """
        rows = []
        for group in dict.fromkeys(self.rollout.group_ids.tolist()):
            members = np.flatnonzero(self.rollout.group_ids == group)
            rewards = self.rewards[members][self.is_judged[members]]
            if len(rewards) and not is_rounding(rewards.min(), rewards.max()):
                rows.append(members)
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    @staticmethod
    def concatenate(parts: Sequence["GradedRollout"]) -> "GradedRollout":
        """Several, one after the other."""
        return GradedRollout(
            rollout=Rollout.concatenate([part.rollout for part in parts]),
            problems=tuple(problem for part in parts for problem in part.problems),
            texts=tuple(text for part in parts for text in part.texts),
            verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
            rewards=np.concatenate([part.rewards for part in parts]),
            is_judged=np.concatenate([part.is_judged for part in parts]),
            terms={name: np.concatenate([part.terms[name] for part in parts]) for name in parts[0].terms},
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
    """

    def __init__(self, config: RewardConfig, tokenizer: Any):
        self.config = config
        self._tokenizer = tokenizer
        self.verifier = config.verifier()
        self.judge = Judge(self.verifier, collect=between_processes)
        """Of the responses in training, and in the evaluations of the run."""

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.verifier.close()

    def abandon(self) -> None:
        """Ends the checker's workers at once: nobody waits for their verdicts any more."""
        self.verifier.pool.kill()

    def begin(self, problems: Sequence[Problem], group_size: int) -> "Grading":
        """For responses that will arrive one by one; `problems` has one entry per group."""
        return Grading(self, [problem for problem in problems for _ in range(group_size)])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a response, without control tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


class Grading:
    """The grading of one rollout, which goes on in other processes while the rest is sampled.

    Where several processes train together, each has its own share of the responses judged, and `result` brings the
    verdicts of all to each.
    """

    def __init__(self, grader: Grader, problems: list[Problem]):
        self._grader = grader
        self._problems = problems
        self._texts = [""] * len(problems)
        self._mine = share(len(problems))
        self._verdicts: dict[int, Pending] = {}
        terms = enumerate(grader.config.terms)
        self._users = {index: term for index, term in terms if isinstance(term, UserReward)}
        self._calls: dict[int, dict[int, concurrent.futures.Future[Any]]] = {index: {} for index in self._users}

    def finished(self, row: int, tokens: list[int]) -> None:
        """Response `row` has ended: have it judged, and start the user's functions on it."""
        text = self._texts[row] = self._grader.decode(tokens)
        if row not in self._mine:
            return
        self._verdicts[row] = self._grader.judge.submit(text, self._problems[row])
        for index, user in self._users.items():
            self._calls[index][row] = user.submit(self._grader.verifier, text, self._problems[row].answer)

    def result(self, lengths: Int[np.ndarray, " batch"]) -> Grades:
        """Those of all responses; waits for the verdicts that are not there yet.

        Args:
          lengths: tokens of each response.

        Raises:
          RewardError: a user's reward function failed, on this process or on another; all processes raise.
        """
        try:
            scored = together(lambda: self._score(lengths.tolist()))
        except ValueError as error:
            raise error if isinstance(error, RewardError) else RewardError(str(error)) from None
        names = tuple(scored.terms)
        columns = (map(dataclasses.asdict, scored.verdicts), scored.rewards, scored.is_excluded, *scored.terms.values())
        done = dict(zip(self._mine, zip(*columns, strict=True), strict=True))
        verdicts, rewards, excluded, *terms = zip(*exchange(len(self._problems), done), strict=True)
        return Grades(
            problems=tuple(self._problems),
            texts=tuple(self._texts),
            verdicts=tuple(Verdict(**verdict) for verdict in verdicts),
            rewards=np.array(rewards),
            is_judged=~np.array(excluded),
            terms={name: np.array(values) for name, values in zip(names, terms, strict=True)},
        )

    def _score(self, lengths: list[int]) -> Scored:
        """This process's share."""
        return score(
            self._grader.config.terms,
            [self._texts[row] for row in self._mine],
            [self._problems[row].answer for row in self._mine],
            [lengths[row] for row in self._mine],
            verifier=self._grader.verifier,
            verdicts=[self._verdicts[row].result() for row in self._mine],
            calls={index: [calls[row] for row in self._mine] for index, calls in self._calls.items()},
        )
