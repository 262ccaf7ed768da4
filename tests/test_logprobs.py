"""Log-probs and entropies in tiles against full float64 logits: values, gradients, masks, padding, shards, memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sspo_jax import logprobs
from sspo_jax.logprobs import logprobs_and_entropies

N, D, VOCAB = 24, 16, 1000


@pytest.fixture(scope="module")
def case():
    random = np.random.default_rng(0)
    hidden, unembedding = random.normal(size=(N, D)), random.normal(size=(D, VOCAB))
    targets = random.integers(0, 900, N)
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(unembedding, jnp.float32), jnp.asarray(targets, jnp.int32)


@pytest.fixture(params=["kept", "computed-again"])
def backward(request, monkeypatch):
    """Both ways of the backward pass to its logits."""
    monkeypatch.setattr(logprobs, "_KEPT_BYTES", logprobs._KEPT_BYTES if request.param == "kept" else 0)


def full(hidden, unembedding, targets, *, temperature=1.0, vocab_size=None):
    """The same from the full logits, differentiable."""
    logits = (hidden @ unembedding)[:, :vocab_size] / temperature
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0], -jnp.sum(jnp.exp(log_p) * log_p, axis=1)


def scalar(function, case, mask=None, **options):
    """A scalar with a different cotangent for every output."""
    logprobs, entropies = function(*case, **options)
    weights = jnp.linspace(-1, 2, logprobs.shape[0])
    both = logprobs * weights + entropies * weights[::-1]
    return jnp.sum(both if mask is None else jnp.where(mask, both, 0))


OPTIONS = [
    {},
    {"chunk_size": 64, "token_chunk_size": 5},
    {"chunk_size": 300, "token_chunk_size": 24, "temperature": 0.6},
    {"chunk_size": 130, "vocab_size": 950},
    {"chunk_size": 300, "vocab_shards": 4, "token_shards": 2, "token_chunk_size": 10, "vocab_size": 920},
]


@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_against_full_logits(case, options, is_tied):
    hidden, unembedding, targets = case
    known = {key: options[key] for key in ("temperature", "vocab_size") if key in options}
    mine = functools.partial(logprobs_and_entropies, vocab_axis=0 if is_tied else 1, **options)
    given = (hidden, unembedding.T if is_tied else unembedding, targets)
    got = jax.jit(mine)(*given)
    want = oracle.logprobs_and_entropies(*map(np.asarray, case), **known)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert got[0].dtype == got[1].dtype == jnp.float32
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x), jnp.float64) for x in case[:2]]
        want = jax.jit(jax.grad(lambda h, w: scalar(full, (h, w, targets), **known), (0, 1)))(*exact)
        got64 = jax.jit(jax.grad(lambda h, w: scalar(mine, (h, w.T if is_tied else w, targets)), (0, 1)))(*exact)
        for a, b in zip(got64, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    got = jax.jit(jax.grad(lambda h, w: scalar(mine, (h, w, targets)), (0, 1)))(*given[:2])
    for a, b in zip((got[0], got[1].T if is_tied else got[1]), want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.usefixtures("backward")
def test_masked_positions_cost_nothing_and_hold_anything(case):
    hidden, unembedding, targets = case
    mask = jnp.arange(N) % 3 == 1
    dirty = jnp.where(mask[:, None], hidden, jnp.nan)
    mine = functools.partial(logprobs_and_entropies, mask=mask, chunk_size=130, token_chunk_size=5)
    logprobs, entropies = jax.jit(mine)(dirty, unembedding, targets)
    want = full(*case)
    np.testing.assert_allclose(logprobs, jnp.where(mask, want[0], 0), atol=1e-5)
    np.testing.assert_allclose(entropies, jnp.where(mask, want[1], 0), atol=1e-5)
    got = jax.jit(jax.grad(lambda h, w: scalar(mine, (h, w, targets)), (0, 1)))(dirty, unembedding)
    want = jax.grad(lambda h, w: scalar(full, (h, w, targets), mask), (0, 1))(hidden, unembedding)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
    nothing = logprobs_and_entropies(dirty, unembedding, targets, mask=jnp.zeros(N, bool))
    assert all(np.all(np.asarray(x) == 0) for x in nothing)


def test_bfloat16_accumulates_in_float32(case):
    hidden, unembedding, targets = case
    low = (hidden.astype(jnp.bfloat16), unembedding.astype(jnp.bfloat16))
    mine = functools.partial(logprobs_and_entropies, chunk_size=130)
    got = jax.jit(mine)(*low, targets)
    # The float64 reference of the rounded inputs: what is left is the accumulation.
    want = oracle.logprobs_and_entropies(*(np.asarray(x, np.float64) for x in low), np.asarray(targets))
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    gradients = jax.jit(jax.grad(lambda h, w: scalar(mine, (h, w, targets)), (0, 1)))(*low)
    want = jax.grad(lambda h, w: scalar(full, (h, w, targets)), (0, 1))(*(x.astype(jnp.float32) for x in low))
    for a, b in zip(gradients, want, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_extreme_logits(case, size):
    hidden, unembedding, targets = case
    mine = jax.jit(functools.partial(logprobs_and_entropies, chunk_size=130))
    got = mine(size * hidden, unembedding, targets)
    want = oracle.logprobs_and_entropies(np.asarray(size * hidden), *map(np.asarray, case[1:]))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(got[1]) >= 0)


def test_what_is_not_a_number_stays_so(case):
    """An entropy is never below 0; that bound must not turn NaN into 0, which looks like certainty."""
    hidden, unembedding, targets = case
    for part in (jnp.nan, jnp.inf):
        got = logprobs_and_entropies(hidden.at[3, 0].set(part), unembedding, targets, chunk_size=130)
        for values in got:
            assert np.flatnonzero(~np.isfinite(values)).tolist() == [3]


@pytest.mark.parametrize("is_tied", [False, True])
def test_sharded_vocabulary_is_not_gathered(case, is_tied):
    """On 2 x 4 devices: same numbers, and no device ever holds another's part of the unembedding."""
    hidden, unembedding, targets = case
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = P("tensor", None) if is_tied else P(None, "tensor")
    given = (hidden, unembedding.T if is_tied else unembedding, targets, jnp.arange(N) % 4 != 0)
    specs = (P("data"), spec, P("data"), P("data"))
    placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(given, specs, strict=True)]
    options = {
        "chunk_size": 128,
        "token_chunk_size": 8,
        "vocab_shards": 4,
        "token_shards": 2,
        "vocab_axis": 1 - is_tied,
    }

    def step(h, w, t, mask):
        return jax.value_and_grad(
            lambda h, w: scalar(functools.partial(logprobs_and_entropies, mask=mask, **options), (h, w, t)), (0, 1)
        )(h, w)

    shardings = (NamedSharding(mesh, P()), (NamedSharding(mesh, P("data")), NamedSharding(mesh, spec)))
    compiled = jax.jit(step, out_shardings=shardings).lower(*placed).compile()
    got, want = compiled(*placed), jax.jit(step)(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5), got, want)
    # Numbers per token may travel; nothing as large as a column of the unembedding a token, or a row of hidden, may.
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", compiled.as_text())
    sizes = [int(np.prod([int(x) for x in shape.split(",") if x])) for shape in moved]
    assert max(sizes, default=0) <= 2 * N < N * D


