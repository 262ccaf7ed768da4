"""Rows of the embedding beyond the tokenizer's tokens are never sampled, and take no part in any log-probability.

The rows that pad the table here are the most probable ones of all, unless they are left out.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.data.tokenizer import count_tokens, load_tokenizer
from sspo_jax.models import QwenConfig, QwenModel, apply_qwen, init_qwen
from sspo_jax.models.qwen import Params, without_padding
from sspo_jax.sampler import Sampler, SamplingParams, generate
from sspo_jax.sampler.sampling import SlotSettings, draw_each
from sspo_jax.serving.scoring import prompt_scores
from sspo_jax.serving.service import CompletionService
from sspo_jax.trainer.setup import check
from sspo_jax.trainer.step import sequence_logprobs
from sspo_jax.types import TrainBatch
from tests.trainer.small_experiment import config as small_experiment

TOKENS = 90  # of 96 rows
apply = jax.jit(apply_qwen, static_argnums=1)


@pytest.fixture(scope="module", params=[pytest.param(True, marks=pytest.mark.slow), False], ids=["tied", "untied"])
def padded(request, tiny) -> tuple[QwenModel, Params]:
    """(model, parameters); the padding rows' logits are many times those of tokens, of both signs."""
    config = dataclasses.replace(tiny[0], tie_embeddings=request.param)
    params = init_qwen(config, jax.random.key(3))
    loud = jnp.where(jnp.arange(config.vocab_size) < TOKENS, 1.0, 20.0)
    if request.param:
        params["embedding"] = params["embedding"] * loud[:, None]
    else:
        params["unembedding"] = params["unembedding"] * loud[None]
    return config.with_tokens(TOKENS), params


def reference(model: QwenModel, params: Params, rows: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities [batch, time - 1, vocab] of what follows, among the tokens alone, in float64."""
    longer = jnp.pad(jnp.asarray(rows), ((0, 0), (0, 40 - rows.shape[1])))  # one compiled program
    logits = np.asarray(apply(params, model, longer), np.float64)[:, : rows.shape[1] - 1] / temperature
    assert (logits.argmax(-1) >= TOKENS).any()  # they would be sampled
    logits[..., TOKENS:] = -np.inf
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_sampled_and_scored_alike(padded, prompts, temperature):
    """Greedy and sampled: no padding, and the same log-probabilities from sampler, trainer and reference."""
    model, params = padded
    sampling = SamplingParams(max_new_tokens=12, temperature=temperature)
    rollout = generate(params, model, prompts[:3], sampling, group_size=2, seed=1)
    assert all(max(response) < TOKENS for response in rollout.responses)
    scale = temperature or 1.0
    for index, response in enumerate(rollout.responses):
        rows = np.concatenate([prompts[index // 2], response])[None]
        expected = np.take_along_axis(reference(model, params, rows, scale), rows[:, 1:, None], axis=-1)[0, :, 0]
        here = slice(len(prompts[index // 2]) - 1, None)
        np.testing.assert_allclose(rollout.logprobs[index], expected[here], rtol=0, atol=3e-5)
        if index:
            continue
        mask = np.arange(rows.shape[1])[None] >= len(prompts[0])
        batch = _batch(rows, mask)
        logprobs, entropies, _ = jax.jit(sequence_logprobs, static_argnums=1, static_argnames="temperature")(
            params, model, batch, temperature=scale
        )
        np.testing.assert_allclose(np.asarray(logprobs)[mask], expected[here], rtol=0, atol=3e-5)
        assert (np.asarray(entropies)[mask] <= np.log(TOKENS)).all()


def _batch(rows: np.ndarray, mask: np.ndarray) -> TrainBatch:
    zeros, ids = np.zeros(rows.shape, np.float32), np.ones(rows.shape, np.int32)
    return TrainBatch(
        tokens=rows.astype(np.int32),
        positions=np.arange(rows.shape[1], dtype=np.int32)[None],
        segment_ids=ids,
        mask=mask,
        advantages=zeros,
        old_logprobs=zeros,
        entropies=zeros,
        sampler_logprobs=zeros,
        subsentence_ids=ids,
    )


def test_no_gradient_reaches_the_padding(padded):
    model, params = padded
    rows = np.arange(8)[None] + 3
    batch = jax.tree.map(jnp.asarray, _batch(rows, np.ones(rows.shape, bool)))
    gradient = jax.jit(jax.grad(lambda p: sequence_logprobs(p, model, batch, temperature=1.0)[0].sum()))(params)
    table = gradient["embedding"] if model.tie_embeddings else gradient["unembedding"].T
    assert not np.asarray(table[TOKENS:]).any()
    assert np.asarray(table[:TOKENS]).any()


def test_requests_of_a_server(padded):
    """Settings of each slot, the most probable tokens, and the prompt's own log-probabilities."""
    model, params = padded
    logits = without_padding(jax.random.normal(jax.random.key(0), (3, model.vocab_size)).at[:, TOKENS:].add(9.0), model)
    rows = [
        SamplingParams(max_new_tokens=1, temperature=0.0),
        SamplingParams(max_new_tokens=1, top_k=95),
        SamplingParams(max_new_tokens=1, top_p=0.999, min_p=1e-9),
    ]
    for seed in range(20):
        bits = jax.random.bits(jax.random.key(seed), (2, 3))
        drawn = draw_each(
            logits, (bits[0], bits[1]), SlotSettings.of(rows, stops=1), generated=jnp.zeros(3, jnp.int32), top=5
        )
        assert max(np.asarray(drawn.tokens)) < TOKENS
        assert np.asarray(drawn.top_ids).max() < TOKENS
    sampler = Sampler(model, SamplingParams(max_new_tokens=4))
    prompt = [5, 8, 13, 21]
    (found,) = prompt_scores(sampler, sampler.ready(params), [prompt], [1.0], top=3)
    expected = reference(model, params, np.array([prompt]))[0]
    np.testing.assert_allclose(found["logprobs"], expected[np.arange(3), prompt[1:]], rtol=0, atol=3e-5)
    assert np.asarray(found["top_ids"]).max() < TOKENS


def test_who_has_a_tokenizer_knows_its_tokens():
    """Training and serving; a vocabulary without padding stays what it was."""
    tokenizer = load_tokenizer("tiny")
    assert count_tokens(tokenizer) == 512
    run = dataclasses.replace(small_experiment(), warm_start=None)  # whose rows 8 devices do not divide
    assert run.model.shape is not None
    assert check(run).model.compute.num_tokens is None
    wide = dataclasses.replace(run.model.shape, vocab_size=640)
    assert check(dataclasses.replace(run, model=dataclasses.replace(run.model, shape=wide))).model.num_tokens == 512
    shape = QwenConfig(
        vocab_size=640, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4
    )
    service = CompletionService(init_qwen(shape, jax.random.key(0)), shape, tokenizer=tokenizer)
    try:
        assert service.reader._config.num_tokens == 512
    finally:
        service.close()
