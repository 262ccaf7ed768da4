"""From problems to judged groups: sample, decode, verify, reward, and with dynamic sampling draw again."""

import concurrent.futures
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sspo_jax.advantages import is_rounding
from sspo_jax.checker import Verdict, Verifier
from sspo_jax.data.problems import Problem
from sspo_jax.distributed.processes import exchange, share
from sspo_jax.rewards import RewardConfig, score
from sspo_jax.trainer.batch import concatenate, select
from sspo_jax.types import FinishReason, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Judged responses, the samples of a problem beside each other."""

    rollout: Rollout
    problems: tuple[Problem, ...]  # one per response
    texts: tuple[str, ...]  # responses without control tokens
    verdicts: tuple[Verdict, ...]
    rewards: Float[np.ndarray, " batch"]
    is_judged: Bool[np.ndarray, " batch"]  # false: the checker gave no verdict, and the response is left out

    def __len__(self) -> int:
        return len(self.problems)

    def take(self, rows: np.ndarray) -> "Groups":
        """The given responses."""
        return Groups(
            rollout=select(self.rollout, rows),
            problems=tuple(self.problems[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            verdicts=tuple(self.verdicts[row] for row in rows),
            rewards=self.rewards[rows],
            is_judged=self.is_judged[rows],
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
    def concatenate(parts: Sequence["Groups"]) -> "Groups":
        """Groups one after the other."""
        return Groups(
            rollout=concatenate([part.rollout for part in parts]),
            problems=tuple(problem for part in parts for problem in part.problems),
            texts=tuple(text for part in parts for text in part.texts),
            verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
            rewards=np.concatenate([part.rewards for part in parts]),
            is_judged=np.concatenate([part.is_judged for part in parts]),
        )

    def metrics(self) -> dict[str, float]:
        """reward/*, response/* and verify/* of these responses."""
        lengths = self.rollout.response_mask.sum(1)
        truncated = self.rollout.finish_reasons == FinishReason.LENGTH
        statuses = [verdict.status for verdict in self.verdicts]
        rewards = self.rewards[self.is_judged]
        informative = len(self.informative())
        metrics = {
            "reward/mean": float(rewards.mean()) if len(rewards) else 0.0,
            "reward/std": float(rewards.std()) if len(rewards) else 0.0,
            "reward/informative_fraction": informative / len(self),
            "response/length_mean": float(lengths.mean()),
            "response/length_max": float(lengths.max()),
            "response/truncated_fraction": float(truncated.mean()),
        }
        for status in ("correct", "wrong", "unparsed", "timeout", "error"):
            metrics[f"verify/{status}_fraction"] = statuses.count(status) / len(self)
        return metrics

    def write(self, file: pathlib.Path) -> None:
        """One JSON line per response."""
        file.parent.mkdir(exist_ok=True)
        with open(file, "w", encoding="utf-8") as stream:
            for row in range(len(self)):
                stream.write(json.dumps(self.row(row), ensure_ascii=False) + "\n")

    def row(self, row: int) -> dict[str, Any]:
        """One response for people and for files."""
        problem, verdict = self.problems[row], self.verdicts[row]
        return {
            "id": problem.id,
            "sample": int(self.rollout.sample_ids[row]),
            "problem": problem.problem,
            "response": self.texts[row],
            "gold": problem.answer,
            "status": verdict.status,
            "extracted": verdict.extracted,
            "reason": verdict.reason,
            "reward": float(self.rewards[row]),
            "tokens": int(self.rollout.response_mask[row].sum()),
            "finish": FinishReason(int(self.rollout.finish_reasons[row])).name.lower(),
        }


class Stopwatch:
    """Adds up seconds by name.

    >>> watch = Stopwatch()
    >>> with watch("rollout"):
    ...     pass
    >>> watch.seconds["rollout"] >= 0
    True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> "_Lap":
        return _Lap(self, name)


class _Lap:
    def __init__(self, watch: Stopwatch, name: str):
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        elapsed = time.monotonic() - self._start
        self._watch.seconds[self._name] = self._watch.seconds.get(self._name, 0.0) + elapsed


class SharedVerifier:
    """A verifier of whose batches each process does its share; all processes call it together."""

    def __init__(self, verifier: Verifier):
        self._verifier = verifier

    def verify_batch(self, responses: Sequence[str], golds: Sequence[str], **options: Any) -> list[Verdict]:
        """As `Verifier.verify_batch`, the same on every process."""
        mine = share(len(responses))
        verdicts = self._verifier.verify_batch(
            [responses[row] for row in mine], [golds[row] for row in mine], **options
        )
        done = dict(zip(mine, map(dataclasses.asdict, verdicts), strict=True))
        return [Verdict(**verdict) for verdict in exchange(len(responses), done)]


class Judge:
    """Decodes responses, has them verified and turns verdicts into rewards. A context: it owns the checker's workers.

    Args:
      config: the rewards and the checker's limits.
      tokenizer: of the responses.
    """

    def __init__(self, config: RewardConfig, tokenizer: Any):
        self.config = config
        self._tokenizer = tokenizer
        self.verifier = config.verifier()

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.verifier.close()

    def abandon(self) -> None:
        """Ends the checker's workers at once: nobody waits for their verdicts any more."""
        self.verifier.pool.kill()

    def begin(self, problems: Sequence[Problem], group_size: int) -> "Judging":
        """For responses that will arrive one by one; `problems` has one entry per group."""
        return Judging(self, [problem for problem in problems for _ in range(group_size)])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a response, without control tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


class Judging:
    """The verification of one rollout, which goes on in other processes while the rest is sampled.

    Where several processes train together, each has its own share of the responses verified, and `result` brings the
    verdicts of all to each.
    """

    def __init__(self, judge: Judge, problems: list[Problem]):
        self._judge = judge
        self._problems = problems
        self._texts = [""] * len(problems)
        self._mine = share(len(problems))
        self._verdicts: dict[int, concurrent.futures.Future[Verdict]] = {}

    def finished(self, row: int, tokens: list[int]) -> None:
        """Response `row` has ended: have it verified."""
        self._texts[row] = self._judge.decode(tokens)
        if row in self._mine:
            self._verdicts[row] = self._judge.verifier.submit(self._texts[row], self._problems[row].answer)

    def result(self, rollout: Rollout) -> Groups:
        """All responses, judged; waits for the verdicts that are not there yet."""
        lengths = rollout.response_mask.sum(1).tolist()
        scored = score(
            self._judge.config.terms,
            [self._texts[row] for row in self._mine],
            [self._problems[row].answer for row in self._mine],
            [lengths[row] for row in self._mine],
            verifier=self._judge.verifier,
            verdicts=[self._verdicts[row].result() for row in self._mine],
        )
        judged = zip(map(dataclasses.asdict, scored.verdicts), scored.rewards, scored.is_excluded, strict=True)
        verdicts, rewards, excluded = zip(
            *exchange(len(self._problems), dict(zip(self._mine, judged, strict=True))), strict=True
        )
        return Groups(
            rollout=rollout,
            problems=tuple(self._problems),
            texts=tuple(self._texts),
            verdicts=tuple(Verdict(**verdict) for verdict in verdicts),
            rewards=np.array(rewards),
            is_judged=~np.array(excluded),
        )
