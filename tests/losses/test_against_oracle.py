"""Every objective against plain float64 loops, padded and packed, to 1e-12."""

import inspect

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax import losses
from sspo_jax.losses.aggregation import Aggregation
from sspo_jax.types import Max, TrainBatch

AGGREGATIONS = Aggregation.__args__
# name: function, name in the oracle, options worth a test of their own
OBJECTIVES = {
    "sspo": (losses.sspo_loss, "sspo", [{}, {"length_reference": 10.0, "clip_low": 0.02, "clip_high": 0.028}]),
    "grpo": (losses.grpo_loss, "grpo", [{}, {"dual_clip": 1.5}]),
    "dr_grpo": (losses.dr_grpo_loss, "grpo", [{"norm_length": 7.0}]),
    "dapo": (losses.dapo_loss, "grpo", [{}]),
    "gspo": (losses.gspo_loss, "gspo", [{}, {"clip_low": 0.1, "clip_high": 0.2}]),
    "gmpo": (losses.gmpo_loss, "gmpo", [{}]),
    "cispo": (losses.cispo_loss, "cispo", [{}, {"clip_low": 0.2}]),
    "sapo": (losses.sapo_loss, "sapo", [{}, {"temperature_negative": 2.0}]),
    "dppo": (losses.dppo_loss, "dppo", [{"threshold": 0.05}, {"divergence": "kl", "threshold": 0.01}]),
    "m2po": (losses.m2po_loss, "m2po", [{}, {"threshold": 0.01, "ratio_level": "subsentence"}]),
    "vespo": (losses.vespo_loss, "vespo", [{}, {"exponent_negative": 1.0, "rate_positive": 0.5}]),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def exact(metric):
    """The value in float64: counts are whole numbers stored in float32, their quotient would be rounded to it."""
    if isinstance(metric, Max):
        return float(metric.value)
    return float(metric.total) / max(float(metric.count), 1.0)


def arrays(batch, name):
    names = ["logprobs", "old_logprobs", "advantages", "mask"] + (
        ["subsentence_ids"] if name in ("sspo", "m2po") else []
    )
    return [jnp.asarray(batch[n]) for n in names]


def defaults(function):
    """The keyword defaults that the oracle has to know."""
    known = {"clip_low", "clip_high", "dual_clip", "aggregation", "norm_length", "length_reference"}
    known |= {"temperature_positive", "temperature_negative", "log_ratio_limit", "divergence", "threshold"}
    known |= {"truncate_at", *(f"{what}_{sign}" for what in ("exponent", "rate") for sign in ("positive", "negative"))}
    signature = inspect.signature(function).parameters
    found = {n: p.default for n, p in signature.items() if n in known}
    found["limit"] = found.pop("log_ratio_limit")
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(batch=batches.batches, option=st.integers(0, 1), data=st.data())
def test_value_and_metrics(name, batch, option, data):
    function, oracle_name, choices = OBJECTIVES[name]
    options = dict(choices[option % len(choices)])
    if name != "dr_grpo":
        options["aggregation"] = data.draw(st.sampled_from(AGGREGATIONS))
        options["norm_length"] = batch["group_tokens"] if options["aggregation"] == "prompt-mean" else 7.0
    of_prompts = options.get("aggregation") == "prompt-mean"
    given = options | ({"norm_length": jnp.asarray(batch["group_tokens"])} if of_prompts else {})
    loss, metrics = function(*arrays(batch, name), segment_ids=jnp.asarray(batch["segment_ids"]), **given)
    # Advantages in one response must be equal for GMPO's formula; the oracle takes their mean as the code does.
    subsentence_ids = batch["subsentence_ids"] if name in ("sspo", "m2po") else None
    want, want_metrics = oracle.surrogate(
        oracle_name,
        *(batch[n] for n in ("logprobs", "old_logprobs", "advantages", "mask")),
        subsentence_ids,
        segment_ids=batch["segment_ids"],
        **(defaults(function) | options),
    )
    np.testing.assert_allclose(loss, want, rtol=1e-12, atol=1e-12)
    assert loss.dtype == jnp.float64
    for key, value in want_metrics.items():
        np.testing.assert_allclose(exact(metrics[key]), value, rtol=1e-11, atol=1e-12, err_msg=key)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    batch=batches.batches,
    rule=st.sampled_from(["power", "tanh", "vocabulary"]),
    level=st.sampled_from(["unit", "token"]),
    bounds=st.sampled_from(["both", "low", "high"]),
    ratio_level=st.sampled_from(["token", "subsentence", "response"]),
    mean_entropy=st.sampled_from([None, 0.0, 0.4]),
    is_weighted=st.booleans(),
)
def test_sspo_entropy_rules(batch, rule, level, bounds, ratio_level, mean_entropy, is_weighted):
    weights = np.abs(batch["sampler_logprobs"]) if is_weighted else None
    loss, metrics = losses.sspo_loss(
        *arrays(batch, "sspo"),
        jnp.asarray(batch["entropies"]),
        segment_ids=jnp.asarray(batch["segment_ids"]),
        entropy_rule=rule,
        entropy_level=level,
        entropy_bounds=bounds,
        ratio_level=ratio_level,
        mean_entropy=mean_entropy,
        vocab_size=50,
        weights=None if weights is None else jnp.asarray(weights),
    )
    want, want_metrics = oracle.surrogate(
        "sspo",
        *(batch[n] for n in batches.ARRAYS),
        ratio_level=ratio_level,
        level=level,
        segment_ids=batch["segment_ids"],
        entropy_bounds=bounds,
        rule=rule,
        mean_entropy=mean_entropy,
        vocab_size=50,
        weights=weights,
    )
    np.testing.assert_allclose(loss, want, rtol=1e-12, atol=1e-12)
    for key, value in want_metrics.items():
        np.testing.assert_allclose(exact(metrics[key]), value, rtol=1e-11, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("mode", ["truncate", "reject", "truncate-reject"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("level", ["token", "subsentence", "response"])
def test_correction_weights(mode, level, reduction):
    for seed in range(20):
        batch = batches.make(seed, scale=0.5, is_packed=bool(seed % 2))
        options = {"mode": mode, "level": level, "reduction": reduction}
        arrays = [batch[n] for n in ("old_logprobs", "sampler_logprobs", "mask")]
        ids = {name: batch[name] for name in ("subsentence_ids", "segment_ids")}
        got = losses.correction_weights(
            *map(jnp.asarray, arrays), **{name: jnp.asarray(own) for name, own in ids.items()}, **options
        )
        np.testing.assert_allclose(got, oracle.correction(*arrays, **ids, **options), rtol=1e-12)


def test_the_weights_that_are_logged_are_those_before_truncation():
    """Two tokens of weight 4 and 1/4, two of 1: with truncation at 2 and rejection below 1/2, factors 2, 0, 1, 1."""
    sampler = np.log(np.array([[0.25, 1.0, 0.5, 0.5]]))
    old = np.log(np.array([[1.0, 0.25, 0.5, 0.5]]))
    arrays = dict.fromkeys(("tokens", "positions"), jnp.zeros((1, 4), jnp.int32))
    batch = TrainBatch(
        **arrays,
        segment_ids=jnp.ones((1, 4), jnp.int32),
        mask=jnp.ones((1, 4), bool),
        advantages=jnp.ones((1, 4)),
        old_logprobs=jnp.asarray(old),
        entropies=jnp.zeros((1, 4)),
        sampler_logprobs=jnp.asarray(sampler),
        subsentence_ids=jnp.asarray([[0, 0, 1, 1]]),
    )
    weights, metrics = losses.RolloutCorrection(mode="truncate-reject", reject_above=5.0)(batch)
    np.testing.assert_allclose(weights, [[2, 0, 1, 1]], rtol=1e-6)
    found = {name.removeprefix("correction/"): float(metric) for name, metric in metrics.items()}
    expected = {"weight_mean": 6.25 / 4, "weight_max": 4.0, "truncated_fraction": 0.25, "rejected_fraction": 0.25}
    assert found == pytest.approx(expected, rel=1e-6)
    clauses, _ = losses.RolloutCorrection(mode="truncate", level="subsentence")(batch)
    np.testing.assert_allclose(clauses, 1.0, rtol=1e-6)  # 4 and 1/4 have the geometric mean 1


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_unbiased"])
def test_kl_penalty(estimator):
    values = np.array([[-0.5, 1.0, -3.0, 0.0]])
    got = losses.kl_penalty(
        jnp.asarray(values),
        jnp.asarray(values[:, ::-1].copy()),
        estimator=estimator,
        old_logprobs=jnp.asarray(values / 2),
    )
    want = [[oracle.kl(a, b, estimator, a / 2) for a, b in zip(values[0], values[0, ::-1], strict=True)]]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_kl_gradients_are_what_the_docstring_says():
    """On-policy expectations over a whole softmax: k1's gradient is 0, k2's that of KL(p||q), k3's that of KL(q||p).

    That of k3_unbiased is k2's, on policy and off.
    """
    logits, ref = jnp.array([0.3, -1.0, 0.8]), jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.4]))

    def expected(estimator, drawn_from=logits):
        p, old = jax.nn.softmax(drawn_from), jax.nn.log_softmax(drawn_from)[None]

        def value(logits):
            new = jax.nn.log_softmax(logits)[None]
            return jnp.sum(p * losses.kl_penalty(new, ref[None], estimator=estimator, old_logprobs=old)[0])

        return jax.grad(value)(logits)

    def kl(a, b):
        return jnp.sum(jnp.exp(a) * (a - b))

    forward = jax.grad(lambda x: kl(jax.nn.log_softmax(x), ref))(logits)
    backward = jax.grad(lambda x: kl(ref, jax.nn.log_softmax(x)))(logits)
    np.testing.assert_allclose(expected("k1"), 0, atol=1e-14)
    np.testing.assert_allclose(expected("k2"), forward, rtol=1e-12)
    np.testing.assert_allclose(expected("k3"), backward, rtol=1e-12)
    for drawn_from in (logits, jnp.array([-1.0, 0.5, 0.1])):
        np.testing.assert_allclose(expected("k3_unbiased", drawn_from), forward, rtol=1e-12)
    with pytest.raises(ValueError, match="needs old_logprobs"):
        losses.kl_penalty(ref[None], ref[None], estimator="k3_unbiased")


def test_off_policy_mask():
    for seed in range(20):
        batch = batches.make(seed, scale=0.5, is_packed=bool(seed % 2))
        names = ("logprobs", "sampler_logprobs", "advantages", "mask")
        got = losses.off_policy_mask(
            *(jnp.asarray(batch[n]) for n in names), threshold=0.05, segment_ids=jnp.asarray(batch["segment_ids"])
        )
        want = oracle.off_policy_kept(*(batch[n] for n in names), 0.05, batch["segment_ids"])
        np.testing.assert_array_equal(got, want)


def test_subsentence_ratio():
    for seed in range(10):
        batch = batches.make(seed, is_packed=bool(seed % 2))
        got = losses.subsentence_ratio(
            *(jnp.asarray(batch[n]) for n in ("logprobs", "old_logprobs", "mask", "subsentence_ids")),
            segment_ids=jnp.asarray(batch["segment_ids"]),
        )
        want = oracle.unit_log_ratios(
            *(batch[n] for n in ("logprobs", "old_logprobs", "mask", "subsentence_ids", "segment_ids"))
        )
        np.testing.assert_allclose(got, np.exp(want), rtol=1e-12)
