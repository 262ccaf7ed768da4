"""Sampling from models whose layers differ, a sliding window or experts in some: tokens of a full forward pass.

A response outgrows the window, a slot is filled again, prompts are shared by a group and prefilled in chunks, the ring
grows and shrinks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from sspo_jax.models.qwen import Params, apply_qwen, init_qwen
from sspo_jax.sampler import Sampler, SamplingParams, generate
from sspo_jax.sampler.cache_attention import CHUNK, attend, attend_in_chunks
from sspo_jax.sampler.held_attention import GPU_BLOCK, attend_held, attend_held_on_gpu, held_blocks
from sspo_jax.sampler.kv_cache import column_ages
from sspo_jax.serving.scoring import prompt_scores
from sspo_jax.sharding import MeshConfig, RolloutMeshConfig, make_mesh, rearranged
from sspo_jax.types import Rollout
from tests.sampler.conftest import TINY
from tests.sampler.test_engine import responses

WINDOW = dataclasses.replace(TINY, sliding_window=6, sliding_layers=(1,))
SPARSE = dataclasses.replace(
    TINY, num_layers=3, qk_norm=True, num_experts=4, experts_per_token=2, expert_size=16, dense_layers=(0,),
    sliding_window=6, sliding_layers=(0, 1, 2),
)  # fmt: skip
SAMPLING = SamplingParams(max_new_tokens=20, stop_token_ids=(5, 6))
CASES = [pytest.param(WINDOW, id="window"), pytest.param(SPARSE, id="sparse", marks=pytest.mark.slow)]


@functools.partial(jax.jit, static_argnums=1)
def _next_logprobs(params: Params, config: QwenConfig, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    logprobs = jax.nn.log_softmax(apply_qwen(params, config, tokens, segment_ids=segments))
    return jnp.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


def forward_logprobs(params: Params, config: QwenConfig, rollout: Rollout) -> np.ndarray:
    """What `sampler_logprobs` should be, by one pass over whole sequences in rows of 64 tokens."""
    texts = [[*prompt, *answer] for prompt, answer in zip(rollout.prompts, rollout.responses, strict=True)]
    tokens = np.stack([np.pad(text, (0, 64 - len(text))) for text in texts]).astype(np.int32)
    segments = (np.arange(64)[None] < np.array([[len(text)] for text in texts])).astype(np.int32)
    found, expected = np.asarray(_next_logprobs(params, config, tokens, segments)), rollout.sampler_logprobs * 0
    for row, (prompt, answer) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
        expected[row, : len(answer)] = found[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)]
    return expected


@functools.cache
def params_of(config: QwenConfig) -> Params:
    params = init_qwen(config, jax.random.key(3))
    return params | {"embedding": 2 * params["embedding"]}  # makes distributions peaked


@pytest.mark.parametrize("unrolled", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["unrolled", "stacked"])
@pytest.mark.parametrize("config", CASES)
def test_logprobs_are_those_of_a_full_forward_pass(config, unrolled, prompts, monkeypatch):
    """Each sample with a slot of its own, and two slots for all with prompts prefilled in chunks."""
    monkeypatch.setattr("sspo_jax.sampler.schedule.PREFILL_CHUNK", 8)
    params = params_of(config)
    alone, packed = (
        Sampler(config, SAMPLING, unrolled=unrolled, **changes).generate(params, prompts, group_size=3, seed=11, step=4)
        for changes in ({}, {"slots": 2, "block_steps": 7})
    )
    assert max(len(answer) for answer in alone.responses) > config.sliding_window
    np.testing.assert_allclose(alone.sampler_logprobs, forward_logprobs(params, config, alone), atol=2e-5)
    assert responses(packed) == responses(alone)
    np.testing.assert_allclose(packed.sampler_logprobs, alone.sampler_logprobs, atol=2e-5)
    without = dataclasses.replace(config, sliding_window=0, sliding_layers=())
    assert np.abs(forward_logprobs(params, without, alone) - alone.sampler_logprobs).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("config", CASES)
def test_a_ring_that_grows_and_slots_that_are_given_up(config, monkeypatch):
    monkeypatch.setattr("sspo_jax.sampler.schedule.SHRINK_STEPS", 8)
    params, prompts = params_of(config), [[4 + i, 9, 8] for i in range(8)]
    sampler = Sampler(config, SamplingParams(max_new_tokens=40), block_steps=4, cache_buckets=3)
    rollout = sampler.generate(params, prompts, seed=5, budgets=[2, 2, 2, 2, 2, 30, 2, 40])
    assert len({name for name in sampler.programs.names if name.startswith("decode")}) > 2
    np.testing.assert_allclose(rollout.sampler_logprobs, forward_logprobs(params, config, rollout), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("config", CASES)
def test_eight_devices_give_the_tokens_of_one(config, int8, prompts):
    """Parameters with adapters lie as training cuts them, and are laid out for decoding on the way."""
    params = params_of(config)
    lora = LoraConfig(rank=2, targets=("query", "output", "gate", "down"))
    trained_on = make_mesh(MeshConfig(fsdp=4, tensor=2))
    adapters = jax.tree.map(lambda x: x + 0.02, init_lora(config, lora, jax.random.key(0)))
    one = Sampler(config, SAMPLING, int8=int8)
    expected = one.generate(merge_lora(params, adapters, lora), prompts, group_size=3, seed=11, step=4)
    placed = jax.device_put(with_lora(params, adapters, lora), jax.sharding.NamedSharding(trained_on, jax.P()))
    mesh = rearranged(trained_on, RolloutMeshConfig(tensor=2, expert=2 if config.num_experts else 1))
    sampler = Sampler(config, SAMPLING, slots=8, mesh=mesh, int8=int8)
    rollout = sampler.generate(placed, prompts, group_size=3, seed=11, step=4)
    assert responses(rollout) == responses(expected)
    np.testing.assert_allclose(rollout.sampler_logprobs, expected.sampler_logprobs, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [True, False], ids=["unrolled", "stacked"])
@pytest.mark.parametrize("config", CASES)
def test_prompts_are_scored_as_a_full_forward_pass_scores_them(config, unrolled, prompts):
    rollout = generate(params_of(config), config, prompts, SAMPLING, group_size=3, seed=11, step=4)
    sampler = Sampler(config, SAMPLING, unrolled=unrolled)
    pairs = list(zip(rollout.prompts, responses(rollout), strict=True))[6:9]
    texts = [[*prompt.tolist(), *answer] for prompt, answer in pairs]
    scores = prompt_scores(sampler, sampler.ready(params_of(config)), texts, [1.0] * 3, top=0)
    for row, found in enumerate(scores, start=6):
        length = len(responses(rollout)[row])
        np.testing.assert_allclose(found["logprobs"][-length:], rollout.sampler_logprobs[row, :length], atol=2e-5)


@pytest.mark.parametrize("window", [1, 100, pytest.param(GPU_BLOCK, marks=pytest.mark.slow)])
def test_kernels_read_what_is_inside_a_window(window):
    """They are told of the oldest column that is seen, as where a sample is short; and read no block beyond it."""
    columns, clock = 2 * CHUNK, jnp.int32(70)
    noise = np.random.default_rng(0)
    shapes = (4, 4, 64), (4, 2, 64, columns), (4, 2, columns, 64)
    query, keys, values = (jnp.asarray(noise.normal(size=shape), jnp.float32) for shape in shapes)
    positions = jnp.asarray([0, 63, 400, 900], jnp.int32)
    oldest = jnp.minimum(positions, window - 1)
    age = column_ages(clock, columns)[None]
    mask = (age <= positions[:, None]) & (age < window)
    expected = attend(query[:, None], keys, values, mask[:, None])[:, 0]
    visits = held_blocks(oldest, clock, columns, CHUNK)
    for found in (
        attend_in_chunks(query, keys, values, oldest, clock, visits),
        attend_held(query, keys, values, oldest, clock, block=128, interpret=True),
        attend_held_on_gpu(query, keys, values, oldest, clock, interpret=True),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert int(jnp.max(held_blocks(oldest, clock, columns, GPU_BLOCK))) <= -(-window // GPU_BLOCK) + 1
