"""Samples of a policy to verdicts to scores: what `sspo evaluate` and the evaluation inside training share."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sspo_jax.data.problems import Problem, ProblemSource, iterate
from sspo_jax.evaluation.judging import Judge, gold_of
from sspo_jax.evaluation.scoring import SampleRow, SetScores, score_set


@runtime_checkable
class SampleFunction(Protocol):
    """`sample(prompts, group_size=..., sampling=..., seed=...)` returns a `types.Rollout` of all the prompts."""

    def __call__(self, prompts: list[list[int]], *, group_size: int, sampling: Any, seed: int) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """One sampled response before it is judged."""

    problem: Problem
    """What it answers."""
    sample: int
    """Index among the problem's responses."""
    text: str
    """Decoded, without special tokens."""
    tokens: int
    """Length, the end token included; -1 where it is not known."""
    truncated: bool
    """Whether the length budget ended it."""


def evaluate_policy(
    sample: SampleFunction,
    source: ProblemSource,
    *,
    prompts: Callable[[Problem], list[int]],
    tokenizer: Any,
    judge: Judge,
    sampling: Any,
    group_size: int,
    seed: int,
    problems_at_once: int = 64,
    name: str | None = None,
    done: Sequence[SampleRow] = (),
    on_rows: Callable[[list[SampleRow]], None] | None = None,
) -> tuple[SetScores, list[SampleRow]]:
    """Samples responses to every problem of a set, judges them and scores the set.

    Problems are sampled in blocks with a seed of their own, made from (seed, set, first problem of the block), so an
    interrupted evaluation goes on with the blocks it has not finished and gives the same responses.

    Args:
      sample: the sampler, with its parameters bound.
      source: the set.
      prompts: problem to prompt tokens, such as a `PromptTokenizer`; called for all problems before any is sampled.
      tokenizer: decodes responses.
      judge: of the responses.
      sampling: handed to `sample` as it is.
      group_size: responses per problem.
      seed: of the sampling and of the bootstrap.
      problems_at_once: size of a block; part of what decides the samples.
      name: of the set in the results; None is the source's own.
      done: judged responses of an earlier, interrupted run; those of unfinished blocks are not used.
      on_rows: called with the judged responses of each new block, to write them down.

    Returns:
      The scores, and all judged responses in order of problems.
    """
    name = name or source.name
    problems = list(iterate(source))
    tokens = [prompts(problem) for problem in problems]
    earlier = {(row.id, row.sample): row for row in done}
    rows: list[SampleRow] = []
    for first, block in _blocks(problems, problems_at_once):
        old = _finished(block, earlier, group_size)
        if old is None:
            rollout = sample(
                tokens[first : first + len(block)],
                group_size=group_size,
                sampling=sampling,
                seed=block_seed(seed, name, block[0].id),
            )
            new = judged(name, responses_of(rollout, block, tokenizer), judge)
            if on_rows is not None:
                on_rows(new)
            rows += new
        else:
            rows += old
    return score_rows(name, source.digest, problems, rows, judge, seed=seed), rows


def score_rows(
    name: str, digest: str, problems: Sequence[Problem], rows: Sequence[SampleRow], judge: Judge, *, seed: int
) -> SetScores:
    """`scoring.score_set` with the judge deciding which answers are the same."""
    return score_set(name, digest, problems, rows, equivalent=judge.is_same, seed=seed)


def responses_of(rollout: Any, problems: Sequence[Problem], tokenizer: Any) -> list[Response]:
    """The responses of a `types.Rollout` over these problems, decoded, in order of problem and sample."""
    responses = []
    for row in np.lexsort((rollout.sample_ids, rollout.group_ids)):
        tokens = rollout.responses[row].tolist()
        responses.append(
            Response(
                problem=problems[int(rollout.group_ids[row])],
                sample=int(rollout.sample_ids[row]),
                text=tokenizer.decode(tokens, skip_special_tokens=True),
                tokens=len(tokens),
                truncated=int(rollout.finish_reasons[row]) == 0,  # FinishReason.LENGTH, without importing JAX here
            )
        )
    return responses


def judged(name: str, responses: Sequence[Response], judge: Judge) -> list[SampleRow]:
    """Responses of the set `name` with their verdicts."""
    verdicts = judge.verdicts([response.text for response in responses], [response.problem for response in responses])
    return [
        SampleRow(
            set=name,
            id=response.problem.id,
            sample=response.sample,
            response=response.text,
            tokens=response.tokens,
            truncated=response.truncated,
            status=verdict.status,
            extracted=verdict.extracted,
            gold=gold_of(response.problem),
            reason=verdict.reason,
        )
        for response, verdict in zip(responses, verdicts, strict=True)
    ]


def block_seed(seed: int, name: str, first_id: str) -> int:
    """The seed of a block of problems, 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{first_id}".encode()).digest()[:4], "big") >> 1


def _blocks(problems: Sequence[Problem], size: int) -> Iterator[tuple[int, Sequence[Problem]]]:
    for first in range(0, len(problems), size):
        yield first, problems[first : first + size]


def _finished(
    block: Sequence[Problem], done: Mapping[tuple[str, int], SampleRow], group_size: int
) -> list[SampleRow] | None:
    """The earlier rows of a block in order, if all are there."""
    wanted = [(problem.id, sample) for problem in block for sample in range(group_size)]
    return [done[key] for key in wanted] if all(key in done for key in wanted) else None
