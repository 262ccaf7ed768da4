"""The implementations of attention are one function; the TPU kernel runs here interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models import attention
from sspo_jax.models.rotary import RopeScaling, rotary_frequencies
from sspo_jax.models.visible_blocks import attend_visible

TIME = 256
SEGMENTS = np.zeros((2, TIME), np.int32)
SEGMENTS[0, :100], SEGMENTS[0, 100:250], SEGMENTS[1, 30:] = 1, 2, 1
PREFIXES = SEGMENTS.copy()  # a token sees this segment too
PREFIXES[0, 100:250] = 1
POSITIONS = np.tile(np.arange(TIME, dtype=np.int32), (2, 1))
POSITIONS[0, 100:250] -= 60  # goes on at 40 in its prefix: the last 60 tokens of that are of others, and come later


def inputs(heads: int, kv_heads: int, head_dim: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, (2, TIME, count, head_dim))
        for key, count in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    """`make_attention` of these rows; `visible` is what `xla` stands for in long rows on one CPU."""

    def make(implementation: str, prefixes: np.ndarray | None, **settings):
        monkeypatch.setattr(attention, "_VISIBLE_FROM", 0 if implementation == "visible" else 10**6)
        return attention.make_attention(
            jnp.asarray(SEGMENTS),
            None if prefixes is None else jnp.asarray(prefixes),
            implementation="xla" if implementation == "visible" else implementation,
            dtype="float32",
            **settings,
        )

    return make


def naive(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, prefixes: np.ndarray, window: int = TIME
) -> np.ndarray:
    """One token and one head after the other, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for b, t, h in np.ndindex(query.shape[:3]):
        seen = [s for s in range(t + 1) if SEGMENTS[b, s] in (SEGMENTS[b, t], prefixes[b, t])]
        seen = [s for s in seen if POSITIONS[b, t] - POSITIONS[b, s] < window]
        scores = key[b, seen, h // group] @ query[b, t, h] / np.sqrt(query.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ value[b, seen, h // group]
    return out


@pytest.mark.parametrize(
    ("implementation", "heads", "kv_heads", "head_dim"),
    [("xla", 4, 2, 16), ("xla", 3, 3, 8), ("visible", 4, 2, 16), ("visible", 3, 3, 8), ("splash", 4, 2, 64)],
)
@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["segments", "prefixes"])
def test_against_a_naive_loop(implementation, heads, kv_heads, head_dim, prefixes, made):
    query, key, value = inputs(heads, kv_heads, head_dim)
    attend = made(implementation, prefixes, head_dim=head_dim)
    expected = naive(query, key, value, SEGMENTS if prefixes is None else prefixes)
    np.testing.assert_allclose(jax.jit(attend)(query, key, value), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "window", [7, 128, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 127, 129, 255, 256))]
)
@pytest.mark.parametrize("implementation", ["xla", "visible", "splash"])
@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["segments", "prefixes"])
def test_a_window_against_a_naive_loop(implementation, prefixes, window, made):
    """Of all layers, or of those that a loop says: they get the window or all that precedes."""
    query, key, value = inputs(2, 1, 64)
    positions = None if prefixes is None else jnp.asarray(POSITIONS)
    attend = made(implementation, prefixes, head_dim=64, positions=positions, window=window)

    @jax.jit
    def each(query, key, value):
        def layer(_, slides):
            return None, attend(query, key, value, slides)

        return attend(query, key, value, True), jax.lax.scan(layer, None, jnp.array([True, False]))[1]

    near, by_layer = each(query, key, value)
    whose = SEGMENTS if prefixes is None else prefixes
    expected = naive(query, key, value, whose, window)
    np.testing.assert_allclose(near, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(by_layer[0], expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(by_layer[1], naive(query, key, value, whose), rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [0, 20], ids=["all", "window"])
@pytest.mark.parametrize("prefixes", [None, PREFIXES], ids=["segments", "prefixes"])
@pytest.mark.parametrize("implementation", ["visible", "splash"])
def test_gradients_are_those_of_xla(implementation, prefixes, window, made):
    query, key, value = inputs(4, 2, 64)
    weights = jax.random.normal(jax.random.key(1), query.shape)

    def gradients(implementation: str) -> tuple[jax.Array, ...]:
        attend = made(implementation, prefixes, head_dim=64, positions=jnp.asarray(POSITIONS), window=window)
        slides = jnp.array(True) if window else False
        return jax.jit(jax.grad(lambda *qkv: jnp.sum(attend(*qkv, slides) * weights), argnums=(0, 1, 2)))(
            query, key, value
        )

    for ours, reference in zip(gradients(implementation), gradients("xla"), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_that_nobody_sees_are_not_read(dtype):
    """NaN where no token looks; a row that is no whole number of blocks; a token that sees nothing gives 0."""
    time, block = 70, 16
    segments = np.repeat([[1, 2, 3]], [16, 32, 22], axis=1)
    mask = np.array(attention.segment_mask(jnp.asarray(segments)))
    mask[..., 69, :] = mask[..., 16:48] = False  # the last token sees nothing, and nobody the second segment
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (1, time, n, 8), dtype) for k, n in zip(keys, (4, 2, 2), strict=True))
    spoiled = [x.at[:, 16:48].set(jnp.nan) for x in (key, value)]

    def loss(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend_visible(query, key, value, mask=jnp.asarray(mask), block=block)
        return jnp.sum(out.astype(jnp.float32) ** 2), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*spoiled)
    is_seeing = mask.any(axis=-1)[0, 0]
    want = attention._xla(query, key, value, mask=jnp.asarray(mask))
    bound = {"float32": 2e-6, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(*(np.float32(x)[0, is_seeing] for x in (out, want)), rtol=0, atol=bound)
    assert not np.float32(out)[0, ~is_seeing].any()
    assert all(np.isfinite(np.float32(x)).all() for x in gradients)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "time", "chosen"),
    [
        ("cpu", "float32", 128, 512, "xla"),
        ("tpu", "bfloat16", 128, 512, "splash"),
        ("tpu", "bfloat16", 128, 200, "xla"),
        ("gpu", "bfloat16", 128, 200, "cudnn"),
        ("gpu", "float32", 128, 200, "xla"),
    ],
)
def test_auto_takes_what_fits(platform, dtype, head_dim, time, chosen):
    assert attention.choose("auto", platform=platform, dtype=dtype, head_dim=head_dim, time=time) == chosen


