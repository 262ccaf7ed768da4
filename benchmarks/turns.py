"""Conversations kept between their turns against prefilling each turn's whole context again: seconds, tokens, programs.

    python benchmarks/turns.py
    python benchmarks/turns.py --model A --ends 0.3
    python benchmarks/turns.py --conversations 64 --turns 3 --shortest 20 --longest 40 --said 16 --heard 8

A random model and an environment of random words; every turn has its full length, and with --ends a share of the
conversations is over after each. Both sides take turns in one process on one core. Prints one JSON line.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

from sspo_jax.host_memory import keep_freed_memory
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import init_qwen
from sspo_jax.sampler import Sampler, SamplingParams
from sspo_jax.sampler.random_bits import row_keys

MODELS = {
    "tiny": QwenConfig(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32,
        max_positions=4096,
    ),
    "A": QwenConfig(
        vocab_size=512, hidden_size=256, intermediate_size=768, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=64,
        max_positions=4096,
    ),
}  # fmt: skip


@dataclasses.dataclass
class Side:
    """One way of sampling, and what it took."""

    sampler: Sampler
    keep: bool
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    prefilled: int = 0
    """Tokens, in the latest rollout."""
    tokens: list[list[int]] = dataclasses.field(default_factory=list)


def roll_out(side: Side, params: Any, options: argparse.Namespace, seed: int) -> None:
    """All turns of all conversations."""
    noise = np.random.default_rng(seed)
    count, turns = options.conversations, options.turns
    lengths = noise.integers(options.shortest, options.longest + 1, count)
    contexts = [noise.integers(4, 500, length).tolist() for length in lengths]
    begin, cpu, side.prefilled = time.perf_counter(), time.process_time(), 0
    kept = side.sampler.keep(count, prompt_tokens=options.longest) if side.keep else None
    assert (kept is not None) == side.keep
    going = list(range(count))
    for turn in range(turns):
        rollout = side.sampler.generate(
            params,
            [contexts[row] for row in going],
            seed=0,
            keys=row_keys(seed, 0, np.array(going), np.full(len(going), turn)),
            budgets=[options.said] * len(going),
            kept=kept,
            names=going,
        )
        side.prefilled += side.sampler.stats.prompt_tokens
        for row, response in zip(going, rollout.responses, strict=True):
            contexts[row] += response.tolist()
            contexts[row] += noise.integers(4, 500, noise.integers(1, options.heard + 1)).tolist()
        going = [row for row in going if noise.random() >= options.ends]
        if not going:
            break
    if kept is not None:
        kept.release()
    side.seconds.append(time.perf_counter() - begin)
    side.cpu_seconds.append(time.process_time() - cpu)
    side.tokens = contexts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="tiny")
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--shortest", type=int, default=256, help="prompt, in tokens")
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--said", type=int, default=32, help="tokens of a turn of the policy")
    parser.add_argument("--heard", type=int, default=16, help="tokens of the longest answer")
    parser.add_argument("--ends", type=float, default=0.0, help="share of the conversations that end after a turn")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    config = MODELS[options.model]
    params = init_qwen(config, jax.random.key(0))
    sampling = SamplingParams(max_new_tokens=options.turns * options.said + (options.turns - 1) * options.heard)
    sides = {
        name: Side(Sampler(config, sampling, slots=options.conversations), keep=name == "kept")
        for name in ("again", "kept")
    }
    for seed in range(options.repeats + 1):
        for side in sides.values():
            roll_out(side, params, options, seed)
    result: dict[str, Any] = {"benchmark": "turns", **vars(options)}
    result["same_tokens"] = float(
        np.mean([one == two for one, two in zip(sides["again"].tokens, sides["kept"].tokens, strict=True)])
    )
    for name, side in sides.items():
        result[f"{name}_seconds"] = round(statistics.median(side.seconds[1:]), 4)
        result[f"{name}_cpu_seconds"] = round(statistics.median(side.cpu_seconds[1:]), 4)
        result[f"{name}_first_seconds"] = round(side.seconds[0], 2)
        result[f"{name}_prefilled_tokens"] = side.prefilled
        result[f"{name}_programs"] = len(side.sampler.programs)
    result["ratio"] = round(result["again_cpu_seconds"] / result["kept_cpu_seconds"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
