"""Packing: every response once, nothing lost, order and lengths only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax.models.attention import segment_mask
from sspo_jax.trainer.batch import assign_rows, entropy_statistics, pack_rows, split_groups
from sspo_jax.types import Rollout, TrainBatch


def rollout(lengths: list[tuple[int, int]]) -> Rollout:
    """Responses of given (prompt, response) lengths, with tokens that name them."""
    prompts = [1000 * (row + 1) + np.arange(prompt, dtype=np.int32) for row, (prompt, _) in enumerate(lengths)]
    responses = [1000 * (row + 1) + 500 + np.arange(width, dtype=np.int32) for row, (_, width) in enumerate(lengths)]
    return Rollout(
        prompts=tuple(prompts),
        responses=tuple(responses),
        logprobs=tuple(-response.astype(np.float32) for response in responses),
        finish_reasons=np.ones(len(lengths), np.int32),
        group_ids=np.arange(len(lengths), dtype=np.int32) // 2,
        sample_ids=np.arange(len(lengths), dtype=np.int32) % 2,
    )


def packed(sampled: Rollout, advantages: np.ndarray, chosen: np.ndarray, row_tokens: int) -> TrainBatch:
    """All rows in one batch."""
    members = assign_rows(sampled, chosen, row_tokens=row_tokens)
    cuts = pack_rows(sampled, advantages, members, row_tokens=row_tokens, micro_rows=1)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *cuts)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 11)), min_size=1, max_size=30), st.integers(20, 50))
def test_every_response_is_packed_once_behind_its_prompt(lengths, row_tokens):
    sampled = rollout(lengths)
    rows = packed(sampled, np.arange(len(lengths), dtype=np.float32), np.arange(len(lengths)), row_tokens)
    found = {}
    for row in range(len(rows.tokens)):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            where = rows.segment_ids[row] == segment
            places = np.flatnonzero(where)
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))
            assert np.array_equal(rows.positions[row, where], np.arange(len(places)))
            mask, tokens = rows.mask[row, where], rows.tokens[row, where]
            response = int(tokens[0] // 1000 - 1)
            assert response not in found
            found[response] = (int((~mask).sum()), int(mask.sum()))
            assert np.all(tokens[~mask] % 1000 < 500)
            assert np.all(tokens[mask] % 1000 >= 500)
            assert np.all(rows.advantages[row, where][mask] == response)
            assert np.all(rows.sampler_logprobs[row, where][mask] == -tokens[mask])
    assert [found[response] for response in range(len(lengths))] == lengths
    assert not rows.mask[rows.segment_ids == 0].any()


def grouped(lengths: list[tuple[int, list[int]]]) -> Rollout:
    """Groups of (prompt length, response lengths); all responses of a group have one prompt."""
    flat = rollout([(prompt, width) for prompt, widths in lengths for width in widths])
    ids = np.concatenate([[group] * len(widths) for group, (_, widths) in enumerate(lengths)]).astype(np.int32)
    first = {int(group): int(np.flatnonzero(ids == group)[0]) for group in np.unique(ids)}
    prompts = tuple(flat.prompts[first[int(group)]] for group in ids)
    return dataclasses.replace(flat, prompts=prompts, group_ids=ids)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 11), min_size=1, max_size=6)), min_size=1, max_size=8
    ),
    st.sampled_from([20, 33, 90]),
)
def test_with_shared_prompts_each_token_sees_its_prompt_and_its_response(lengths, row_tokens):
    """What a token sees, by the mask that attention is given, with its positions: the sequence that it has alone."""
    sampled = grouped(lengths)
    everyone = np.arange(len(sampled))
    members = assign_rows(sampled, everyone, row_tokens=row_tokens, share_prompts=True)
    assert sorted(response for row in members for response in row) == everyone.tolist()
    cuts = pack_rows(
        sampled, everyone.astype(np.float32), members, row_tokens=row_tokens, micro_rows=1, share_prompts=True
    )
    for responses, batch in zip(members, cuts, strict=True):
        assert batch.prefix_ids is not None
        tokens, positions, mask = batch.tokens[0], batch.positions[0], batch.mask[0]
        sees = np.asarray(segment_mask(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_ids)))[0, 0]
        for segment, response in enumerate(responses, 1):
            prompt, own = sampled.prompts[response], sampled.responses[response]
            places = np.flatnonzero(batch.segment_ids[0] == segment)
            assert np.array_equal(places, np.arange(places[0], places[0] + len(places)))  # logprobs shift by one
            assert np.array_equal(mask[places], [False] + [True] * len(own))
            assert np.array_equal(batch.sampler_logprobs[0, places[1:]], sampled.logprobs[response])
            assert np.all(batch.advantages[0, places[1:]] == response)
            for number, place in enumerate(places):
                seen = np.flatnonzero(sees[place])
                assert np.array_equal(tokens[seen], np.concatenate([prompt, own])[: len(prompt) + number])
                assert np.array_equal(positions[seen], np.arange(len(prompt) + number))
        held = {int(sampled.group_ids[response]) for response in responses}
        filled = sum(len(sampled.responses[response]) + 1 for response in responses)
        filled += sum(lengths[group][0] - 1 for group in held)
        assert np.count_nonzero(batch.segment_ids) == filled <= row_tokens  # each prompt once in a row
        padding = batch.segment_ids[0] == 0
        assert not mask[padding].any()
        assert not sees[np.ix_(~padding, padding)].any()


def test_shared_prompts_take_fewer_rows():
    sampled = grouped([(10, [5] * 8)] * 3)
    rows = [
        assign_rows(sampled, np.arange(24), row_tokens=60, share_prompts=share_prompts)
        for share_prompts in (False, True)
    ]
    assert [len(own) for own in rows] == [6, 3]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=6), min_size=1, max_size=8),
    st.sampled_from([20, 33, 90]),
    st.booleans(),
)
def test_responses_of_advantage_0_come_last(lengths, row_tokens, share_prompts):
    """No row that begins with such a response stands before one that begins with another."""
    sampled = grouped([(4, widths) for widths in lengths])
    advantages = (sampled.group_ids % 2).astype(np.float32)  # of whole groups
    how = {"row_tokens": row_tokens, "share_prompts": share_prompts}
    members = assign_rows(sampled, np.arange(len(sampled)), advantages=advantages, **how)
    assert sorted(response for row in members for response in row) == list(range(len(sampled)))
    first = [advantages[row[0]] for row in members]
    assert first == sorted(first, reverse=True)
    ones = np.ones_like(advantages)
    alone = assign_rows(sampled, np.arange(len(sampled)), **how)
    assert assign_rows(sampled, np.arange(len(sampled)), advantages=ones, **how) == alone


def test_only_chosen_responses_are_packed():
    rows = packed(rollout([(2, 3)] * 6), np.zeros(6, np.float32), np.array([1, 4]), 20)
    assert sorted(set(rows.tokens[rows.mask] // 1000 - 1)) == [1, 4]


def test_a_response_longer_than_a_row_is_refused_with_the_option_to_change():
    with pytest.raises(ValueError, match=r"has 12 tokens, a training row 10: raise --update.row-tokens"):
        packed(rollout([(5, 7)]), np.zeros(1, np.float32), np.arange(1), 10)


def test_micro_batches_are_filled_up_with_empty_rows():
    sampled, advantages = rollout([(4, 6)] * 5), np.ones(5, np.float32)
    members = assign_rows(sampled, np.arange(5), row_tokens=10)
    cuts = pack_rows(sampled, advantages, members, row_tokens=10, micro_rows=2)
    assert [len(cut.tokens) for cut in cuts] == [2, 2, 2]
    whole = packed(sampled, advantages, np.arange(5), 10)
    assert np.array_equal(np.concatenate([cut.tokens for cut in cuts])[:5], whole.tokens)
    assert not cuts[-1].mask[1].any()


def test_every_token_knows_how_many_its_prompt_has_in_the_update():
    """Groups of 0, 1 | 2, 3: responses of 3, 5 | 2 tokens, the last one not trained on; in rows and micro-batches."""
    sampled = rollout([(2, 3), (2, 5), (2, 2), (2, 9)])
    rows = packed(sampled, np.zeros(4, np.float32), np.arange(3), 8)
    assert len(rows.tokens) > 1
    assert rows.group_tokens is not None
    of_response = {int(tokens[0] // 1000 - 1): set() for tokens in rows.tokens}
    for response, count in zip(rows.tokens[rows.mask] // 1000 - 1, rows.group_tokens[rows.mask], strict=True):
        of_response.setdefault(int(response), set()).add(float(count))
    assert of_response == {0: {8.0}, 1: {8.0}, 2: {2.0}}
    assert np.sum(1 / rows.group_tokens[rows.mask]) == pytest.approx(2)  # prompts


def test_nothing_chosen_is_no_micro_batch():
    sampled = rollout([(1, 1)])
    assert assign_rows(sampled, np.arange(0), row_tokens=4) == []
    assert pack_rows(sampled, np.zeros(1, np.float32), [], row_tokens=4, micro_rows=2) == []


def test_minibatches_hold_whole_groups():
    ids = np.repeat([7, 3, 9, 1, 5], 4)
    parts = split_groups(ids, 3)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(20))
    assert [len(part) for part in parts] == [8, 8, 4]
    assert all(len(set(ids[part])) * 4 == len(part) for part in parts)


def test_concatenate_and_take_are_inverse():
    first, second = rollout([(2, 3), (4, 1)]), rollout([(1, 6), (3, 2)])
    both = Rollout.concatenate([first, second])
    assert both.response_tokens.shape == (4, 6)
    assert both.prompt_tokens.shape == (4, 4)
    again = both.take(np.array([2, 3]))
    assert np.array_equal(again.response_tokens[again.response_mask], second.response_tokens[second.response_mask])
    assert np.array_equal(again.sampler_logprobs, second.sampler_logprobs)


def test_entropy_statistics_by_hand():
    # Row 0: units (1, 3 -> 2) and (4); row 1: unit (0). Mean over tokens 8/4; each token carries its unit's entropy.
    entropies = np.array([[1.0, 3.0, 4.0], [0.0, 99.0, 99.0]], np.float32)
    ids = np.array([[0, 0, 1], [0, -1, -1]])
    mask = ids >= 0
    mean, std = entropy_statistics([(entropies, ids)], [mask])
    assert mean == 2.0
    assert std == pytest.approx(np.sqrt((0 + 0 + 4 + 4) / 4))
    parts = entropy_statistics([(entropies[:1], ids[:1]), (entropies[1:], ids[1:])], [mask[:1], mask[1:]])
    assert parts == (mean, std)
