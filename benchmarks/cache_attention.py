"""Attention of a decoding step over the ring: all columns against those held, `python benchmarks/cache_attention.py`.

One layer of the heads of Qwen2.5-1.5B in bfloat16, a token a slot, by the kernel of this platform (TPU, GPU) and by
matrix products over all columns, with samples that hold a share of their columns. For each share: seconds of a call of
either, the bytes of keys and values that it must read, and how far each is from float32 (norm of the difference over
the norm). Prints one JSON line.
"""

import argparse
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
from attention import error, seconds

from sspo_jax.sampler.cache_attention import attend_ring
from sspo_jax.sampler.held_attention import attend_held_on_gpu, runs_on_this_gpu

HEADS, KV_HEADS, DIM = 12, 2, 128
CALLS = 20
"""In one program, each with the result of the one before as its queries: a single call is shorter than its launch."""


def repeated(attend: Any) -> Any:
    """A program that calls `attend` CALLS times."""

    def run(query: Any, *cache: Any) -> Any:
        return jax.lax.fori_loop(0, CALLS, lambda _, query: attend(query, *cache), query)

    return jax.jit(run)


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--held", type=float, nargs="*", default=[0.1, 0.2, 0.5, 1.0], help="shares of the columns")
    options = parser.parse_args()
    slots, columns = options.slots, options.columns
    shapes = ((slots, HEADS, DIM), (slots, KV_HEADS, DIM, columns), (slots, KV_HEADS, columns, DIM))
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=False)]
    clock = jnp.int32(columns // 3)
    is_gpu = jax.default_backend() == "gpu"
    kernel = attend_held_on_gpu if is_gpu else functools.partial(attend_ring, kernels=True)
    programs = {"all": functools.partial(attend_ring, kernels=False), "held": kernel}
    found = []
    for share in options.held:
        spread = jax.random.uniform(keys[3], (slots,), minval=0.5, maxval=1.5)  # a mean of one
        positions = jnp.clip((spread * share * columns).astype(jnp.int32), 1, columns) - 1
        rest = (*arrays[1:], positions, clock)
        with jax.default_matmul_precision("highest"):
            exact = (array.astype(jnp.float32) for array in arrays)
            wanted = jax.jit(programs["all"])(*exact, positions, clock)
        read = int(jnp.sum(positions + 1)) * KV_HEADS * DIM * 2 * 2
        line: dict[str, Any] = {"share": round(float(jnp.mean(positions + 1)) / columns, 3), "megabytes": read >> 20}
        for name, attend in programs.items():
            line[f"{name}_microseconds"] = round(seconds(repeated(attend), arrays[0], *rest) / CALLS * 1e6, 1)
            line[f"{name}_error"] = round(error(jax.jit(attend)(arrays[0], *rest), wanted), 5)
        found.append(line)
    device = jax.devices()[0].device_kind
    sizes = {"slots": slots, "columns": columns, "all_megabytes": slots * columns * KV_HEADS * DIM * 2 * 2 >> 20}
    tried = {"is_chosen": runs_on_this_gpu(HEADS, KV_HEADS, DIM, "bfloat16")} if is_gpu else {}
    print(json.dumps({"benchmark": "cache_attention", "device": device, **sizes, **tried, "found": found}))


if __name__ == "__main__":
    main()