def test_a_kernel_that_cannot_is_refused():
    with pytest.raises(ValueError, match="multiple of 128 tokens and head_dim a multiple of 64, got 200 and 64"):
        attention.choose("splash", platform="tpu", dtype="bfloat16", head_dim=64, time=200)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, bfloat16"):
        attention.choose("cudnn", platform="gpu", dtype="float32", head_dim=64, time=200)


@pytest.mark.accelerator
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("window", [TIME, 20], ids=["all", "window"])
def test_cudnn_on_a_gpu(window):
    query, key, value = inputs(4, 2, 64)
    attend = attention.make_attention(
        jnp.asarray(SEGMENTS), implementation="cudnn", dtype="bfloat16", head_dim=64, window=window
    )
    half = jax.jit(attend)(*(x.astype(jnp.bfloat16) for x in (query, key, value)), jnp.array(True))
    is_token = SEGMENTS > 0
    found, expected = np.asarray(half, np.float32), naive(query, key, value, SEGMENTS, window)
    np.testing.assert_allclose(found[is_token], expected[is_token], rtol=0, atol=3e-2)


def test_linear_scaling_by_hand():
    """head_dim 4, base 100: frequencies 1 and 1/10, halved."""
    frequencies = rotary_frequencies(4, 100.0, RopeScaling(kind="linear", factor=2.0))
    np.testing.assert_allclose(frequencies, [0.5, 0.05], rtol=1e-6)
