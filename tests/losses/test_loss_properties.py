"""What must hold for every objective whatever the numbers: limits, invariances, exact sums, finite gradients."""

import dataclasses
import functools

import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from sspo_jax import losses
from sspo_jax.losses.ratios import level_units
from sspo_jax.types import TrainBatch

OBJECTIVES = {
    "sspo": losses.Sspo.paper_like(),
    "sspo_calibrated_plain": losses.Sspo.calibrated(gradient="plain"),
    "grpo": losses.Grpo(dual_clip=3.0),
    "dr_grpo": losses.Grpo.dr_grpo(norm_length=20),
    "dapo": losses.Grpo.dapo(),
    "gspo": losses.Gspo(clip_low=0.05, clip_high=0.1, gradient="plain"),
    "gmpo": losses.Gmpo(),
    "cispo": losses.Cispo(),
    "sapo": losses.Sapo(),
    "dppo": losses.Dppo(threshold=0.05),
    "vespo": losses.Vespo(),
    "m2po": losses.M2po(),
    "m2po_clauses": losses.M2po(threshold=0.01, ratio_level="subsentence"),
    "distill": losses.Distill(ratio_level="subsentence", reward_weight=0.5),
    "prompt_mean": losses.Grpo(aggregation="prompt-mean"),
    "token_sum": losses.Sspo(aggregation="token-sum"),
    "everything_on": losses.Sspo(
        aggregation="token-mean",
        kl_coefficient=0.1,
        entropy_coefficient=0.01,
        off_policy_threshold=0.05,
        correction=losses.RolloutCorrection(mode="truncate-reject", level="response", reduction="mean"),
    ),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def train_batch(arrays, *, dtype=jnp.float64, **changes):
    floats = ("advantages", "old_logprobs", "entropies", "sampler_logprobs", "group_tokens")
    fields = {name: jnp.asarray(arrays[name], dtype) for name in floats}
    for name in ("segment_ids", "subsentence_ids"):
        fields[name] = jnp.asarray(arrays[name], jnp.int32)
    return TrainBatch(
        tokens=jnp.zeros(arrays["mask"].shape, jnp.int32),
        positions=jnp.zeros(arrays["mask"].shape, jnp.int32),
        mask=jnp.asarray(arrays["mask"]),
        ref_logprobs=fields["sampler_logprobs"],
        **(fields | changes),
    )


def entropy_statistics(arrays):
    """Of the subsentences of these rows, for `mean_entropy` and `entropy_std` of a part of them."""
    names = ("entropies", "mask", "subsentence_ids", "segment_ids")
    mean, std = oracle.entropy_statistics(*(arrays[name] for name in names))
    return jnp.asarray(mean), jnp.asarray(std)


def shared(objective, arrays, logprobs, batch):
    """What a part of `batch` is given of the whole."""
    mean, std = entropy_statistics(arrays)
    cutoff = objective.cutoff([logprobs], [batch]) if objective.reads_cutoff else None
    return {"mean_entropy": mean, "entropy_std": std, "cutoff": cutoff}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(objective, logprobs, batch):
    """Loss and gradient; the entropies that the bonus wants depend on logprobs, so that their gradient counts."""

    def loss(x):
        # Squared after the mask: the chain rule through NaN ** 2 would be this test's own NaN.
        return objective(x, batch, entropies=jnp.where(batch.mask, x, 0) ** 2)[0]

    return jax.value_and_grad(loss)(logprobs)


@functools.partial(jax.jit, static_argnums=0)
def metrics_of(objective, logprobs, batch):
    return objective(logprobs, batch, entropies=logprobs)[1]


def assert_equal_metrics(got, want):
    """Equal sums and counts, to 1e-12: the quotient of two counts kept in float32 would hide more."""
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert type(got[key]) is type(value)
        for field in dataclasses.fields(value):
            parts = (float(getattr(metric, field.name)) for metric in (got[key], value))
            np.testing.assert_allclose(*parts, rtol=1e-12, atol=1e-12, err_msg=f"{key} {field.name}")


def rows(batch, index):
    return jax.tree.map(lambda x: x[index] if x.ndim else x, batch)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(arrays=batches.batches)
def test_parts_add_up(name, arrays):
    """Micro-batches of one row, with the whole update's denominator and entropy, give its loss and gradient."""
    objective, batch, logprobs = OBJECTIVES[name], train_batch(arrays), jnp.asarray(arrays["logprobs"])
    whole = shared(objective, arrays, logprobs, batch)
    parts = [rows(batch, slice(i, i + 1)) for i in range(logprobs.shape[0])]
    denominator = sum(objective.denominator(part) for part in parts)
    whole_loss, whole_gradient = loss_and_gradient(objective, logprobs, batch)
    total, metrics = 0.0, None
    for i, part in enumerate(parts):
        part = dataclasses.replace(part, denominator=denominator, **whole)
        loss, gradient = loss_and_gradient(objective, logprobs[i : i + 1], part)
        total += loss
        np.testing.assert_allclose(gradient[0], whole_gradient[i], rtol=1e-12, atol=1e-14)
        found = metrics_of(objective, logprobs[i : i + 1], part)
        metrics = found if metrics is None else {key: metrics[key] + found[key] for key in found}
    np.testing.assert_allclose(total, whole_loss, rtol=1e-12, atol=1e-13)
    whole_metrics = metrics_of(objective, logprobs, batch)
    assert metrics is not None
    assert_equal_metrics(metrics, whole_metrics)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_packed_equals_padded(name, seed):
    """Responses in rows of their own, or all in one row with segment ids: the same loss and gradients."""
    objective, arrays = OBJECTIVES[name], batches.make(seed)
    padded = train_batch(arrays)
    batch_size, time = arrays["mask"].shape
    segments = np.repeat(np.arange(1, batch_size + 1), time)[None]
    packed = {key: value.reshape(1, -1) for key, value in arrays.items()} | {"segment_ids": segments}
    logprobs = jnp.asarray(arrays["logprobs"])
    loss, gradient = loss_and_gradient(objective, logprobs, padded)
    packed_loss, packed_gradient = loss_and_gradient(objective, logprobs.reshape(1, -1), train_batch(packed))
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(packed_gradient.reshape(gradient.shape), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 10**6), padding=st.integers(1, 5), factor=st.integers(-9, 9))
def test_order_padding_and_labels_change_nothing(name, seed, padding, factor):
    objective, arrays = OBJECTIVES[name], batches.make(seed)
    loss, gradient = loss_and_gradient(objective, jnp.asarray(arrays["logprobs"]), train_batch(arrays))
    order = np.random.default_rng(seed).permutation(arrays["mask"].shape[0])
    changed = {key: np.pad(value[order], ((0, 1), (0, padding))) for key, value in arrays.items()}
    changed["subsentence_ids"] = changed["subsentence_ids"] * (2 * factor + 1) + factor
    for key in ("logprobs", "old_logprobs", "advantages", "entropies", "sampler_logprobs", "group_tokens"):
        changed[key][:, -padding:] = np.nan
    other_loss, other = loss_and_gradient(objective, jnp.asarray(changed["logprobs"]), train_batch(changed))
    np.testing.assert_allclose(other_loss, loss, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(other[:-1, :-padding], gradient[order], rtol=1e-12, atol=1e-14)


NUMBER_UNITS = jax.jit(losses.ratios.unit_ids)
LABELS = st.sampled_from([-(2**31), -7, 0, 1, 5, 2**31 - 1])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    labels=st.lists(LABELS, min_size=8, max_size=8),
    segments=st.lists(st.integers(-1, 2), min_size=8, max_size=8),
    mask=st.lists(st.booleans(), min_size=8, max_size=8),
    is_rising=st.booleans(),
)
def test_units_of_any_labels(labels, segments, mask, is_rising):
    """Rising labels are numbered by a cumulative sum, others by a sort: the same units, numbered from 0."""
    mask = np.array(mask)
    if is_rising:
        labels, segments = sorted(labels), sorted(segments)
    # What is masked must not decide which of the two is taken: it holds the largest label first.
    labels, segments = np.where(mask, labels, 2**31 - 1), np.where(mask, segments, 9)
    arrays = [jnp.asarray(values, jnp.int32)[None] for values in (labels, segments)]
    units = NUMBER_UNITS(arrays[0], jnp.asarray(mask)[None], arrays[1])
    ids = np.asarray(units.ids)[0]
    assert np.all(ids[~mask] == 8)
    assert sorted(set(ids[mask].tolist())) == list(range(len(set(ids[mask].tolist()))))
    pairs = list(zip(segments.tolist(), labels.tolist(), strict=True))
    for i in np.flatnonzero(mask):
        alike = [j for j in np.flatnonzero(mask) if pairs[j] == pairs[i]]
        assert [j for j in np.flatnonzero(mask) if ids[j] == ids[i]] == alike
        assert units.lengths[0, i] == len(alike)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_masked_positions_get_gradient_zero_and_empty_batches_are_zero(name):
    objective = OBJECTIVES[name]
    for seed in range(3):
        arrays = batches.make(seed)
        _, gradient = loss_and_gradient(objective, jnp.asarray(arrays["logprobs"]), train_batch(arrays))
        assert np.all(np.asarray(gradient)[~arrays["mask"]] == 0)
        assert np.any(np.asarray(gradient) != 0)
        arrays["mask"][:] = False
        loss, gradient = loss_and_gradient(objective, jnp.asarray(arrays["logprobs"]), train_batch(arrays))
        assert loss == 0
        assert np.all(np.asarray(gradient) == 0)
        metrics = metrics_of(objective, jnp.asarray(arrays["logprobs"]), train_batch(arrays))
        assert all(metric.value == 0 for metric in metrics.values())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_ratios_stay_finite(name, dtype):
    arrays = batches.make(1)
    shift = np.linspace(-50, 50, arrays["mask"].size).reshape(arrays["mask"].shape)
    arrays["old_logprobs"] = arrays["logprobs"] - shift
    arrays["sampler_logprobs"] = arrays["old_logprobs"] + shift[::-1]
    for sign in (1, -1):
        arrays["advantages"] = np.full(arrays["mask"].shape, float(sign))
        logprobs = jnp.asarray(arrays["logprobs"], dtype)
        objective = OBJECTIVES[name]
        batch = train_batch(arrays, dtype=dtype)
        (loss, metrics), gradient = jax.value_and_grad(
            lambda x, batch=batch, objective=objective: objective(x, batch, entropies=x), has_aux=True
        )(logprobs)
        assert loss.dtype == jnp.float32
        assert gradient.dtype == dtype
        assert np.isfinite(loss)
        assert np.all(np.isfinite(np.asarray(gradient, np.float32)))
        assert all(np.isfinite(metric.value) for metric in metrics.values())
        assert all(np.isfinite(metric.value) for metric in losses.diagnostics(logprobs, batch).values())


