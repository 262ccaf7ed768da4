"""Rollouts to training rows: several responses packed in a row, rows cut into updates and micro-batches.

Everything here is NumPy on the host; the order of responses is kept as far as packing allows and depends on nothing
but the lengths, so that a resumed run packs the same rows.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sspo_jax.losses.ratios import Level
from sspo_jax.types import Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows, as `TrainBatch` before the training program has scored them."""

    tokens: Int[np.ndarray, "rows time"]
    positions: Int[np.ndarray, "rows time"]
    segment_ids: Int[np.ndarray, "rows time"]
    mask: Bool[np.ndarray, "rows time"]
    advantages: Float[np.ndarray, "rows time"]
    sampler_logprobs: Float[np.ndarray, "rows time"]

    def __len__(self) -> int:
        return len(self.tokens)

    def micro_batches(self, micro_rows: int) -> list["Rows"]:
        """Consecutive cuts of `micro_rows`; the last one is filled up with empty rows."""
        cuts = []
        for first in range(0, len(self), micro_rows):
            fields = {}
            for field in dataclasses.fields(self):
                part = getattr(self, field.name)[first : first + micro_rows]
                missing = micro_rows - len(part)
                fields[field.name] = np.pad(part, ((0, missing), (0, 0))) if missing else part
            cuts.append(Rows(**fields))
        return cuts


def pack_rows(rollout: Rollout, advantages: Float[np.ndarray, " batch"], chosen: np.ndarray, row_tokens: int) -> Rows:
    """Packs the chosen responses, each after its prompt, into rows of `row_tokens`.

    First fit by decreasing length: a response goes to the first row that has room.

    Args:
      rollout: what was sampled.
      advantages: one per response.
      chosen: indices of the responses to pack.
      row_tokens: length of a row.

    Raises:
      ValueError: a prompt and its response are longer than a row.
    """
    prompt_lengths = rollout.prompt_mask.sum(1)
    response_lengths = rollout.response_mask.sum(1)
    lengths = (prompt_lengths + response_lengths)[chosen]
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

    shape = (len(members), row_tokens)
    tokens, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(3))
    mask = np.zeros(shape, bool)
    row_advantages, sampler_logprobs = (np.zeros(shape, np.float32) for _ in range(2))
    for row, responses in enumerate(members):
        start = 0
        for segment, response in enumerate(responses, 1):
            middle = start + prompt_lengths[response]
            end = middle + response_lengths[response]
            tokens[row, start:middle] = rollout.prompt_tokens[response, : prompt_lengths[response]]
            tokens[row, middle:end] = rollout.response_tokens[response, : response_lengths[response]]
            positions[row, start:end] = np.arange(end - start)
            segment_ids[row, start:end] = segment
            mask[row, middle:end] = True
            row_advantages[row, middle:end] = advantages[response]
            sampler_logprobs[row, middle:end] = rollout.sampler_logprobs[response, : response_lengths[response]]
            start = end
    return Rows(
        tokens=tokens,
        positions=positions,
        segment_ids=segment_ids,
        mask=mask,
        advantages=row_advantages,
        sampler_logprobs=sampler_logprobs,
    )


def split_groups(group_ids: Int[np.ndarray, " batch"], parts: int) -> list[np.ndarray]:
    """Indices of the responses of each of `parts` minibatches: whole groups, consecutive, sizes as equal as can be."""
    groups = list(dict.fromkeys(group_ids.tolist()))
    if not groups:  # dynamic sampling found nothing to learn from
        return []
    return [
        np.flatnonzero(np.isin(group_ids, np.asarray(part)))
        for part in np.array_split(np.asarray(groups), min(parts, len(groups)))
    ]


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts one after the other, padded to the widest prompt and response."""
    if len(rollouts) == 1:
        return rollouts[0]
    fields = {}
    for field in dataclasses.fields(Rollout):
        arrays = [getattr(rollout, field.name) for rollout in rollouts]
        if arrays[0].ndim == 2:
            width = max(array.shape[1] for array in arrays)
            arrays = [np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays]
        fields[field.name] = np.concatenate(arrays)
    return Rollout(**fields)


def select(rollout: Rollout, rows: np.ndarray) -> Rollout:
    """The given rows of a rollout."""
    return Rollout(**{field.name: getattr(rollout, field.name)[rows] for field in dataclasses.fields(rollout)})


def entropy_labels(
    unit: Level, segment_ids: Int[np.ndarray, "rows time"], subsentence_ids: Int[np.ndarray, "rows time"]
) -> Int[np.ndarray, "rows time"]:
    """Which unit of its row each token belongs to, as `entropy_statistics` takes it."""
    if unit == "token":
        return np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
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