def test_memory_does_not_grow_with_the_vocabulary(monkeypatch):
    """Temporary memory of forward and backward: the same for twice the vocabulary, but for the gradient itself."""
    monkeypatch.setattr(logprobs, "_KEPT_BYTES", 0)  # these shapes are far smaller than those the limit is for
    n, d, chunk = 256, 8, 512

    def temporary(vocab):
        def step(h, w, t):
            mine = functools.partial(logprobs_and_entropies, chunk_size=chunk, token_chunk_size=64)
            return jax.grad(lambda h, w: scalar(mine, (h, w, t)), (0, 1))(h, w)

        shapes = [((n, d), jnp.float32), ((d, vocab), jnp.float32), ((n,), jnp.int32)]
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        return jax.jit(step).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(16 * chunk), temporary(32 * chunk)
    # Two copies of the weights' shape at most: the accumulated gradient and the layout the loop wants.
    assert large - small <= 2 * (16 * chunk) * d * 4
    assert small < n * 16 * chunk * 4


def test_logits_are_kept_up_to_the_limit():
    """Scratch memory jumps by the logits where they are small enough, and not where they are not."""

    def temporary(n):
        shapes = [((n, 4), jnp.float32), ((4, 4096), jnp.float32), ((n,), jnp.int32)]
        step = jax.grad(lambda h, w, t: scalar(logprobs_and_entropies, (h, w, t)), (0, 1))
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        return jax.jit(step).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    at_limit = logprobs._KEPT_BYTES // (4096 * 4)
    assert temporary(at_limit) > logprobs._KEPT_BYTES > temporary(at_limit + 256)


def test_tiles_of_each_platform(case, monkeypatch):
    """Tiles chosen by the library itself, and the two ways to find a target's logit, give the same numbers."""
    wide = jnp.concatenate([case[1]] * 5, axis=1)
    found = []
    for name in ("cpu", "tpu"):
        monkeypatch.setattr(logprobs, "platform", lambda name=name: name)
        assert logprobs.tile_sizes()[0] < wide.shape[1] or name == "tpu"
        found.append(jax.jit(lambda h, w, t: logprobs_and_entropies(h, w, t))(case[0], wide, case[2]))
        found.append(jax.jit(lambda h, w, t: logprobs_and_entropies(h, w, t, chunk_size=300))(case[0], wide, case[2]))
    want = oracle.logprobs_and_entropies(np.asarray(case[0]), np.asarray(wide), np.asarray(case[2]))
    for got in found:
        np.testing.assert_allclose(got[0], want[0], atol=1e-5)
        np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    # With equal tiles the log-probs are equal to the bit.
    np.testing.assert_array_equal(found[1][0], found[3][0])


def test_messages(case):
    hidden, unembedding, targets = case
    with pytest.raises(ValueError, match="temperature is 0, expected above 0"):
        logprobs_and_entropies(hidden, unembedding, targets, temperature=0)
    with pytest.raises(ValueError, match="chunk_size is 0 and token_chunk_size is"):
        logprobs_and_entropies(hidden, unembedding, targets, chunk_size=0)
    with pytest.raises(ValueError, match="vocab_size is 1001, expected 1 to 1000"):
        logprobs_and_entropies(hidden, unembedding, targets, vocab_size=1001)
    with pytest.raises(ValueError, match="must divide by vocab_shards 3"):
        logprobs_and_entropies(hidden, unembedding, targets, vocab_shards=3)