# Compiled once for all examples.
_STEPS = {}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(arrays=batches.batches, constant=st.floats(-5, 5))
def test_limits_and_shift(arrays, constant):
    """One subsentence per token is GRPO, one per response GSPO; a constant added to both log-probs changes nothing."""
    a = {key: jnp.asarray(value) for key, value in arrays.items()}
    options = {"clip_low": 0.1, "clip_high": 0.15, "log_ratio_limit": 20.0}
    four = (a["logprobs"], a["old_logprobs"], a["advantages"], a["mask"])

    def value(function, *extra, **more):
        def loss(x, rest, extra, segment_ids):
            return function(x, *rest, *extra, segment_ids=segment_ids, **options, **more)[0]

        key = (function, tuple(more.items()), len(extra))
        step = _STEPS.setdefault(key, jax.jit(jax.value_and_grad(loss)))
        return step(four[0], four[1:], extra, a["segment_ids"])

    position = jnp.broadcast_to(jnp.arange(12)[None], a["mask"].shape)
    for (loss, gradient), (want, want_gradient) in [
        (value(losses.sspo_loss, position), value(losses.grpo_loss)),
        (value(losses.sspo_loss, None, ratio_level="token"), value(losses.grpo_loss)),
        (value(losses.sspo_loss, 0 * position), value(losses.gspo_loss)),
        (value(losses.sspo_loss, 0 * position, gradient="plain"), value(losses.gspo_loss, gradient="plain")),
    ]:
        np.testing.assert_allclose(loss, want, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(gradient, want_gradient, rtol=1e-12, atol=1e-14)
    plain = value(losses.sspo_loss, a["subsentence_ids"])[0]
    four = (four[0] + constant, four[1] + constant, *four[2:])
    shifted = value(losses.sspo_loss, a["subsentence_ids"])[0]
    np.testing.assert_allclose(shifted, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("everything_on", "distill")])
