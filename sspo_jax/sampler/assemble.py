"""Finished responses to a `Rollout`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sspo_jax.types import Rollout


def assemble(
    prompts: Sequence[Sequence[int]],
    group_size: int,
    responses: Sequence[Sequence[int]],
    logprobs: Float[np.ndarray, "batch time"],
    finish_reasons: Sequence[int],
) -> Rollout:
    """Pads rows on the right; they are ordered by prompt, then by sample.

    Args:
      prompts: one for each group.
      responses: token ids of every row.
      logprobs: of the tokens, padded already.
      finish_reasons: values of `FinishReason`.
    """
    rows = np.arange(len(responses), dtype=np.int32)
    groups = rows // group_size
    prompt_tokens, prompt_mask = pad_rows([prompts[group] for group in groups.tolist()], np.int32)
    tokens, mask = pad_rows(responses, np.int32)
    return Rollout(
        prompt_tokens=prompt_tokens,
        prompt_mask=prompt_mask,
        response_tokens=tokens,
        response_mask=mask,
        sampler_logprobs=logprobs,
        finish_reasons=np.asarray(finish_reasons, np.int32),
        group_ids=groups,
        sample_ids=rows % group_size,
    )


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray], dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """(rows in one array, zeros at the right; mask of what is not padding)."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    padded = np.zeros(mask.shape, dtype)
    padded[mask] = np.concatenate([np.asarray(row, dtype) for row in rows])
    return padded, mask
