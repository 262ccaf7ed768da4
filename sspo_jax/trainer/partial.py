"""Partial rollouts: responses that go on over several steps, each under the newest weights.

A step samples in rounds. In a round every response that has not ended gets at most `tokens` new tokens, so what it gets
does not depend on what is decoded beside it, or where, or how fast. The step ends sampling after the first round at
whose end enough groups are complete; what has not ended waits for the next step. A response keeps the key that it was
begun with, and its next token the place that it has: with unchanged weights it is the response of a single round.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool

from sspo_jax.config import PartialConfig
from sspo_jax.sampler import RolloutEngine, SamplingParams
from sspo_jax.sampler.random_bits import row_keys
from sspo_jax.types import FinishReason, Rollout

UNFINISHED = -1
"""In place of a `FinishReason`: the response goes on."""


def begun(prompts: list[list[int]], *, step: int, group_size: int) -> Rollout:
    """Groups of responses without a token yet.

    Args:
      prompts: of a step, always as many; group `(step - 1) * len(prompts) + n` is of the n-th.
      step: that begins them.
    """
    rows = range(len(prompts) * group_size)
    first = (step - 1) * len(prompts)
    return Rollout(
        prompts=tuple(np.array(prompts[row // group_size], np.int32) for row in rows),
        responses=tuple(np.zeros(0, np.int32) for _ in rows),
        logprobs=tuple(np.zeros(0, np.float32) for _ in rows),
        finish_reasons=np.full(len(rows), UNFINISHED, np.int32),
        group_ids=np.array([first + row // group_size for row in rows], np.int32),
        sample_ids=np.array([row % group_size for row in rows], np.int32),
        versions=tuple(np.zeros(0, np.int32) for _ in rows),
    )


def go_on(
    engine: RolloutEngine,
    rollout: Rollout,
    sampling: SamplingParams,
    config: PartialConfig,
    *,
    seed: int,
    prompts: int,
    progress: Callable[[int], None],
    **options: Any,
) -> Rollout:
    """The rollout after the rounds of one step.

    Args:
      engine: with the weights of the step.
      rollout: responses, ended or not.
      sampling: how tokens are drawn; `max_new_tokens` is of a whole response.
      config: of the rounds.
      seed: of the run.
      prompts: that each step begins, as for `begun`.
      progress: as for `RolloutEngine.generate`.
      options: more of `generate`.
    """
    steps, ids = 1 + rollout.group_ids // prompts, rollout.group_ids % prompts
    keys = row_keys(seed, steps, ids, rollout.sample_ids)
    while True:
        rows = np.flatnonzero(rollout.finish_reasons == UNFINISHED)
        if len(rows):
            lengths = rollout.lengths[rows]
            sampled = engine.generate(
                [[*rollout.prompts[row].tolist(), *rollout.responses[row].tolist()] for row in rows],
                sampling,
                seed=seed,
                keys=keys[rows],
                places=lengths.tolist(),
                budgets=np.minimum(config.tokens, sampling.max_new_tokens - lengths).tolist(),
                progress=progress,
                **options,
            )
            rollout = longer(rollout, rows, sampled, version=engine.version, longest=sampling.max_new_tokens)
        groups = len(set(rollout.group_ids.tolist()))
        complete = len(set(rollout.group_ids[is_complete(rollout)].tolist()))
        if complete >= max(1, math.ceil(config.groups * groups)):
            return rollout


def longer(rollout: Rollout, rows: np.ndarray, sampled: Rollout, *, version: int, longest: int) -> Rollout:
    """The rollout with what was sampled for some of its rows at their ends.

    Args:
      version: of the weights that sampled it.
      longest: a response that has so many tokens has ended.
    """
    joined = {name: list(getattr(rollout, name)) for name in ("responses", "logprobs", "versions")}
    reasons = rollout.finish_reasons.copy()
    for row, tokens, logprobs, reason in zip(
        rows, sampled.responses, sampled.logprobs, sampled.finish_reasons, strict=True
    ):
        added = (tokens, logprobs, np.full(len(tokens), version, np.int32))
        for name, values in zip(joined, added, strict=True):
            joined[name][row] = np.concatenate([joined[name][row], values])
        is_over = reason == FinishReason.STOP or len(joined["responses"][row]) >= longest
        reasons[row] = reason if is_over else UNFINISHED
    return Rollout(
        prompts=rollout.prompts,
        finish_reasons=reasons,
        group_ids=rollout.group_ids,
        sample_ids=rollout.sample_ids,
        **{name: tuple(values) for name, values in joined.items()},
    )


def is_complete(rollout: Rollout) -> Bool[np.ndarray, " batch"]:
    """Which rows are of groups whose responses have all ended."""
    going_on = np.unique(rollout.group_ids[rollout.finish_reasons == UNFINISHED])
    return ~np.isin(rollout.group_ids, going_on)
