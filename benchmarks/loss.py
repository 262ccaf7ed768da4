"""Speed of every loss and of the diagnostics: `python benchmarks/loss.py`. Prints one JSON line.

Each loss, forward and backward with its metrics, on float32 [rows, time], beside the least that any of them can be: a
masked PPO clip with a token mean, four lines, in the same run. Then the share of an update that the always-on
diagnostics take at the size of Qwen2.5-1.5B: their seconds a token on this machine, over the seconds a token that the
model's FLOPs take at the rate of this machine's own matrix product (both cores, float32, the MLP's shape). Both
parts are measured in one process; the update is not run, it is taken at its floor, which makes the share an upper one.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from sspo_jax import losses
from sspo_jax.models import configs
from sspo_jax.types import TrainBatch

OBJECTIVES: dict[str, losses.Objective] = {
    "sspo": losses.Sspo(),
    "sspo_calibrated": losses.Sspo.calibrated(),
    "grpo": losses.Grpo(),
    "dr_grpo": losses.Grpo.dr_grpo(norm_length=3000.0),
    "dapo": losses.Grpo.dapo(),
    "gspo": losses.Gspo(),
    "gmpo": losses.Gmpo(),
    "cispo": losses.Cispo(),
    "sapo": losses.Sapo(),
}


def make_batch(rows: int, length: int) -> tuple[jax.Array, TrainBatch]:
    """Log-probs and the rest: subsentences of 20 tokens, a fifth of each row masked."""
    random = np.random.default_rng(0)
    shape = (rows, length)
    old = random.normal(-1, 0.5, shape).astype(np.float32)
    position = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = TrainBatch(
        tokens=jnp.zeros(shape, jnp.int32),
        positions=jnp.asarray(position),
        segment_ids=jnp.ones(shape, jnp.int32),
        mask=jnp.asarray(position >= length // 5),
        advantages=jnp.asarray(random.normal(size=shape).astype(np.float32)),
        old_logprobs=jnp.asarray(old),
        entropies=jnp.asarray(random.exponential(0.5, shape).astype(np.float32)),
        subsentence_ids=jnp.asarray(position // 20),
        sampler_logprobs=jnp.asarray(old),
        mean_entropy=jnp.float32(0.5),
        entropy_std=jnp.float32(0.3),
        denominator=jnp.float32(rows),
    )
    return jnp.asarray(old + random.normal(0, 0.1, shape).astype(np.float32)), batch


def baseline(logprobs: jax.Array, batch: TrainBatch) -> jax.Array:
    """A masked PPO clip with a token mean."""
    ratio = jnp.exp(jnp.where(batch.mask, logprobs - batch.old_logprobs, 0))
    value = jnp.minimum(ratio * batch.advantages, jnp.clip(ratio, 0.8, 1.2) * batch.advantages)
    return -jnp.sum(jnp.where(batch.mask, value, 0)) / jnp.sum(batch.mask)


def seconds(function: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """The best of some runs of the jitted function."""
    run = jax.jit(function)
    jax.block_until_ready(run(*arguments))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        best = min(best, time.perf_counter() - start)
    return best


def update_flops_per_token(config: configs.QwenConfig, length: int) -> float:
    """Forward and backward, 6 a weight (the table once, as output), attention in full over half the row (causal)."""
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * length / 2
    return 3 * (2 * config.num_parameters + attention)


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--time", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logprobs, batch = make_batch(options.rows, options.time)
    tokens = logprobs.size
    base = seconds(jax.value_and_grad(baseline), logprobs, batch, repeats=options.repeats)
    result: dict[str, Any] = {"benchmark": "loss", "shape": list(logprobs.shape), "cores": os.cpu_count()}
    result["million_tokens_per_second"] = {"baseline": round(tokens / base / 1e6, 1)}
    for name, objective in OBJECTIVES.items():
        taken = seconds(jax.value_and_grad(objective, has_aux=True), logprobs, batch, repeats=options.repeats)
        result["million_tokens_per_second"][name] = round(tokens / taken / 1e6, 1)
    x, w = jnp.ones((2048, 1536)), jnp.ones((1536, 8960))
    rate = 2 * x.size * w.shape[1] / seconds(jnp.matmul, x, w, repeats=options.repeats)
    flops = update_flops_per_token(configs.QWEN25_1P5B, options.time)
    diagnosed = seconds(losses.diagnostics, logprobs, batch, repeats=options.repeats) / tokens
    result["diagnostics"] = {
        "nanoseconds_per_token": round(diagnosed * 1e9, 1),
        "machine_gflops": round(rate / 1e9, 1),
        "update_gflop_per_token": round(flops / 1e9, 2),
        "update_nanoseconds_per_token": round(flops / rate * 1e9),
        "percent_of_update": round(100 * diagnosed * rate / flops, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