def test_old_equals_new_is_the_policy_gradient(name):
    """Ratio exactly 1, nothing clipped, and the gradient of -weight * A * logprob (to the last bit for SSPO's)."""
    for seed in range(5):
        arrays = batches.make(seed)
        arrays["old_logprobs"] = arrays["logprobs"]
        # GMPO and the plain forms have the policy gradient when the advantage is constant in a response.
        arrays["advantages"] = np.broadcast_to(arrays["advantages"][:, :1], arrays["mask"].shape)
        arrays["advantages"] = np.where(np.isfinite(arrays["advantages"]), arrays["advantages"], 1.0)
        arrays["advantages"] = np.clip(arrays["advantages"], -2, 2)
        objective, batch = OBJECTIVES[name], train_batch(arrays)
        _, gradient = loss_and_gradient(objective, jnp.asarray(arrays["logprobs"]), batch)
        metrics = metrics_of(objective, jnp.asarray(arrays["logprobs"]), batch)
        mask = jnp.asarray(arrays["mask"])
        is_prompts = objective.aggregation == "prompt-mean"
        options = {"aggregation": objective.aggregation}
        options["norm_length"] = batch.group_tokens if is_prompts else objective.norm_length
        plain = functools.partial(losses.aggregate, mask=mask, segment_ids=batch.segment_ids, **options)
        logprobs = jnp.where(mask, jnp.asarray(arrays["logprobs"]), 0.0)
        policy = jax.grad(lambda x, a=batch.advantages, plain=plain: -plain(x * a)[0])(logprobs)
        np.testing.assert_allclose(gradient, policy, rtol=1e-12, atol=1e-15)
        assert metrics["ratio/mean"].value == 1
        assert metrics["ratio/max"].value == 1
        assert metrics["policy/kl_old"].value == 0
        assert metrics["ratio/clip_fraction"].value == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(2.0, 1.0, 0.0), (0.5, 1.0, 0.5), (2.0, -1.0, -2.0), (0.5, -1.0, 0.0), (1.1, 1.0, 1.1), (0.9, -1.0, -0.9)],
)
@pytest.mark.parametrize("function", [losses.grpo_loss, losses.dapo_loss, losses.gspo_loss])
def test_sign_and_bound_of_every_branch(function, ratio, advantage, gradient):
    """d loss / d logprob is -ratio * A, or 0 where the clip removes it: the sign of A says which bound."""
    x = jnp.log(jnp.full((1, 1), ratio))
    one = jnp.ones((1, 1))
    got = jax.grad(lambda x: function(x, 0 * one, advantage * one, one > 0, clip_low=0.2, clip_high=0.28)[0])(x)
    np.testing.assert_allclose(got, -gradient * one, rtol=1e-12)


