"""Rollouts to training rows: several responses packed in a row, rows cut into updates and micro-batches.

Everything here is NumPy on the host; the order of responses is kept as far as packing allows and depends on nothing
but the lengths, so that a resumed run packs the same rows.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

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


def assign_rows(
    rollout: Rollout,
    chosen: np.ndarray,
    *,
    row_tokens: int,
    share_prompts: bool = False,
    advantages: Float[np.ndarray, " batch"] | None = None,
) -> list[list[int]]:
    """Which of the chosen responses each training row holds, in order: segment n of row r is `[r][n - 1]`.

    First fit by decreasing length: a response goes to the first row that has room for it and its prompt. With shared
    prompts the same of whole groups, response by response, and rows that hold the prompt already come first.

    Args:
      rollout: what was sampled.
      chosen: indices of the responses to place.
      row_tokens: length of a row.
      share_prompts: a row holds a prompt once for all responses to it; see `pack_rows`.
      advantages: of all responses; those with 0 are placed after the others, so that they fill the last micro-batches,
        whose backward pass is then left out.

    Raises:
      ValueError: a prompt and its response are longer than a row.
    """
    lengths = (np.array([len(prompt) for prompt in rollout.prompts], np.int64) + rollout.lengths)[chosen]
    if len(chosen) and lengths.max() > row_tokens:
        raise ValueError(
            f"a prompt with its response has {lengths.max()} tokens, a training row {row_tokens}: raise "
            "--update.row-tokens, or lower --rollout.max-new-tokens or --rollout.max-prompt-tokens"
        )
    is_last = np.zeros(len(chosen), bool) if advantages is None else advantages[chosen] == 0
    decreasing = [int(chosen[place]) for place in np.lexsort((-lengths, is_last))]
    if share_prompts:
        return _assign_groups(rollout, decreasing, row_tokens, last={int(one) for one in chosen[is_last]})
    members: list[list[int]] = []
    room: list[int] = []
    for response in decreasing:
        length = len(rollout.prompts[response]) + len(rollout.responses[response])
        row = next((row for row, free in enumerate(room) if free >= length), len(room))
        if row == len(room):
            members.append([])
            room.append(row_tokens)
        members[row].append(response)
        room[row] -= length
    return members


def _prompt_of(rollout: Rollout, response: int) -> tuple[int, bytes]:
    """What responses have in common that can share a prompt."""
    return int(rollout.group_ids[response]), rollout.prompts[response].tobytes()


def _assign_groups(
    rollout: Rollout, decreasing: Sequence[int], row_tokens: int, *, last: Collection[int]
) -> list[list[int]]:
    groups: dict[tuple[int, bytes], list[int]] = {}
    for response in decreasing:
        groups.setdefault(_prompt_of(rollout, response), []).append(response)

    def order(group: Sequence[int]) -> tuple[bool, int]:
        tokens = len(rollout.prompts[group[0]]) + sum(len(rollout.responses[response]) for response in group)
        return all(response in last for response in group), -tokens

    rows: list[list[list[int]]] = []  # parts of groups in each row
    room: list[int] = []
    for group in sorted(groups.values(), key=order):
        parts: dict[int, list[int]] = {}  # by row
        for response in group:
            more = 1 + len(rollout.responses[response])  # where the prompt is; else all of it
            whole = len(rollout.prompts[response]) + len(rollout.responses[response])
            row = next((row for row in parts if room[row] >= more), None)
            if row is None:
                row = next((row for row, free in enumerate(room) if free >= whole and row not in parts), len(room))
                if row == len(room):
                    rows.append([])
                    room.append(row_tokens)
                parts[row] = []
                rows[row].append(parts[row])
            room[row] -= more if parts[row] else whole
            parts[row].append(response)
    return [[response for part in row for response in part] for row in rows]


def pack_rows(
    rollout: Rollout,
    advantages: Float[np.ndarray, " batch"],
    members: Sequence[Sequence[int]],
    *,
    row_tokens: int,
    micro_rows: int,
    share_prompts: bool = False,
) -> list[TrainBatch]:
    """Rows that hold the given responses, each after its prompt, in micro-batches.

    What only scoring can fill in is zero.

    With shared prompts, responses of a group that follow each other have one prompt before the first of them. It is a
    segment of its own, without its last token; that one begins each response, because what is predicted first has to
    be predicted by a token of its own. `prefix_ids` lets a response see the prompt, and positions are those that it
    has alone, so nothing but the order of sums is changed.

    Args:
      rollout: what was sampled.
      advantages: one per response.
      members: the responses of each row, in order, of a whole update; see `assign_rows`.
      row_tokens: length of a row.
      micro_rows: rows of a micro-batch; the last one is filled up with empty rows.
      share_prompts: as for `assign_rows`.
    """
    batches, shape = [], (micro_rows, row_tokens)
    said = rollout.said or tuple(np.ones(len(response), bool) for response in rollout.responses)
    chosen = [response for row in members for response in row]
    group_tokens = dict.fromkeys(rollout.group_ids.tolist(), 0)
    for response in chosen:
        group_tokens[int(rollout.group_ids[response])] += int(said[response].sum())
    for cut in range(0, len(members), micro_rows):
        tokens, positions, segment_ids, prefix_ids = (np.zeros(shape, np.int32) for _ in range(4))
        mask = np.zeros(shape, bool)
        row_advantages, sampler_logprobs, of_group = (np.zeros(shape, np.float32) for _ in range(3))
        for row, responses in enumerate(members[cut : cut + micro_rows]):
            start = 0
            for piece in _pieces(rollout, responses, share_prompts=share_prompts):
                middle = start + len(piece.context)
                tokens[row, start:middle] = piece.context
                end = middle
                if (response := piece.response) is not None:
                    end = middle + len(rollout.responses[response])
                    tokens[row, middle:end] = rollout.responses[response]
                    mask[row, middle:end] = said[response]
                    of_group[row, middle:end] = group_tokens[int(rollout.group_ids[response])]
                    row_advantages[row, middle:end] = advantages[response]
                    sampler_logprobs[row, middle:end] = rollout.logprobs[response]
                positions[row, start:end] = np.arange(piece.position, piece.position + end - start)
                segment_ids[row, start:end], prefix_ids[row, start:end] = piece.segment, piece.prefix
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
            prefix_ids=prefix_ids if share_prompts else None,
            group_tokens=of_group,
        )
        batches.append(batch)
    return batches


class _Piece(NamedTuple):
    """Successive tokens of a row: a response with what stands before it, or what several responses share."""

    segment: int
    prefix: int
    """Segment that is seen as well; its own where there is none."""
    position: int
    """Of the first token, in its sequence."""
    context: Int[np.ndarray, " _"]
    response: int | None
    """That follows the context."""


def _pieces(rollout: Rollout, responses: Sequence[int], *, share_prompts: bool) -> Iterator[_Piece]:
    """What a row holds, from its start."""
    if not share_prompts:
        for segment, response in enumerate(responses, 1):
            yield _Piece(segment, segment, 0, rollout.prompts[response], response)
        return
    before, prefix = None, 0
    for segment, response in enumerate(responses, 1):
        prompt = rollout.prompts[response]
        if before != (before := _prompt_of(rollout, response)):
            prefix = len(responses) + segment  # the number of no response
            yield _Piece(prefix, prefix, 0, prompt[:-1], None)
        yield _Piece(segment, prefix, len(prompt) - 1, prompt[-1:], response)


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
