"""Stop strings: to the token, across tokens and blocks, never before the minimum."""

import pytest

from sspo_jax.sampler import Sampler, SamplingParams
from sspo_jax.sampler.stops import first_stop
from sspo_jax.types import FinishReason

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(tokens: list[int]) -> str:
    """Token t is a letter, and every tenth token two of them."""
    return "".join(LETTERS[t % 26] + (LETTERS[t % 7] if t % 10 == 0 else "") for t in tokens)


@pytest.mark.parametrize(
    ("tokens", "start", "strings", "minimum", "want"),
    [
        ([0, 1, 2, 3], 0, ["c"], 0, 4 - 1),  # token 0 reads "aa"
        ([1, 2, 3, 4], 2, ["cd"], 0, 3),  # begins in what was searched, ends in what is new
        ([1, 2, 3, 4], 0, ["zz", "de", "b"], 0, 1),  # the earliest, not the first listed
        ([1, 2, 3, 4], 0, ["b"], 3, 3),
        ([1, 2, 3, 4], 0, ["q"], 0, None),
    ],
)
def test_first_stop_by_hand(tokens, start, strings, minimum, want):
    assert first_stop(tokens, start, strings, letters, minimum=minimum) == want


@pytest.mark.parametrize("block_steps", [1, 5, 16])
def test_responses_end_with_the_token_that_completes_a_stop_string(block_steps, tiny, prompts):
    config, params = tiny
    plain = SamplingParams(max_new_tokens=24)
    free = Sampler(config, plain).generate(params, prompts, group_size=4, seed=3)
    sampling = SamplingParams(max_new_tokens=24, stop_strings=("ab", "e", "kk"))
    sampler = Sampler(config, sampling, slots=5, block_steps=block_steps, decode=letters)
    finished = {}
    rollout = sampler.generate(params, prompts, group_size=4, seed=3, on_finished=finished.__setitem__)
    stopped = 0
    for row in range(24):
        want = free.response_tokens[row].tolist()
        ends = [n for n in range(1, 25) if any(s in letters(want[:n]) for s in sampling.stop_strings)]
        got = rollout.response_tokens[row][rollout.response_mask[row]].tolist()
        assert got == want[: ends[0] if ends else 24]
        assert finished[row] == got
        assert (rollout.finish_reasons[row] == FinishReason.STOP) == bool(ends)
        stopped += bool(ends)
    assert stopped > 0
    assert sampler.stats.tokens == rollout.response_mask.sum()