def test_entropy_rule_is_monotone_bounded_and_neutral():
    mask = jnp.ones((1, 64), bool)
    units = level_units("token", mask)
    entropies = jnp.linspace(0, 5, 64)[None]
    for rule in ("power", "tanh", "vocabulary"):
        scale = functools.partial(losses.sspo.entropy_scale, mask=mask, units=units, rule=rule, vocab_size=1000)
        factors = np.asarray(scale(entropies))[0]
        assert np.all(np.diff(factors) >= 0)
        assert factors[-1] > factors[0]
        assert factors.min() >= 0.5
        assert factors.max() <= 2.0
        if rule != "vocabulary":
            np.testing.assert_allclose(scale(0 * entropies + 0.3), 1.0, rtol=1e-12)
            np.testing.assert_allclose(scale(0 * entropies), 1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_finite_differences(name):
    """Away from the kinks of the clip, autodiff agrees with differences; the token form detaches by design."""
    arrays = batches.make(3, scale=0.05)
    objective = OBJECTIVES[name]
    if getattr(objective, "gradient", "plain") == "token":
        objective = dataclasses.replace(objective, gradient="plain")
    if name in ("distill", "m2po_clauses"):  # a unit's gradient is that of each token, by design: the same of tokens
        objective = dataclasses.replace(objective, ratio_level="token")
    if name in ("cispo", "dppo", "vespo"):
        pytest.skip("the weight is detached: its value has another derivative by design")
    batch, mask = train_batch(arrays), jnp.asarray(arrays["mask"])
    start = jnp.where(mask, jnp.asarray(arrays["logprobs"]), 0.0)

    def loss(x):
        x = jnp.asarray(x)  # the differences are taken in NumPy
        return objective(x, batch, entropies=x**2)[0]

    check_grads(loss, (start,), order=1, modes=["rev"], eps=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_jit_once_vmap_and_eight_devices(name):
    objective = OBJECTIVES[name]
    traces = []

    @jax.jit
    def step(logprobs, batch):
        traces.append(1)
        return loss_and_gradient(objective, logprobs, batch)

    many = [batches.make(seed, rows=8) for seed in range(3)]
    for arrays in many:
        logprobs, batch = jnp.asarray(arrays["logprobs"]), train_batch(arrays)
        want = loss_and_gradient(objective, logprobs, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), step(logprobs, batch), want)
    assert len(traces) == 1
    stacked = {key: jnp.stack([jnp.asarray(arrays[key]) for arrays in many]) for key in many[0]}

    def one(arrays):
        return objective(arrays["logprobs"], train_batch(arrays), entropies=arrays["logprobs"] ** 2)[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(one))(stacked)[-1], want[0], rtol=1e-12)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("data"))), (logprobs, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), step(*sharded), want)

    denominator = objective.denominator(batch)
    whole = shared(objective, many[-1], logprobs, batch)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=(P(), P("data")))
    def mapped(logprobs, batch):
        part = dataclasses.replace(batch, denominator=denominator, **whole)
        loss, gradient = loss_and_gradient(objective, logprobs, part)
        return jax.lax.psum(loss, "data"), gradient

    got = jax.jit(mapped)(*sharded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), got, want)


