"""The distribution of drawn tokens, the filters against naive loops, and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.sampler.random_bits import row_keys, threefry, token_bits
from sspo_jax.sampler.sampling import (
    SamplingParams,
    _block_size,
    _multiply_high,
    _truncate,
    draw,
)


def random_bits(shape: tuple[int, ...], seed: int) -> tuple[jax.Array, jax.Array]:
    words = np.random.default_rng(seed).integers(0, 2**32, (2, *shape), dtype=np.uint32)
    return jnp.asarray(words[0]), jnp.asarray(words[1])


def frequencies(logits: np.ndarray, sampling: SamplingParams, draws: int, *, rows: int = 64, seed: int = 0):
    """Counts of `draws` tokens from one distribution, drawn `rows` at a time."""

    @jax.jit
    def some(bits):
        batch = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (rows, logits.size))
        return jax.lax.map(lambda b: draw(batch, b, sampling).tokens, bits)

    bits = random_bits((draws // rows, rows), seed)
    return np.bincount(np.asarray(some(bits)).ravel(), minlength=logits.size)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return shares / shares.sum()


def chi_square_score(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """(statistic - degrees) / sqrt(2 degrees): about standard normal under the distribution; cells of >= 5 expected."""
    order = np.argsort(probabilities)
    expected = probabilities[order] * counts.sum()
    cells = np.searchsorted(np.floor(np.cumsum(expected) / 5), np.arange(np.floor(expected.sum() / 5)))
    observed = np.add.reduceat(counts[order].astype(float), np.unique(cells))
    expected = np.add.reduceat(expected, np.unique(cells))
    degrees = len(expected) - 1
    return (np.sum((observed - expected) ** 2 / expected) - degrees) / np.sqrt(2 * degrees)


def naive_kept(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The filters as the definitions read: sort, cut, renormalize, one after the other."""
    order = np.argsort(-logits, kind="stable")
    if top_k:
        order = order[:top_k]
    p = softmax(logits[order])
    if top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(p), top_p)) + 1]
    p = softmax(logits)
    return {int(i) for i in order if p[i] >= min_p * p.max()}


@pytest.mark.parametrize("vocab", [pytest.param(151936, marks=pytest.mark.slow), 997])
def test_draws_follow_the_softmax_by_chi_square(vocab):
    logits = np.random.default_rng(vocab).normal(0, 2.5, vocab)
    counts = frequencies(logits, SamplingParams(max_new_tokens=1), 64 * 250)
    assert abs(chi_square_score(counts, softmax(logits))) < 4


@pytest.mark.slow
def test_rare_tokens_keep_their_share():
    """150,000 tokens of probability 2e-8 each, 0.3 % together, behind one of 99.7 %: float32 sums lose them."""
    vocab = 151936
    logits = np.full(vocab, np.log(2e-8))
    logits[77] = np.log(1 - 2e-8 * (vocab - 1))
    draws = 64 * 400
    counts = frequencies(logits, SamplingParams(max_new_tokens=1), draws)
    rare = draws - counts[77]
    expected = draws * 2e-8 * (vocab - 1)
    assert abs(rare - expected) < 4 * np.sqrt(expected)
    where = np.repeat(np.arange(vocab), np.where(np.arange(vocab) == 77, 0, counts))
    assert len(np.unique(where)) >= rare - 2  # they spread over the vocabulary instead of sitting on a few
    quarters = np.histogram(where, bins=4, range=(0, vocab))[0]
    assert np.abs(quarters - rare / 4).max() < 4 * np.sqrt(rare / 4)


