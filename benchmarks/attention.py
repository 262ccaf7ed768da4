"""Attention of training, each implementation of this platform beside `xla`: `python benchmarks/attention.py`.

Rows of packed responses in bfloat16, the heads of Qwen2.5-1.5B: seconds of a forward pass, and of one with its backward
pass, and how far result and gradients are from those of float32 (norm of the difference over the norm). With `--window`
a token attends to so many at most. One JSON line.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from sspo_jax.models.attention import make_attention
from sspo_jax.sharding import platform

REPEATS = 10


def seconds(function: Any, *arrays: Any) -> float:
    """Median of some calls; the first one compiles."""
    jax.block_until_ready(function(*arrays))
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def error(found: Any, wanted: Any) -> float:
    """Norm of the difference over the norm."""
    difference = found.astype(jnp.float32) - wanted
    return float(jnp.linalg.norm(difference) / jnp.linalg.norm(wanted))


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--time", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--packed", type=int, default=4, help="responses in a row")
    parser.add_argument("--window", type=int, default=0, help="tokens that a token attends to; 0: all before it")
    options = parser.parse_args()
    rows, length = options.rows, options.time
    shapes = ((rows, length, 12, 128), (rows, length, 2, 128), (rows, length, 2, 128))
    keys = jax.random.split(jax.random.key(0), 4)
    exact = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    weight = jax.random.normal(keys[3], shapes[0])
    segments = jnp.broadcast_to(1 + jnp.arange(length) * options.packed // length, (rows, length)).astype(jnp.int32)

    def programs(implementation: Any, dtype: str) -> tuple[Any, Any]:
        def forward(*arrays: Any) -> Any:
            attend = make_attention(
                segments, implementation=implementation, dtype=dtype, head_dim=128, window=options.window
            )
            return attend(*arrays, options.window > 0)

        def loss(*arrays: Any) -> Any:
            return jnp.sum(forward(*arrays) * weight)

        return jax.jit(forward), jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    with jax.default_matmul_precision("highest"):
        forward, backward = programs("xla", "float32")
        rounded = [array.astype(jnp.bfloat16).astype(jnp.float32) for array in exact]
        wanted = (forward(*rounded), *backward(*rounded))
        jax.block_until_ready(wanted)
    arrays = [array.astype(jnp.bfloat16) for array in exact]
    names = {"gpu": ("xla", "cudnn"), "cuda": ("xla", "cudnn"), "tpu": ("xla", "splash")}.get(platform(), ("xla",))
    found = {}
    for name in names:
        forward, backward = programs(name, "bfloat16")
        got = (forward(*arrays), *backward(*arrays))
        found[name] = {
            "forward_seconds": round(seconds(forward, *arrays), 6),
            "backward_seconds": round(seconds(backward, *arrays), 6),
            "errors": [round(error(one, other), 5) for one, other in zip(got, wanted, strict=True)],
        }
    device = jax.devices()[0].device_kind
    sizes = {"rows": rows, "time": length, "window": options.window}
    print(json.dumps({"benchmark": "attention", "device": device, **sizes, **found}))


if __name__ == "__main__":
    main()