def test_messages_say_what_is_expected():
    one, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    # The annotations, checked in tests, say this first; without them the message is ours.
    with pytest.raises(ValueError, match=r"mask has shape \(1, 3\), expected \(2, 3\)"):
        losses.ratios.check_shapes(one, mask=mask[:1])
    with pytest.raises(ValueError, match=r"norm_length is None with segment_ids"):
        losses.dr_grpo_loss(one, one, one, mask, segment_ids=jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"dual_clip is 1.0"):
        losses.grpo_loss(one, one, one, mask, dual_clip=1.0)
    batch = dataclasses.replace(train_batch(batches.make(0)), ref_logprobs=None)
    with pytest.raises(ValueError, match=r"batch has no ref_logprobs"):
        losses.Grpo(kl_coefficient=0.1)(jnp.zeros((4, 12)), batch)
    with pytest.raises(ValueError, match=r"prompt-mean but the batch has no group_tokens"):
        losses.Grpo(aggregation="prompt-mean")(jnp.zeros((4, 12)), dataclasses.replace(batch, group_tokens=None))
    with pytest.raises(ValueError, match=r"norm_length is 7.0 with aggregation prompt-mean"):
        losses.grpo_loss(one, one, one, mask, aggregation="prompt-mean", norm_length=7.0)
    with pytest.raises(ValueError, match=r"needs vocab_size"):
        losses.Sspo(entropy_rule="vocabulary")(jnp.zeros((4, 12)), train_batch(batches.make(0)))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(arrays=batches.batches, threshold=st.sampled_from([1e-4, 0.01, 0.04, 1.0]))
