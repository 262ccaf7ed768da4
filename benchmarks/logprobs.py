"""A whole policy update with tiled log-probs against full logits at all positions: `python benchmarks/logprobs.py`.

Six layers of Qwen2.5-0.5B (width 896, tied embedding of 151,936 rows), 16 rows of 128 tokens of which the second half
is the response, SSPO loss, SGD step, float32. Each variant runs in a process of its own, so that its peak memory is
its own. Prints one JSON line; `--small` shrinks everything to a smoke test.

The floor of a variant is the time its matrix products take at the rate this machine reaches on the MLP's product in
the same process: no tiling can be faster. `tiled` computes half of the positions, but its logits twice.
"""

import argparse
import dataclasses
import functools
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from sspo_jax.logprobs import logprobs_and_entropies, tile_sizes
from sspo_jax.losses import sspo_loss
from sspo_jax.models import configs, init_qwen
from sspo_jax.models.qwen import Params, hidden_states

ROWS, LENGTH, LAYERS = 16, 128, 6
SMALL = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 2}


def model(remat: str, is_small: bool) -> configs.QwenConfig:
    """The layers and the table of Qwen2.5-0.5B, or of something that runs in a second."""
    changes: dict[str, Any] = SMALL | {"num_kv_heads": 1, "head_dim": 32} if is_small else {"num_layers": LAYERS}
    return dataclasses.replace(configs.QWEN25_0P5B, **changes).computed(remat=remat)


def full(params: Params, hidden: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies from the logits of all positions."""
    log_p = jax.nn.log_softmax(hidden @ params["embedding"].T, axis=-1)
    logprobs = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return logprobs, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def tiled(params: Params, hidden: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same with the library's function, of the positions in the mask."""
    outputs = logprobs_and_entropies(
        hidden.reshape(-1, hidden.shape[-1]),
        params["embedding"],
        targets.reshape(-1),
        mask=mask.reshape(-1),
        vocab_axis=0,
    )
    return outputs[0].reshape(mask.shape), outputs[1].reshape(mask.shape)


def gflop(config: configs.QwenConfig, variant: str) -> float:
    """Matrix products of one update, attention in full; `remat` "full" runs the layers' forward pass twice."""
    tables = config.vocab_size * config.hidden_size
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * LENGTH
    layers = 2 * (config.num_parameters - tables) + attention
    passes = 4 if config.compute.remat == "full" else 3
    # Full: forward, and one product for either gradient. Tiled: the logits once more, at half of the positions.
    table_products = 3 * ROWS * (LENGTH - 1) if variant == "full" else 4 * ROWS * (LENGTH // 2)
    return (passes * ROWS * LENGTH * layers + table_products * 2 * tables) / 1e9


def machine_gflops(config: configs.QwenConfig) -> float:
    """The rate of the MLP's product, both cores; the best of a few."""
    x = jnp.ones((ROWS * LENGTH, config.hidden_size))
    w = jnp.ones((config.hidden_size, config.intermediate_size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, w))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(x, w))
        best = min(best, time.perf_counter() - start)
    return 2 * x.size * w.shape[1] / best / 1e9


def measure(variant: str, config: configs.QwenConfig, repeats: int) -> dict[str, float]:
    """Best seconds of an update, its floor, the process' peak memory, and the first loss."""
    tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, config.vocab_size)
    mask = jnp.broadcast_to(jnp.arange(1, LENGTH)[None] >= LENGTH // 2, (ROWS, LENGTH - 1))
    ids = jnp.broadcast_to(jnp.arange(1, LENGTH)[None] // 10, mask.shape)
    score = {"full": full, "tiled": tiled}[variant]

    def loss(params: Params, old: jax.Array) -> jax.Array:
        hidden = hidden_states(params, config, tokens)[0][:, :-1]
        logprobs, entropies = score(params, hidden, tokens[:, 1:], mask)
        return sspo_loss(logprobs, old, jnp.ones_like(old), mask, ids, jax.lax.stop_gradient(entropies))[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(params: Params, old: jax.Array) -> tuple[Params, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, old)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), value

    rate = machine_gflops(config)
    params, old = init_qwen(config, jax.random.key(0)), jnp.full(mask.shape, -11.9)
    params, value = step(params, old)
    first, seconds = float(value), []
    for _ in range(repeats):
        start = time.perf_counter()
        params, value = step(params, old)
        jax.block_until_ready((params, value))
        seconds.append(time.perf_counter() - start)
    rate = max(rate, machine_gflops(config))
    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    floor = gflop(config, variant) / rate
    result = {"seconds": min(seconds), "floor_seconds": floor, "machine_gflops": rate, "peak_gib": peak}
    return {name: round(figure, 2) for name, figure in result.items()} | {"loss": round(first, 5)}


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--remat", choices=["none", "dots", "full"], default="none", help="of the layers")
    parser.add_argument("--variant", choices=["full", "tiled"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = model(options.remat, options.small)
    if options.variant:
        print(json.dumps(measure(options.variant, config, options.repeats)))
        return
    result: dict[str, Any] = {"benchmark": "logprobs", "rows": ROWS, "length": LENGTH, "layers": config.num_layers}
    result |= {
        "width": config.hidden_size,
        "vocab": config.vocab_size,
        "remat": config.compute.remat,
        "tile": tile_sizes(),
    }
    for variant in ("full", "tiled"):
        command = [sys.executable, __file__, "--variant", variant, "--repeats", str(options.repeats)]
        command += ["--remat", options.remat] + ["--small"] * options.small
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result[variant] = json.loads(output.splitlines()[-1])
    result["speedup"] = round(result["full"]["seconds"] / result["tiled"]["seconds"], 2)
    result["memory_share"] = round(result["tiled"]["peak_gib"] / result["full"]["peak_gib"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
