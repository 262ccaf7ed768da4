"""States of the gated delta rule beside the ring: every slot its own, whoever had it before, wherever it moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from sspo_jax.models.qwen import Params, apply_qwen
from sspo_jax.sampler import Sampler, SamplingParams, generate
from sspo_jax.sampler.hand_over import send
from sspo_jax.serving.scoring import prompt_scores
from sspo_jax.sharding import MeshConfig, RolloutMeshConfig, make_mesh, rearranged
from sspo_jax.types import Rollout
from tests.sampler.conftest import HYBRID
from tests.sampler.test_engine import responses

SAMPLING = SamplingParams(max_new_tokens=20, stop_token_ids=(5, 6))


@jax.jit
def _next_logprobs(params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    logprobs = jax.nn.log_softmax(apply_qwen(params, HYBRID, tokens, segment_ids=segments))
    return jnp.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


def forward_logprobs(params: Params, rollout: Rollout) -> np.ndarray:
    """What `sampler_logprobs` should be, by one pass over whole sequences in rows of 64 tokens."""
    prompts, answers = rollout.prompt_mask.sum(axis=1), rollout.response_mask.sum(axis=1)
    tokens = np.zeros((len(prompts), 64), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, :prompt] = rollout.prompt_tokens[row, :prompt]
        tokens[row, prompt : prompt + answer] = rollout.response_tokens[row, :answer]
    segments = (np.arange(64)[None] < (prompts + answers)[:, None]).astype(np.int32)
    found = np.asarray(_next_logprobs(params, tokens, segments))
    expected = np.zeros(rollout.sampler_logprobs.shape, np.float32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        expected[row, :answer] = found[row, prompt - 1 : prompt - 1 + answer]
    return expected


@pytest.fixture(scope="module")
def alone(hybrid, prompts) -> Rollout:
    """Every sample has a slot of its own from the start."""
    config, params = hybrid
    return generate(params, config, prompts, SAMPLING, group_size=3, seed=11, step=4)


def test_logprobs_are_those_of_a_full_forward_pass(alone, hybrid):
    np.testing.assert_allclose(alone.sampler_logprobs, forward_logprobs(hybrid[1], alone), atol=2e-5)


@pytest.mark.parametrize(
    "changes", [{"slots": 1, "block_steps": 7}, {"slots": 4, "block_steps": 3, "cache_buckets": 2}], ids=str
)
def test_a_slot_knows_nothing_of_the_sample_before(changes, alone, hybrid, prompts, monkeypatch):
    """One prompt has a single token, which is not prefilled; prompts are prefilled in chunks, once for their group."""
    monkeypatch.setattr("sspo_jax.sampler.schedule.PREFILL_CHUNK", 8)
    config, params = hybrid
    sampler = Sampler(config, SAMPLING, **changes)
    rollout = sampler.generate(params, prompts, group_size=3, seed=11, step=4)
    assert responses(rollout) == responses(alone)
    np.testing.assert_allclose(rollout.sampler_logprobs, alone.sampler_logprobs, atol=2e-5)
    assert sampler.stats.refills == 18 - changes["slots"]
    assert sampler.stats.prompt_tokens == sum(len(prompt) - 1 for prompt in prompts)


def test_states_move_with_their_samples_when_slots_are_given_up(hybrid, monkeypatch):
    monkeypatch.setattr("sspo_jax.sampler.schedule.SHRINK_STEPS", 8)
    config, params = hybrid
    prompts = [[4 + i, 9, 8] for i in range(8)]
    budgets = [2, 2, 2, 2, 2, 30, 2, 40]
    sampling = SamplingParams(max_new_tokens=40)
    sampler = Sampler(config, sampling, block_steps=4, cache_buckets=2)
    rollout = sampler.generate(params, prompts, seed=5, budgets=budgets)
    assert {int(name.split()[1]) for name in sampler.programs.names if name.startswith("decode")} == {8, 4}
    np.testing.assert_allclose(rollout.sampler_logprobs, forward_logprobs(params, rollout), atol=2e-5)


def test_eight_devices_give_the_tokens_of_one(alone, hybrid, prompts):
    """Parameters with adapters lie as training cuts them, and are laid out for decoding on the way."""
    config, params = hybrid
    lora = LoraConfig(rank=2, targets=("query", "output"))
    trained_on = make_mesh(MeshConfig(fsdp=4, tensor=2))
    adapters = jax.tree.map(lambda x: x + 0.02, init_lora(config, lora, jax.random.key(0)))
    merged = merge_lora(params, adapters, lora)
    expected = generate(merged, config, prompts, SAMPLING, group_size=3, seed=11, step=4)
    assert responses(expected) != responses(alone)
    placed = jax.device_put(with_lora(params, adapters, lora), jax.sharding.NamedSharding(trained_on, jax.P()))
    mesh = rearranged(trained_on, RolloutMeshConfig(tensor=2))
    rollout = Sampler(config, SAMPLING, slots=8, mesh=mesh, cache_buckets=2).generate(
        placed, prompts, group_size=3, seed=11, step=4
    )
    assert responses(rollout) == responses(expected)
    np.testing.assert_allclose(rollout.sampler_logprobs, expected.sampler_logprobs, atol=2e-5)


def test_decays_go_to_other_devices_in_float32(hybrid):
    config, params = hybrid
    sent = send(params, config.computed(dtype="bfloat16"), make_mesh(MeshConfig(), jax.devices()[1:2]))
    assert sent["blocks"]["query"].dtype == jnp.bfloat16
    for name in ("delta_log_decay", "delta_step_bias"):
        np.testing.assert_array_equal(sent["blocks"][name], params["blocks"][name])


def test_prompts_are_scored_as_a_full_forward_pass_scores_them(alone, hybrid):
    config, params = hybrid
    sampler = Sampler(config, SAMPLING)
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts_of(alone), responses(alone), strict=True)][6:9]
    scores = prompt_scores(sampler, sampler.ready(params), texts, [1.0] * 3, top=0)
    for row, found in enumerate(scores, start=6):
        length = len(responses(alone)[row])
        np.testing.assert_allclose(found["logprobs"][-length:], alone.sampler_logprobs[row, :length], atol=2e-5)


def prompts_of(rollout: Rollout) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(rollout.prompt_tokens, rollout.prompt_mask, strict=True)]
