"""Seconds and memory of one update, and CPU seconds to compile a 1.5B step; one JSON line.

    python benchmarks/update.py [A] [--micro-rows 4] [--repeats 3]
    python benchmarks/update.py --compile
    JAX_PLATFORMS=cuda python benchmarks/update.py 1.5B --micro-rows 8 [--attention xla] [--remat none]

A: hidden 256, 4 layers, 8/2 heads, MLP 704, vocabulary 4096, tied; 64 rows of 192 tokens, 128 of them in the loss,
AdamW, float32; CPU seconds on one core. 1.5B: the shape of Qwen2.5-1.5B, 32 rows of 2,048 tokens in bfloat16, two
packed responses each, 1,792 tokens in the loss; seconds by the clock, for an accelerator.

The baseline of the same run is the rate of the machine's own matrix product of the MLP's shape, so that the ratio holds
on a busy machine too: model FLOPs (3 forward passes, attention in full) over that rate.
"""

import argparse
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable

from sspo_jax.host_memory import keep_freed_memory

if __name__ == "__main__" and "1.5B" not in sys.argv:
    keep_freed_memory()  # as `sspo train` does; only before jax is imported
if "1.5B" not in sys.argv:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "1.5B" not in sys.argv and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np

from sspo_jax.config import OptimizerConfig
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.losses import Sspo
from sspo_jax.models import configs, init_qwen
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.subsentences import Segmenter
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.types import TrainBatch

ON_CPU = "1.5B" not in sys.argv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the rows of one update."""

    config: configs.QwenConfig
    rows: int
    time: int
    """Tokens of a row."""
    packed: int
    """Responses of a row, each with a prompt."""
    prompt: int


CASES = {
    "A": Case(
        config=configs.QwenConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=704,
            num_layers=4,
            num_heads=8,
            num_kv_heads=2,
            head_dim=32,
        ),
        rows=64,
        time=192,
        packed=1,
        prompt=64,
    ),
    "1.5B": Case(
        config=configs.QWEN25_1P5B.computed(dtype="bfloat16", remat="full"), rows=32, time=2048, packed=2, prompt=128
    ),
}


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


def model_flops(case: Case) -> float:
    """Forward and backward of the batch: 6 a weight and token, the output layer for tokens in the loss only."""
    config, length = case.config, case.time // case.packed
    tables = config.vocab_size * config.hidden_size
    body = config.num_parameters - tables
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * length
    return 3.0 * case.rows * (case.time * (2 * body + attention) + (case.time - case.packed * case.prompt) * 2 * tables)


def machine_rate(case: Case, clock: Callable[[], float]) -> float:
    """FLOP/s of a product of the MLP's shape, in the type of the computation."""
    width, inner, tokens = case.config.hidden_size, case.config.intermediate_size, 1536 if ON_CPU else 16384
    x, w = jnp.ones((tokens, width), case.config.compute.dtype), jnp.ones((width, inner), case.config.compute.dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, w))
    start = clock()
    for _ in range(20):
        result = product(x, w)
        if ON_CPU:
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return 20 * 2 * tokens * width * inner / (clock() - start)


def update_seconds(case: Case, micro_rows: int, repeats: int) -> dict[str, float]:
    """Best seconds of a whole update (of the processor, or by the clock), and the compiler's scratch memory."""
    clock = time.process_time if ON_CPU else time.perf_counter
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    config, train = case.config, programs(case.config, mesh)
    random = np.random.default_rng(0)
    shape, length = (case.rows, case.time), case.time // case.packed
    position = np.tile(np.arange(case.time, dtype=np.int32) % length, (case.rows, 1))
    mask = position >= case.prompt
    zeros = np.zeros(shape, np.float32)
    rows = TrainBatch(
        tokens=random.integers(1, 4096, shape).astype(np.int32),
        positions=position,
        segment_ids=np.tile(1 + np.arange(case.time, dtype=np.int32) // length, (case.rows, 1)),
        subsentence_ids=np.where(mask, (np.cumsum(mask, 1) - 1) // 10, -1).astype(np.int32),
        mask=mask,
        advantages=random.normal(size=shape).astype(np.float32),
        sampler_logprobs=zeros,
        old_logprobs=zeros,
        entropies=zeros,
    )

    def part(cut: int) -> TrainBatch:
        return train.place(jax.tree.map(lambda x: x[cut : cut + micro_rows], rows))

    with jax.set_mesh(mesh):
        params = init_qwen(config, jax.random.key(0), mesh=mesh)
        optimizer, gradients = train.init_optimizer(params), train.zero_gradients()
        batches = [part(cut) for cut in range(0, case.rows, micro_rows)]
        best, rate, first = float("inf"), 0.0, 0.0
        for number in range(repeats + 1):  # the first one compiles
            rate = max(rate, machine_rate(case, clock))
            start = clock()
            for batch in batches:
                gradients, *_ = train.micro_batch(params, gradients, batch, True)
            params, optimizer, gradients, _ = train.apply_update(params, optimizer, gradients)
            jax.block_until_ready(params)
            first = first if number else clock() - start
            best = min(best, clock() - start) if number else best
        memory = train.micro_batch.lower(params, gradients, batches[0], True).compile().memory_analysis()
        device = jax.devices()[0].memory_stats() or {}
    floor = model_flops(case) / rate
    return {
        "cpu_seconds" if ON_CPU else "seconds": best,
        "first_seconds": first,
        "tokens_per_second": case.rows * case.time / best,
        "machine_gflops": rate / 1e9,
        "model_gflop": model_flops(case) / 1e9,
        "floor_seconds": floor,
        "ratio": best / floor,
        **({"floor_at_120_gflops": model_flops(case) / 120e9} if ON_CPU else {}),
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "state_gb": 4 * config.num_parameters * 4 / 1e9,
        "peak_device_gb": device.get("peak_bytes_in_use", 0) / 1e9,
        "peak_process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def compile_seconds() -> float:
    """CPU seconds to lower and compile the 28-layer 1.5B update for eight fake devices, abstract arrays."""
    config = configs.QWEN25_1P5B.computed(dtype="bfloat16", remat="full")
    start = time.process_time()
    train = programs(config, make_mesh(MeshConfig(fsdp=8)))
    train.programs_for(micro_rows=8, row_tokens=2048)["update"].traced.lower().compile()
    return time.process_time() - start


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", default="A", choices=CASES)
    parser.add_argument("--micro-rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--attention", default="auto", help="auto, xla, cudnn or splash")
    parser.add_argument("--remat", default=None, help="none, full or dots; default: of the case")
    parser.add_argument("--compile", action="store_true", help="compile the 1.5B step instead")
    options = parser.parse_args()
    if options.compile:
        jax.config.update("jax_num_cpu_devices", 8)
        result: dict[str, object] = {"benchmark": "compile_1p5b", "cpu_seconds": round(compile_seconds(), 2)}
    else:
        case = CASES[options.case]
        config = case.config.computed(
            dtype=case.config.compute.dtype,
            remat=options.remat or case.config.compute.remat,
            attention=options.attention,
        )
        figures = update_seconds(dataclasses.replace(case, config=config), options.micro_rows, options.repeats)
        result = {"benchmark": f"update_{options.case.lower()}", "device": jax.devices()[0].device_kind}
        result |= {"micro_rows": options.micro_rows, "attention": options.attention, "remat": config.compute.remat}
        result |= {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
