"""A whole policy update with tiled log-probs against full logits at all positions: `python benchmarks/logprobs.py`.

A 6-layer transformer of width 896 with a tied embedding of 151,936 rows, 16 rows of 128 tokens of which the second
half is the response, SSPO loss, SGD step. Each variant runs in a process of its own, so that its peak memory is its
own. Prints one JSON line; `--small` shrinks everything to a smoke test.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from sspo_jax.logprobs import logprobs_and_entropies
from sspo_jax.losses import sspo_loss


def init(layers: int, width: int, inner: int, vocab: int) -> dict[str, Any]:
    keys = iter(jax.random.split(jax.random.key(0), 8))
    stacked = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    stacked |= {"up": (width, inner), "gate": (width, inner), "down": (inner, width)}
    params = {name: 0.02 * jax.random.normal(next(keys), (layers, *shape)) for name, shape in stacked.items()}
    return {"embedding": 0.02 * jax.random.normal(next(keys), (vocab, width)), "layers": params}


def hidden_states(params: dict[str, Any], tokens: jax.Array, heads: int) -> jax.Array:
    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def layer(x: jax.Array, p: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        batch, length, width = x.shape
        q, k, v = ((norm(x) @ p[name]).reshape(batch, length, heads, width // heads) for name in "qkv")
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["o"]
        y = norm(x)
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None

    return norm(jax.lax.scan(layer, params["embedding"][tokens], params["layers"])[0])


def measure(variant: str, size: dict[str, int], repeats: int) -> dict[str, float]:
    rows, length = size["rows"], size["length"]
    params = init(size["layers"], size["width"], size["inner"], size["vocab"])
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, size["vocab"])
    mask = jnp.broadcast_to(jnp.arange(length)[None] >= length // 2, (rows, length))
    ids = jnp.broadcast_to(jnp.arange(length)[None] // 10, (rows, length))

    def loss(params: dict[str, Any], old: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = hidden_states(params, tokens, size["heads"])
        if variant == "full":
            log_p = jax.nn.log_softmax(hidden[:, :-1] @ params["embedding"].T, axis=-1)
            logprobs = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
            entropies = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        else:
            flat = functools.partial(jnp.reshape, shape=(-1,))
            logprobs, entropies = logprobs_and_entropies(
                hidden[:, :-1].reshape(-1, size["width"]),
                params["embedding"],
                flat(tokens[:, 1:]),
                mask=flat(mask[:, 1:]),
                vocab_axis=0,
                chunk_size=size["chunk"],
                token_chunk_size=size["token_chunk"],
            )
            logprobs, entropies = logprobs.reshape(rows, -1), entropies.reshape(rows, -1)
        entropies = jax.lax.stop_gradient(entropies)
        value = sspo_loss(logprobs, old, 1 + 0 * old, mask[:, 1:], ids[:, 1:], entropies)[0]
        return value, logprobs

    @functools.partial(jax.jit, donate_argnums=0)
    def step(params: dict[str, Any], old: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params, old)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), value

    old = jnp.full((rows, length - 1), -11.9)
    params, value = step(params, old)
    first, seconds = float(value), []
    for _ in range(repeats):
        start = time.perf_counter()
        params, value = step(params, old)
        jax.block_until_ready(value)
        seconds.append(time.perf_counter() - start)
    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": round(min(seconds), 2), "peak_gib": round(peak, 2), "loss": round(first, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--variant", choices=["full", "tiled"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = {"layers": 6, "width": 896, "inner": 4864, "heads": 14, "vocab": 151936, "rows": 16, "length": 128}
    size |= {"chunk": 8192, "token_chunk": 1024}
    if options.small:
        size |= {
            "layers": 2,
            "width": 64,
            "inner": 128,
            "heads": 2,
            "vocab": 4096,
            "rows": 4,
            "length": 32,
            "chunk": 512,
        }
    if options.variant:
        print(json.dumps(measure(options.variant, size, options.repeats)))
        return
    result: dict[str, Any] = {"benchmark": "logprobs", "device": jax.devices()[0].device_kind, **size}
    for variant in ("full", "tiled"):
        command = [sys.executable, __file__, "--variant", variant, "--repeats", str(options.repeats)]
        command += ["--small"] if options.small else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result[variant] = json.loads(output.splitlines()[-1])
    result["speedup"] = round(result["full"]["seconds"] / result["tiled"]["seconds"], 2)
    result["memory_share"] = round(result["tiled"]["peak_gib"] / result["full"]["peak_gib"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
