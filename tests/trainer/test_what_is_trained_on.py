"""Which responses enter the updates, and which tokens of them lose their advantage."""

import dataclasses
import types

import numpy as np

from sspo_jax.advantages import clip_b
from sspo_jax.config import AdvantageConfig, UpdateConfig
from sspo_jax.data.problems import Problem
from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.trainer.loop import Trainer
from sspo_jax.types import FinishReason, Rollout, TrainBatch
from tests.trainer.small_experiment import config as small

N = 6
GROUPS = GradedRollout(
    rollout=Rollout(
        prompts=(np.zeros(1, np.int32),) * N,
        responses=tuple(np.zeros(1 + row, np.int32) for row in range(N)),
        logprobs=tuple(np.zeros(1 + row, np.float32) for row in range(N)),
        finish_reasons=np.array([FinishReason.STOP, FinishReason.LENGTH] * 3, np.int32),
        group_ids=np.array([3, 3, 3, 5, 5, 5], np.int32),
        sample_ids=np.array([0, 1, 2] * 2, np.int32),
    ),
    problems=(Problem(id="1", problem="?", answer="1"),) * N,
    texts=(),
    verdicts=(),
    rewards=np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
    is_judged=np.array([True, True, True, True, False, True]),
    terms={},
)


def trainer(**changes) -> Trainer:
    """No more of one than these methods read."""
    config = dataclasses.replace(small(), **changes)
    only = types.SimpleNamespace(config=config, programs=types.SimpleNamespace(rows=lambda values: values))
    only.is_trained = lambda groups: Trainer.is_trained(only, groups)
    return only


def test_truncated_responses_are_left_out_and_still_count_in_their_group():
    update = UpdateConfig(per_rollout=2, mask_truncated=True)
    cut = trainer(update=update)
    assert [part.tolist() for part in Trainer.parts(cut, GROUPS)] == [[0, 2]]  # of the other group nothing is left
    whole = trainer(update=dataclasses.replace(update, mask_truncated=False))
    assert [part.tolist() for part in Trainer.parts(whole, GROUPS)] == [[0, 1, 2], [3, 5]]
    advantages = [Trainer.advantages(one, GROUPS) for one in (cut, whole)]
    np.testing.assert_array_equal(*advantages)
    np.testing.assert_allclose(advantages[0][:3], np.array([2, -1, -1]) / 3 * np.sqrt(3), rtol=1e-5)


def test_clip_b_looks_at_the_whole_rollout():
    random = np.random.default_rng(0)
    shape = (2, 5)
    batches, logprobs, entropies = [], [], []
    for _ in range(3):
        mask = random.random(shape) < 0.7
        advantages = np.where(mask, random.normal(size=shape), 0).astype(np.float32)
        zeros = np.zeros(shape, np.int32)
        batches.append(
            TrainBatch(
                **dict.fromkeys(("tokens", "positions", "segment_ids", "subsentence_ids"), zeros),
                mask=mask,
                advantages=advantages,
                **{name: np.zeros(shape, np.float32) for name in ("old_logprobs", "entropies", "sampler_logprobs")},
            )
        )
        logprobs.append(np.log(random.uniform(0.05, 1, shape)).astype(np.float32))
        entropies.append(random.exponential(0.5, shape).astype(np.float32))
    off = trainer()
    assert Trainer.clip_by_entropy(off, batches, batches, logprobs, entropies) == (batches, {})
    on = trainer(advantage=AdvantageConfig(clip_b=0.5))
    scored, metrics = Trainer.clip_by_entropy(on, batches, batches, logprobs, entropies)
    arrays = [np.concatenate([getattr(batch, name) for batch in batches]) for name in ("advantages", "mask")]
    together = [np.concatenate(values).astype(np.float64) for values in (logprobs, entropies)]
    want = clip_b(arrays[0], *together, arrays[1], width=0.5)
    np.testing.assert_array_equal(np.concatenate([batch.advantages for batch in scored]), want)
    assert all(batch.advantages.dtype == np.float32 for batch in scored)
    cleared = np.count_nonzero(want != arrays[0])
    assert metrics == {"advantage/clip_b_fraction": cleared / np.count_nonzero(arrays[1])}
    assert cleared > 0