def test_m2po_keeps_the_mean_square_below_its_threshold_and_no_less(arrays, threshold):
    objective, batch = losses.M2po(threshold=threshold), train_batch(arrays)
    gone = objective.decisions(jnp.asarray(arrays["logprobs"]), batch).clipped
    kept = arrays["mask"] & ~np.asarray(gone.low | gone.high)
    difference = np.where(arrays["mask"], arrays["logprobs"], 0) - np.where(arrays["mask"], arrays["old_logprobs"], 0)
    squares = np.square(difference)
    left = np.sort(squares[arrays["mask"] & ~kept])
    assert not kept.any() or squares[kept].mean() < threshold
    if len(left):  # with one more it would not be
        assert squares[kept].max(initial=0) < left[0]
        assert np.append(squares[kept], left[0]).mean() >= threshold


@pytest.mark.parametrize("level", ["token", "subsentence", "response"])
def test_distillation_starts_with_the_gradient_of_the_reverse_kl(level):
    """Before the first update: that of k2, of the token itself or, with a level, of the mean over its unit."""
    for seed in range(5):
        arrays = batches.make(seed, is_packed=bool(seed % 2))
        arrays["old_logprobs"] = arrays["logprobs"]
        objective, batch, mask = losses.Distill(ratio_level=level), train_batch(arrays), arrays["mask"]
        loss, gradient = loss_and_gradient(objective, jnp.asarray(arrays["logprobs"]), batch)
        labels = oracle.labels_of(level, mask, arrays["subsentence_ids"])
        gap = oracle.unit_log_ratios(
            arrays["logprobs"], arrays["sampler_logprobs"], mask, labels, arrays["segment_ids"]
        )
        np.testing.assert_allclose(gradient, gap / max(mask.sum(), 1), rtol=1e-11, atol=1e-15)
        np.testing.assert_allclose(loss, gap.sum() / mask.sum(), rtol=1e-11)
        metrics = metrics_of(objective, jnp.asarray(arrays["logprobs"]), batch)
        np.testing.assert_allclose(metrics["policy/kl_teacher"].total, gap.sum(), rtol=1e-11)


def test_a_batch_without_a_teacher_is_refused():
    batch = dataclasses.replace(train_batch(batches.make(0)), ref_logprobs=None)
    with pytest.raises(ValueError, match="expected the teacher's log-probs"):
        losses.Distill()(jnp.zeros((4, 12)), batch)


def test_the_entropy_bonus_of_a_step_takes_the_place_of_its_coefficient():
    batch, logprobs = train_batch(batches.make(0)), jnp.asarray(batches.make(0)["logprobs"])
    fixed, moving = losses.Grpo(entropy_coefficient=0.25), losses.Grpo(entropy_target=0.2)
    given = dataclasses.replace(batch, entropy_coefficient=jnp.asarray(0.25))
    want, got = loss_and_gradient(fixed, logprobs, batch), loss_and_gradient(moving, logprobs, given)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert got[0] != loss_and_gradient(losses.Grpo(), logprobs, batch)[0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 1), st.floats(0.001, 0.5))
def test_the_coefficient_follows_the_entropy(entropies, target, step):
    """Up while the entropy is below its target, down above it, never outside [0, 0.6]; no bonus above the target."""
    state, want = 0.0, 0.0
    for entropy in entropies:
        used, state = losses.adapted_coefficient(state, entropy, target=target, step=step, most=0.6)
        assert used == (want if entropy <= target else 0.0)
        if entropy < target:
            want = min(want + step, 0.6)
        elif entropy > target:
            want = max(want - step, 0.0)
        assert state == want