def test_impossible_tokens_are_never_drawn():
    logits = np.full(4096, -np.inf)
    logits[[5, 4095]] = 0.0
    counts = frequencies(logits, SamplingParams(max_new_tokens=1), 64 * 100)
    assert counts[5] + counts[4095] == 6400
    assert abs(counts[5] - 3200) < 4 * 40
    extremes = (jnp.asarray([0, 2**32 - 1], jnp.uint32),) * 2
    tokens = draw(jnp.tile(jnp.asarray(logits, jnp.float32), (2, 1)), extremes, SamplingParams(max_new_tokens=1)).tokens
    assert tokens.tolist() == [5, 4095]


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_temperature_and_reported_values(temperature):
    logits = np.random.default_rng(1).normal(0, 2, (5, 300)).astype(np.float32)
    sampling = SamplingParams(max_new_tokens=1, temperature=temperature, top_k=20, entropies=True)
    drawn = draw(jnp.asarray(logits), random_bits((5,), 3), sampling)
    for row in range(5):
        p = softmax(logits[row] / temperature)
        token = int(drawn.tokens[row])
        kept = sorted(naive_kept(logits[row], 20, 1.0, 0.0))
        assert token in kept
        assert drawn.logprobs[row] == pytest.approx(np.log(p[token]), abs=1e-5)
        assert drawn.truncated_logprobs[row] == pytest.approx(np.log(p[token] / p[kept].sum()), abs=1e-5)
        assert drawn.entropies[row] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(1, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (0, 0.3, 0.0), (0, 1.0, 0.05), (50, 0.8, 0.0), (30, 0.95, 0.1)],
)
def test_filters_keep_what_the_definitions_keep(top_k, top_p, min_p):
    logits = np.random.default_rng(top_k).normal(0, 2, (20, 512)).astype(np.float32)
    sampling = SamplingParams(max_new_tokens=1, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = np.isfinite(np.asarray(_truncate(jnp.asarray(logits), sampling)))
    for row in range(20):
        assert set(np.flatnonzero(kept[row]).tolist()) == naive_kept(logits[row], top_k, top_p, min_p)


@pytest.mark.parametrize("changes", [{"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.1}, {"temperature": 0.5}], ids=str)
def test_truncated_draws_by_total_variation(changes):
    logits = np.random.default_rng(9).normal(0, 1.5, 2000)
    draws = 64 * 2000
    sampling = SamplingParams(max_new_tokens=1, **changes)
    counts = frequencies(logits, sampling, draws)
    tempered = logits / sampling.temperature
    kept = sorted(naive_kept(tempered, sampling.top_k, sampling.top_p, sampling.min_p))
    want = np.zeros(2000)
    want[kept] = softmax(tempered[kept])
    assert counts[want == 0].sum() == 0
    expected_noise = np.sqrt(want * (1 - want) * 2 / np.pi / draws).sum() / 2
    assert np.abs(counts / draws - want).sum() / 2 < 1.15 * expected_noise


def test_ties_with_the_last_kept_token_are_kept():
    logits = jnp.asarray([[3.0, 1.0, 2.0, 2.0, 0.0]])
    kept = _truncate(logits, SamplingParams(max_new_tokens=1, top_k=2))
    assert np.isfinite(np.asarray(kept))[0].tolist() == [True, False, True, True, False]


def test_multiply_high_is_exact():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**32, (2, 1000), dtype=np.uint64)
    a[:3], b[:3] = 2**32 - 1, [2**32 - 1, 0, 2**31]
    got = _multiply_high(jnp.asarray(a, jnp.uint32), jnp.asarray(b, jnp.uint32))
    np.testing.assert_array_equal(np.asarray(got), (a * b >> np.uint64(32)).astype(np.uint32))


@pytest.mark.parametrize(("vocab", "size"), [(4096, 64), (151936, 128), (997, 31), (1, 1)])
def test_blocks_are_about_the_square_root(vocab, size):
    assert _block_size(vocab) == size


def test_threefry_gives_the_published_words_and_those_of_jax():
    def words(key, counter):
        pairs = [tuple(np.asarray([word], np.uint32) for word in pair) for pair in (key, counter)]
        return [int(word[0]) for word in threefry(*pairs)]

    assert words((0, 0), (0, 0)) == [0x6B200159, 0x99BA4EFE]
    assert words((2**32 - 1,) * 2, (2**32 - 1,) * 2) == [0x1CB996FC, 0xBB002BE7]
    assert words((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == [0xC4923A9C, 0x483DF7A0]


def test_keys_differ_in_every_part_and_do_not_depend_on_the_batch():
    def bits(seed, step, prompt, sample, position):
        words = token_bits(row_keys(seed, step, prompt, sample), np.asarray([position], np.uint32))
        return tuple(int(word[0]) for word in words)

    base = (1, 2, 3, 4, 5)
    variants = {bits(*base)} | {bits(*(x + (i == j) for j, x in enumerate(base))) for i in range(5)}
    variants |= {bits(1, 2, 4, 3, 5), bits(2, 1, 3, 4, 5), bits(1, 2, 3, 5, 4), bits(1 + 2**32, 2, 3, 4, 5)}
    assert len(variants) == 10
    keys = row_keys(1, 2, np.arange(6), np.arange(6)[::-1])
    on_device = jax.jit(token_bits)(jnp.asarray(keys), jnp.full(6, 5, jnp.uint32))
    assert tuple(int(word[2]) for word in on_device) == bits(1, 2, 2, 3, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"stop_token_ids": (-1,)},
        {"stop_strings": ("",)},
        {"min_new_tokens": 9},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is .*, expected"):
        SamplingParams(**{"max_new_tokens": 8, **changes})
