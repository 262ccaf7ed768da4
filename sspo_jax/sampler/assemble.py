"""Finished responses to a `Rollout`."""

from collections.abc import Sequence

import numpy as np

from sspo_jax.types import Rollout


def assemble(
    prompts: Sequence[Sequence[int]],
    group_size: int,
    responses: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float] | np.ndarray],
    finish_reasons: Sequence[int],
) -> Rollout:
    """Rows ordered by prompt, then by sample.

    Args:
      prompts: one for each group.
      responses: token ids of every row.
      logprobs: of the tokens of every row, nats.
      finish_reasons: values of `FinishReason`.
    """
    rows = np.arange(len(responses), dtype=np.int32)
    groups = rows // group_size
    shared = [np.asarray(prompt, np.int32) for prompt in prompts]
    return Rollout(
        prompts=tuple(shared[group] for group in groups.tolist()),
        responses=tuple(np.asarray(response, np.int32) for response in responses),
        logprobs=tuple(np.asarray(values, np.float32) for values in logprobs),
        finish_reasons=np.asarray(finish_reasons, np.int32),
        group_ids=groups,
        sample_ids=rows % group_size,
    )
