"""The compiled programs: exact ratios, exact accumulation, one compilation."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.config import AdvantageConfig
from sspo_jax.losses import Sspo
from sspo_jax.losses.ratios import Level
from sspo_jax.models.qwen import Params
from sspo_jax.runs.metrics_file import combine, host_value
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.batch import assign_rows, pack_rows
from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.trainer.loop import Trainer
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.types import TrainBatch


def minibatches(trainer: Trainer, groups: GradedRollout):
    return trainer.score(groups, trainer.advantages(groups))


def test_old_policy_gives_ratio_one_exactly(trainer: Trainer, groups: GradedRollout):
    updates, gaps = minibatches(trainer, groups)
    for batch in updates[0]:
        zeros = trainer.programs.zero_gradients()
        _, (logprobs, *_), metrics = trainer.programs.micro_batch(trainer.state.params, zeros, batch, True)
        mask = np.asarray(batch.mask)
        assert np.array_equal(np.asarray(logprobs)[mask], np.asarray(batch.old_logprobs)[mask])
        assert host_value(metrics["ratio/max"]) == 1.0
        assert host_value(metrics["ratio/mean"]) == 1.0
        assert host_value(metrics["ratio/clip_fraction"]) == 0.0
    assert 0 <= gaps["sampler/logprob_gap_max"] < 1e-4


def scored(trainer: Trainer, rows: TrainBatch) -> TrainBatch:
    batch = trainer.programs.place(rows)
    zeros = trainer.programs.zero_gradients()
    _, (logprobs, entropies, _), _ = trainer.programs.micro_batch(trainer.state.params, zeros, batch, False)
    return dataclasses.replace(batch, old_logprobs=logprobs, entropies=entropies)


def test_scoring_leaves_the_gradient_alone(trainer: Trainer, groups: GradedRollout):
    updates, _ = minibatches(trainer, groups)
    gradients, _, _ = trainer.programs.micro_batch(
        trainer.state.params, trainer.programs.zero_gradients(), updates[0][0], False
    )
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_micro_batches_add_up_to_the_whole_update(trainer: Trainer, groups: GradedRollout):
    """The same rows in one piece and cut by 4: same loss, same gradient."""
    members, advantages = assign_rows(groups.rollout, np.arange(8), row_tokens=64), trainer.advantages(groups)
    results = []
    for micro_rows in (8, 4):
        rows = pack_rows(groups.rollout, advantages, members, row_tokens=64, micro_rows=micro_rows)
        batches = [scored(trainer, cut) for cut in rows]
        denominator = trainer.programs.denominator(batches)
        gradients, parts = trainer.programs.zero_gradients(), []
        for batch in batches:
            ids = trainer.programs.segment(batch, trainer.programs.scalar(0.0))
            shared = {"denominator": denominator, "mean_entropy": trainer.programs.scalar(1.0)}
            batch = dataclasses.replace(batch, subsentence_ids=ids, **shared)
            gradients, _, metrics = trainer.programs.micro_batch(trainer.state.params, gradients, batch, True)
            parts.append(jax.device_get(metrics))
        results.append((gradients, host_value(combine(parts)["policy/kl_old"]), float(denominator)))
    assert results[0][2] == results[1][2] == 8
    norm = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(results[0][0]))
    assert norm > 0
    for first, second in zip(*(jax.tree.leaves(gradients) for gradients, _, _ in results), strict=True):
        np.testing.assert_allclose(first, second, atol=2e-6 * norm)


def gradient_of(trainer: Trainer, batches: list[TrainBatch]) -> tuple[Params, dict[str, float]]:
    """Gradient and metrics of an update made of these scored micro-batches."""
    shared = {"denominator": trainer.programs.denominator(batches), "mean_entropy": trainer.programs.scalar(1.0)}
    gradients, parts = trainer.programs.zero_gradients(), []
    for batch in batches:
        batch = dataclasses.replace(batch, subsentence_ids=batch.segment_ids - 1, **shared)
        gradients, _, metrics = trainer.programs.micro_batch(trainer.state.params, gradients, batch, True)
        parts.append(jax.device_get(metrics))
    return gradients, {name: host_value(value) for name, value in combine(parts).items()}


def test_rows_without_advantage_lie_apart_and_are_not_gone_through_backward(trainer: Trainer, groups: GradedRollout):
    """Half of the groups have advantage 0: gradient and metrics are those of micro-batches in which all are mixed."""
    rollout, found = groups.rollout, []
    advantages = np.where(rollout.group_ids % 2, trainer.advantages(groups), 0).astype(np.float32)
    members = assign_rows(rollout, np.arange(len(rollout)), row_tokens=64, advantages=advantages)
    has_gradient = [bool(advantages[row].any()) for row in members]
    assert has_gradient == sorted(has_gradient, reverse=True)
    for own, micro_rows in (([*members[::2], *members[1::2]], 8), (members, 1)):
        rows = pack_rows(rollout, advantages, own, row_tokens=64, micro_rows=micro_rows)
        found.append(gradient_of(trainer, [scored(trainer, cut) for cut in rows]))
    (expected, mixed), (gradients, apart) = found
    assert mixed["update/backward_fraction"] == 1
    assert apart["update/backward_fraction"] == sum(has_gradient) / len(members) < 1
    norm = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert norm > 0
    for first, second in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(first, second, atol=2e-6 * norm)
    of_all = [name for name in mixed if name.startswith(("ratio/", "policy/", "counterfactual/"))]
    assert of_all
    for name in of_all:
        assert apart[name] == pytest.approx(mixed[name], rel=1e-5, abs=1e-6), name


def test_what_is_not_finite_is_not_taken_for_no_gradient(trainer: Trainer, groups: GradedRollout):
    """All advantages are 0 but one, which is NaN: the gradient has to show it."""
    advantages = np.zeros(len(groups), np.float32)
    advantages[3] = np.nan
    members = assign_rows(groups.rollout, np.arange(len(groups)), row_tokens=64, advantages=advantages)
    rows = pack_rows(groups.rollout, advantages, members, row_tokens=64, micro_rows=8)
    gradients, metrics = gradient_of(trainer, [scored(trainer, cut) for cut in rows])
    assert metrics["update/backward_fraction"] > 0
    assert any(not bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_steps_compile_once(trainer: Trainer, groups: GradedRollout, monkeypatch: pytest.MonkeyPatch):
    """Scoring and updating share one program, and the second update does not compile another."""
    traced = Counter[str]()

    def counted(name: str) -> None:
        inner = getattr(TrainPrograms, name)

        @functools.wraps(inner)
        def count(*args, **settings):
            traced[name] += 1
            return inner(*args, **settings)

        monkeypatch.setattr(TrainPrograms, name, count)

    for name in ("_micro_batch", "_apply_update", "_segment"):
        counted(name)
    # A set of programs of its own: other tests have called the shared one with other shapes.
    programs = dataclasses.replace(trainer.programs)
    assert isinstance(programs, TrainPrograms)
    before, trainer.programs = trainer.programs, programs
    params = jax.tree.map(jnp.copy, trainer.state.params)
    state = trainer.state
    trainer.state = dataclasses.replace(state, params=params, optimizer=programs.init_optimizer(params))
    gradients, trainer.gradients = trainer.gradients, programs.zero_gradients()
    try:
        for _ in range(2):
            updates, _ = minibatches(trainer, groups)
            metrics = trainer.update(updates)
        assert traced == {"_micro_batch": 1, "_apply_update": 1, "_segment": 1}
    finally:
        trainer.programs, trainer.state, trainer.gradients = before, state, gradients
    assert metrics["optim/learning_rate"] == np.float32(1e-3)
    assert metrics["optim/grad_norm"] > 0
    assert metrics["ratio/max"] > 1.0  # the second update of a rollout is off-policy


def test_segment_ids_follow_the_text(trainer: Trainer, groups: GradedRollout):
    """Ids of packed responses are those of the reference rule on the same tokens alone."""
    updates, _ = minibatches(trainer, groups)
    tokens, segments, masks, subsentences = jax.device_get(
        (updates[0][0].tokens, updates[0][0].segment_ids, updates[0][0].mask, updates[0][0].subsentence_ids)
    )
    segmenter = trainer.inputs.segmenter
    for row in range(len(tokens)):
        for segment in range(1, segments[row].max() + 1):
            where = masks[row] & (segments[row] == segment)
            alone = segmenter(jnp.asarray(tokens[row, where])[None], jnp.ones((1, where.sum()), bool))
            ids = subsentences[row, where]
            assert np.array_equal(ids - ids.min(), np.asarray(alone)[0])


def test_the_entropy_rule_cuts_the_same_whatever_the_micro_batches(trainer: Trainer, groups: GradedRollout):
    """Its quantile is of the whole rollout."""
    entropy = Segmenter.from_tokenizer(trainer.inputs.tokenizer, rule="entropy", min_tokens=1)
    before = trainer.inputs, trainer.programs, trainer.config
    counts = []
    try:
        trainer.inputs = dataclasses.replace(trainer.inputs, segmenter=entropy)
        trainer.programs = dataclasses.replace(trainer.programs, segmenter=entropy)
        for micro_rows in (8, 2):
            update = dataclasses.replace(trainer.config.update, micro_rows=micro_rows)
            trainer.config = dataclasses.replace(trainer.config, update=update)
            updates, _ = minibatches(trainer, groups)
            ids = [np.asarray(batch.subsentence_ids) for batches in updates for batch in batches]
            counts.append(sum(len(np.unique(row[row >= 0])) for part in ids for row in part))
    finally:
        trainer.inputs, trainer.programs, trainer.config = before
    assert counts[0] == counts[1] > len(groups)


@pytest.mark.parametrize("level", ["token", "subsentence", "response"])
def test_the_spread_of_the_entropy_is_that_of_the_objectives_level(
    trainer: Trainer, groups: GradedRollout, monkeypatch: pytest.MonkeyPatch, level: Level
):
    minibatches(trainer, groups)  # compiled with the objective of the run
    objective = trainer.programs.objective
    assert isinstance(objective, Sspo)
    other = dataclasses.replace(objective, ratio_level=level, entropy_level="unit")
    monkeypatch.setattr(trainer.programs, "objective", other)
    updates, _ = minibatches(trainer, groups)
    values, means = [], []
    for batch in (batch for batches in updates for batch in batches):
        entropies, mask, segments, ids = jax.device_get(
            (batch.entropies, batch.mask, batch.segment_ids, batch.subsentence_ids)
        )
        for row in range(len(mask)):
            places = np.flatnonzero(mask[row])
            unit = {"token": places, "subsentence": ids[row, places], "response": segments[row, places]}[level]
            own = entropies[row, places].astype(np.float64)
            values += own.tolist()
            means += [own[unit == one].mean() for one in unit]
    spread = np.sqrt(np.mean((np.array(means) - np.mean(values)) ** 2))
    assert spread > 0
    np.testing.assert_allclose(updates[0][0].entropy_std, spread, rtol=1e-5)


def test_the_estimator_and_its_scale_are_those_of_the_run(
    trainer: Trainer, groups: GradedRollout, monkeypatch: pytest.MonkeyPatch
):
    found = {}
    for scale in ("none", "group", "batch"):
        config = dataclasses.replace(trainer.config, advantage=AdvantageConfig(estimator="leave_one_out", scale=scale))
        monkeypatch.setattr(trainer, "config", config)
        found[scale] = trainer.advantages(groups)
    # Rewards 0, 1, 0, 1 in each group of four: 1 less the mean of the others, 1/3; variances 1/3 and 4/15.
    expected = np.where(groups.rewards > 0, 2 / 3, -2 / 3)
    np.testing.assert_allclose(found["none"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["group"], expected / np.sqrt(1 / 3), rtol=1e-3)
    np.testing.assert_allclose(found["batch"], expected / np.sqrt(4 / 15), rtol=1e-3)


def test_the_fill_counts_empty_rows(trainer: Trainer, groups: GradedRollout):
    updates, metrics = minibatches(trainer, groups)
    places = sum(batch.tokens.size for batches in updates for batch in batches)
    tokens = sum(map(len, groups.rollout.prompts)) + int(groups.rollout.lengths.sum())
    assert metrics["update/fill"] == tokens / places < 1
    how = {"row_tokens": 64, "advantages": trainer.advantages(groups)}
    rows = [assign_rows(groups.rollout, part, **how) for part in trainer.parts(groups)]
    assert places == 64 * sum(-(-len(members) // 8) * 8 for members in rows)
