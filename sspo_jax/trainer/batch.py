"""Rollouts to training rows: several responses packed in a row, rows cut into updates and micro-batches.

Everything here is NumPy on the host; the order of responses is kept as far as packing allows and depends on nothing
but the lengths, so that a resumed run packs the same rows.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from sspo_jax.losses.ratios import Level
from sspo_jax.types import Rollout, TrainBatch

NO_ROLLOUT = Rollout(
    prompts=(),
    responses=(),
    logprobs=(),
    finish_reasons=np.zeros(0, np.int32),
    group_ids=np.zeros(0, np.int32),
    sample_ids=np.zeros(0, np.int32),
)
"""Without any response: rows of it are empty."""


def assign_rows(rollout: Rollout, chosen: np.ndarray, *, row_tokens: int) -> list[list[int]]:
    """Which of the chosen responses each training row holds, in order: segment n of row r is `[r][n - 1]`.

    First fit by decreasing length: a response, after its prompt, goes to the first row that has room.

    Args:
      rollout: what was sampled.
      chosen: indices of the responses to place.
      row_tokens: length of a row.

    Raises:
      ValueError: a prompt and its response are longer than a row.
    """
    prompt_lengths = np.array([len(prompt) for prompt in rollout.prompts], np.int64)
    lengths = (prompt_lengths + rollout.lengths)[chosen]
    if len(chosen) and lengths.max() > row_tokens:
        raise ValueError(
            f"a prompt with its response has {lengths.max()} tokens, a training row {row_tokens}: raise "
            "--update.row-tokens, or lower --rollout.max-new-tokens or --rollout.max-prompt-tokens"
        )
    members: list[list[int]] = []
    room: list[int] = []
    for place in np.argsort(-lengths, kind="stable"):
        length = int(lengths[place])
        row = next((row for row, free in enumerate(room) if free >= length), len(room))
        if row == len(room):
            members.append([])
            room.append(row_tokens)
        members[row].append(int(chosen[place]))
        room[row] -= length
    return members


def pack_rows(
    rollout: Rollout,
    advantages: Float[np.ndarray, " batch"],
    members: Sequence[Sequence[int]],
    *,
    row_tokens: int,
    micro_rows: int,
) -> list[TrainBatch]:
    """Rows that hold the given responses, each after its prompt, in micro-batches.

    What only scoring can fill in is zero.

    Args:
      rollout: what was sampled.
      advantages: one per response.
      members: the responses of each row, in order, of a whole update; see `assign_rows`.
      row_tokens: length of a row.
      micro_rows: rows of a micro-batch; the last one is filled up with empty rows.
    """
    batches, shape = [], (micro_rows, row_tokens)
    said = rollout.said or tuple(np.ones(len(response), bool) for response in rollout.responses)
    chosen = [response for row in members for response in row]
    group_tokens = dict.fromkeys(rollout.group_ids.tolist(), 0)
    for response in chosen:
        group_tokens[int(rollout.group_ids[response])] += int(said[response].sum())
    for cut in range(0, len(members), micro_rows):
        tokens, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(3))
        mask = np.zeros(shape, bool)
        row_advantages, sampler_logprobs, of_group = (np.zeros(shape, np.float32) for _ in range(3))
        for row, responses in enumerate(members[cut : cut + micro_rows]):
            start = 0
            for segment, response in enumerate(responses, 1):
                middle = start + len(rollout.prompts[response])
                end = middle + len(rollout.responses[response])
                tokens[row, start:middle] = rollout.prompts[response]
                tokens[row, middle:end] = rollout.responses[response]
                positions[row, start:end] = np.arange(end - start)
                segment_ids[row, start:end] = segment
                mask[row, middle:end] = said[response]
                of_group[row, middle:end] = group_tokens[int(rollout.group_ids[response])]
                row_advantages[row, middle:end] = advantages[response]
                sampler_logprobs[row, middle:end] = rollout.logprobs[response]
                start = end
        unknown = np.zeros(shape, np.float32)
        batch = TrainBatch(
            tokens=tokens,
            positions=positions,
            segment_ids=segment_ids,
            mask=mask,
            advantages=row_advantages,
            sampler_logprobs=sampler_logprobs,
            old_logprobs=unknown,
            entropies=unknown,
            subsentence_ids=np.full(shape, -1, np.int32),
            group_tokens=of_group,
        )
        batches.append(batch)
    return batches


def split_groups(group_ids: Int[np.ndarray, " batch"], parts: int) -> list[np.ndarray]:
    """Indices of the responses of each of `parts` minibatches: whole groups, consecutive, sizes as equal as can be."""
    groups = list(dict.fromkeys(group_ids.tolist()))
    if not groups:  # dynamic sampling found nothing to learn from
        return []
    return [
        np.flatnonzero(np.isin(group_ids, np.asarray(part)))
        for part in np.array_split(np.asarray(groups), min(parts, len(groups)))
    ]


def entropy_labels(
    unit: Level, segment_ids: Int[np.ndarray, "rows time"], subsentence_ids: Int[np.ndarray, "rows time"]
) -> Int[np.ndarray, "rows time"]:
    """Which unit of its row each token belongs to, as `entropy_statistics` takes it."""
    if unit == "token":
        return np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
    if unit == "turn":  # valid tokens without a gap
        mask = subsentence_ids >= 0
        return np.cumsum(mask & ~np.pad(mask[:, :-1], ((0, 0), (1, 0))), axis=1)
    return segment_ids if unit == "response" else subsentence_ids


def entropy_statistics(
    scored: Sequence[tuple[np.ndarray, np.ndarray]], masks: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Hbar over all valid tokens of a rollout, and the standard deviation of H_k over them (nats, float64).

    Args:
      scored: (entropies, unit of each token in its row, from 0) of each micro-batch, both [rows, time].
      masks: their valid tokens.
    """
    count, total, of_unit = 0, 0.0, []
    for (entropies, labels), mask in zip(scored, masks, strict=True):
        # Labels count along a row, so row and label make one label of the unit.
        units = (np.arange(len(labels))[:, None] * (labels.shape[1] + 1) + labels)[mask]
        values = entropies[mask].astype(np.float64)
        means = np.bincount(units, values) / np.maximum(np.bincount(units), 1)
        of_unit.append(means[units])
        count, total = count + len(values), total + float(values.sum())
    mean = total / max(count, 1)
    squares = sum(float(np.square(values - mean).sum()) for values in of_unit)
    return mean, (squares / max(count, 1)) ** 0.5
