"""Seconds and memory of one update of the "A" model, and CPU seconds to compile a 1.5B step; one JSON line.

    python benchmarks/update.py [--micro-rows 4] [--repeats 3] [--compile]

A: hidden 256, 4 layers, 8/2 heads, MLP 704, vocabulary 4096, tied; 64 rows of 192 tokens, 128 of them in the loss,
AdamW, float32, on one core. The baseline of the same run is the rate of the machine's own matrix product of the MLP's
shape, so that the ratio holds on a busy machine too: model FLOPs (3 forward passes, attention in full) over that rate.
"""

import argparse
import json
import os
import resource
import time

from sspo_jax.host_memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as `sspo train` does; only before jax is imported
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np

from sspo_jax.config import OptimizerConfig
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.losses import Sspo
from sspo_jax.models import configs, init_qwen
from sspo_jax.models.qwen import abstract_qwen, qwen_shardings
from sspo_jax.sharding import MeshConfig, make_mesh, named_sharding
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.batch import Rows
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.types import TrainBatch

MODEL_A = configs.QwenConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=704, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=32
)
ROWS, TIME, PROMPT = 64, 192, 64


def programs(config: configs.QwenConfig, mesh: jax.sharding.Mesh) -> TrainPrograms:
    """Those of a run with this model."""
    return TrainPrograms(
        config=config,
        objective=Sspo(),
        optimizer_config=OptimizerConfig(),
        segmenter=Segmenter.from_tokenizer(load_tokenizer("tiny")),
        mesh=mesh,
        temperature=1.0,
    )


def model_flops(config: configs.QwenConfig) -> float:
    """Forward and backward of the batch: 6 a weight and token, the output layer for tokens in the loss only."""
    tables = config.vocab_size * config.hidden_size
    body = config.num_parameters - tables
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * TIME
    return 3.0 * ROWS * (TIME * (2 * body + attention) + (TIME - PROMPT) * 2 * tables)


def machine_rate() -> float:
    """FLOP/s of a float32 product of the MLP's shape."""
    x, w = jnp.ones((1536, 256)), jnp.ones((256, 704))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, w))
    start = time.process_time()
    for _ in range(20):
        jax.block_until_ready(product(x, w))
    return 20 * 2 * 1536 * 256 * 704 / (time.process_time() - start)


def update_seconds(micro_rows: int, repeats: int) -> dict[str, float]:
    """Best CPU seconds of a whole update, and the compiler's scratch memory."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    train = programs(MODEL_A, mesh)
    random = np.random.default_rng(0)
    mask = np.tile(np.arange(TIME) >= PROMPT, (ROWS, 1))
    rows = Rows(
        tokens=random.integers(1, 4096, (ROWS, TIME)).astype(np.int32),
        positions=np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)),
        segment_ids=np.ones((ROWS, TIME), np.int32),
        mask=mask,
        advantages=random.normal(size=(ROWS, TIME)).astype(np.float32),
        sampler_logprobs=np.zeros((ROWS, TIME), np.float32),
    )
    with jax.set_mesh(mesh):
        params = init_qwen(MODEL_A, jax.random.key(0), mesh=mesh)
        optimizer, gradients = train.init_optimizer(params), train.zero_gradients()
        ids = jnp.asarray(np.where(mask, (np.cumsum(mask, 1) - 1) // 10, -1).astype(np.int32))
        batches = [train.place(part, subsentence_ids=ids[:micro_rows]) for part in rows.micro_batches(micro_rows)]
        best, rate = float("inf"), 0.0
        for _ in range(repeats + 1):  # the first one compiles
            rate = max(rate, machine_rate())
            start = time.process_time()
            for batch in batches:
                gradients, *_ = train.micro_batch(params, gradients, batch, True)
            params, optimizer, gradients, _ = train.apply_update(params, optimizer, gradients)
            jax.block_until_ready(params)
            best = min(best, time.process_time() - start)
        memory = train.micro_batch.lower(params, gradients, batches[0], True).compile().memory_analysis()
    floor = model_flops(MODEL_A) / rate
    return {
        "cpu_seconds": best,
        "machine_gflops": rate / 1e9,
        "model_gflop": model_flops(MODEL_A) / 1e9,
        "floor_seconds": floor,
        "ratio": best / floor,
        "floor_at_120_gflops": model_flops(MODEL_A) / 120e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "state_gb": 4 * MODEL_A.num_parameters * 4 / 1e9,
        "peak_process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def compile_seconds() -> float:
    """CPU seconds to lower and compile the 28-layer 1.5B update for eight fake devices, abstract arrays."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    config = configs.QWEN25_1P5B.computed(dtype="bfloat16", remat="full")
    train = programs(config, mesh)
    shapes = abstract_qwen(config)[0]
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        qwen_shardings(config, mesh),
    )

    def array(dtype: object, *axes: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((8, 2048) if axes else (), dtype, sharding=named_sharding(mesh, axes))

    floats = {
        name: array(jnp.float32, "batch", "time")
        for name in ("advantages", "old_logprobs", "entropies", "sampler_logprobs")
    }
    ints = {
        name: array(jnp.int32, "batch", "time") for name in ("tokens", "positions", "segment_ids", "subsentence_ids")
    }
    scalars = {name: array(jnp.float32) for name in ("mean_entropy", "denominator")}
    batch = TrainBatch(**floats, **ints, **scalars, mask=array(jnp.bool_, "batch", "time"))
    with jax.set_mesh(mesh):
        start = time.process_time()
        train.micro_batch.lower(params, params, batch, array(jnp.bool_)).compile()
        return time.process_time() - start


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--micro-rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the 1.5B step instead")
    options = parser.parse_args()
    if options.compile:
        jax.config.update("jax_num_cpu_devices", 8)
        result: dict[str, object] = {"benchmark": "compile_1p5b", "cpu_seconds": round(compile_seconds(), 2)}
    else:
        figures = update_seconds(options.micro_rows, options.repeats)
        result = {"benchmark": "update_a", "micro_rows": options.micro_rows}
        result |= {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
