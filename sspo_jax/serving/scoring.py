"""Log-probabilities of prompts, for requests with `echo`."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sspo_jax.models import qwen
from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.cache_attention import attend
from sspo_jax.sampler.sampler import Sampler

TOKENS = 4096
"""Prompt tokens, padding included, that one call scores, where a single prompt does not exceed it."""
_QUERIES = 256  # positions that attend at a time: bounds the scores of attention
_LOGITS = 256  # positions whose logits exist at a time


def score_prompts(
    weights: Any,
    tokens: Int[Array, "prompts time"],
    inverse_temperature: Float[Array, " prompts"],
    *,
    config: QwenConfig,
    unrolled: bool,
    top: int,
) -> dict[str, Array]:
    """log p(token | the tokens before it) for all but the first token of each prompt.

    Args:
      weights: as `Sampler.ready` makes them.
      tokens: prompts, aligned at the left; what follows a prompt's end does not reach it.
      inverse_temperature: logits are multiplied by it.
      top: how many of the most probable tokens are reported at each position.

    Returns:
      `logprobs` [prompts, time - 1], `top_ids` and `top_logprobs` [prompts, time - 1, top].
    """
    prompts, time = tokens.shape
    angles = qwen.rotary_angles(jnp.arange(time)[None], config)
    size = min(_QUERIES, time)

    def layer(block: qwen.Params, x: Array, window: Array | int | None) -> Array:
        if "delta_output" in block:
            before = qwen.empty_delta_state(config, prompts, x.dtype)
            x = x + qwen.delta_rule(block, config, x, before)[0]
            return x + qwen.mlp(block, config, x)
        query, key, value, gate = qwen.attention_inputs(block, config, x, angles)
        keys, values = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)

        def some(start: Array) -> Array:
            columns, here = jnp.arange(time)[None, None], (start + jnp.arange(size))[None, :, None]
            mask = columns <= here
            if window is not None:
                mask &= columns > here - window
            return attend(jax.lax.dynamic_slice_in_dim(query, start, size, axis=1), keys, values, mask)

        attended = jax.lax.map(some, jnp.arange(0, time, size)).swapaxes(0, 1).reshape(query.shape)
        x = x + qwen.attention_output(block, attended, gate)
        return x + qwen.mlp(block, config, x)

    x = qwen.embed(weights, config, tokens)
    if unrolled:
        for index, block in enumerate(weights["blocks"]):
            x = layer(block, x, config.window_of(index))
    else:
        layers = weights["blocks"], qwen.windows(config)
        x, _ = jax.lax.scan(lambda x, inputs: (layer(inputs[0], x, inputs[1]), None), x, layers)
    x = qwen.norm(x, weights["final_norm"], config)
    table = qwen.unembedding(weights)
    targets = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1).reshape(-1)
    inverse = jnp.repeat(inverse_temperature, time)
    rows = prompts * time
    chunk = min(_LOGITS, rows)

    def scores(chunked: tuple[Array, Array, Array]) -> dict[str, Array]:
        hidden, targets, inverse = chunked
        logits = jnp.einsum("td,dv->tv", hidden, table, preferred_element_type=jnp.float32) * inverse[:, None]
        logits = qwen.without_padding(logits, config)
        total = jax.nn.logsumexp(logits, axis=-1)
        found = {"logprobs": jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - total}
        if top:
            values, found["top_ids"] = jax.lax.top_k(logits, top)
            found["top_logprobs"] = values - total[:, None]
        return found

    chunked = (x.reshape(-1, chunk, x.shape[-1]), targets.reshape(-1, chunk), inverse.reshape(-1, chunk))
    found = jax.lax.map(scores, chunked)
    return {name: value.reshape(prompts, time, *value.shape[2:])[:, :-1] for name, value in found.items()}


def prompt_scores(
    sampler: Sampler, weights: Any, prompts: Sequence[Sequence[int]], temperatures: Sequence[float], *, top: int
) -> list[dict[str, np.ndarray]]:
    """`score_prompts` for prompts of any length, those of similar length together.

    Args:
      temperatures: of each prompt; 0 counts as 1.

    Returns:
      For each prompt, arrays with one entry for each token but the first.
    """
    results: list[dict[str, np.ndarray]] = [{} for _ in prompts]
    by_width: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_width.setdefault(_width(len(prompt)), []).append(index)
    top = min(top, sampler.config.num_tokens)
    for width, indices in by_width.items():
        most = max(1, min(8, TOKENS // width))
        for start in range(0, len(indices), most):
            part = indices[start : start + most]
            rows = 1 << (len(part) - 1).bit_length()
            tokens, inverse = np.zeros((rows, width), np.int32), np.ones(rows, np.float32)
            for row, index in enumerate(part):
                tokens[row, : len(prompts[index])] = prompts[index]
                inverse[row] = np.float32(1.0) / np.float32(temperatures[index] or 1.0)
            function = functools.partial(score_prompts, config=sampler.config, unrolled=sampler.unrolled, top=top)
            found = sampler.programs(("score", rows, width, top), function, weights, tokens, inverse)
            found = jax.device_get(found)
            for row, index in enumerate(part):
                length = len(prompts[index]) - 1
                results[index] = {name: value[row, :length] for name, value in found.items()}
    return results


def _width(length: int) -> int:
    """A power of two that holds the prompt, at least 16."""
    return max(16, 1 << (length - 1).bit_length())
