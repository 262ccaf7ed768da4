"""Settings of its own for each slot, in one program: the tokens of the program that has them built in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.sampler.sampling import SamplingParams, SlotSettings, draw, draw_each

STOPS = 4
EACH = jax.jit(draw_each, static_argnames="top")
SETTINGS = [
    SamplingParams(max_new_tokens=9, **changes)
    for changes in (
        {},
        {"temperature": 0},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_p": 0.8},
        {"top_k": 1},
        {"top_k": 17},
        {"top_k": 10**6},
        {"top_p": 1e-30},
        {"temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"min_p": 0.3},
        {"min_new_tokens": 5, "stop_token_ids": (3, 1, 100)},
        {"temperature": 0, "min_new_tokens": 5, "stop_token_ids": tuple(range(4))},
        {"temperature": 0.9, "top_p": 0.5, "min_new_tokens": 5, "stop_token_ids": (7,)},
        {"min_new_tokens": 2, "stop_token_ids": (7,)},
    )
]


def cases(vocab: int, *, seed: int = 0):
    """Logits with ties, random bits and how much is generated, for each of the settings."""
    random = np.random.default_rng(seed)
    rows = len(SETTINGS)
    logits = np.round(random.normal(0, 3, (rows, vocab)), 2).astype(np.float32)
    words = random.integers(0, 2**32, (2, rows), dtype=np.uint32)
    return jnp.asarray(logits), (jnp.asarray(words[0]), jnp.asarray(words[1])), jnp.full(rows, 3)


@pytest.mark.parametrize("vocab", [97, 512])
def test_the_tokens_are_those_of_the_settings_built_in(vocab: int):
    fixed = [jax.jit(lambda x, b, f, s=s: draw(x, b, s, forbid_stops=f)) for s in SETTINGS]
    settings = SlotSettings.of(SETTINGS, stops=STOPS)
    for seed in range(10):
        logits, bits, generated = cases(vocab, seed=seed)
        got = EACH(logits, bits, settings, generated=generated)
        for row, sampling in enumerate(SETTINGS):
            forbid = generated < sampling.min_new_tokens
            want = fixed[row](logits, bits, forbid)
            assert int(got.tokens[row]) == int(want.tokens[row]), (row, seed)
            np.testing.assert_allclose(got.logprobs[row], want.logprobs[row], atol=2e-6)
            np.testing.assert_allclose(got.truncated_logprobs[row], want.truncated_logprobs[row], atol=2e-6)


def test_a_row_does_not_depend_on_what_the_others_ask_for():
    logits, bits, generated = cases(512)
    together = EACH(logits, bits, SlotSettings.of(SETTINGS, stops=STOPS), generated=generated)
    for row, sampling in enumerate(SETTINGS):
        alone = EACH(logits, bits, SlotSettings.of([sampling] * len(SETTINGS), stops=STOPS), generated=generated)
        assert int(alone.tokens[row]) == int(together.tokens[row])
        np.testing.assert_allclose(alone.logprobs[row], together.logprobs[row], atol=2e-6)


def test_the_most_probable_tokens():
    logits, bits, generated = cases(512)
    drawn = EACH(logits, bits, SlotSettings.of(SETTINGS, stops=STOPS), generated=generated, top=5)
    for row, sampling in enumerate(SETTINGS):
        tempered = np.asarray(logits[row], np.float64) / (sampling.temperature or 1)
        want = np.sort(tempered - np.log(np.sum(np.exp(tempered - tempered.max()))) - tempered.max())[::-1][:5]
        np.testing.assert_allclose(drawn.top_logprobs[row], want, atol=1e-4)
        if sampling.is_greedy and not sampling.min_new_tokens:
            assert float(drawn.logprobs[row]) == float(drawn.top_logprobs[row, 0])


def test_temperatures_near_zero_are_refused_and_the_lowest_one_gives_numbers():
    for temperature in (1e-40, 1e-6, 5e-324):
        with pytest.raises(ValueError, match=r"0 \(greedy\), or at least 1e-05"):
            SamplingParams(max_new_tokens=1, temperature=temperature)
    lowest = SamplingParams(max_new_tokens=1, temperature=1e-5)
    logits, bits, generated = cases(512)
    settings = SlotSettings.of([lowest] * len(SETTINGS), stops=1)
    drawn = EACH(logits, bits, settings, generated=generated)
    assert np.all(np.isfinite(drawn.logprobs))
    tokens, best = np.asarray(drawn.tokens), np.asarray(logits).max(axis=-1)
    assert np.all(np.asarray(logits)[np.arange(len(tokens)), tokens] == best)


def test_more_stop_tokens_than_there_is_room_for():
    with pytest.raises(ValueError, match="3 stop tokens in one slot; expected at most 2"):
        SlotSettings.of([SamplingParams(max_new_tokens=1, stop_token_ids=(1, 2, 3))], stops=2)
