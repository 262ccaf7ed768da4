"""A prompt once for a group against a prompt for each response: tokens, processor seconds and memory of an update.

    python benchmarks/shared_prompts.py --case A
    python benchmarks/shared_prompts.py --case default --row-tokens 192 --micro-rows 2

Both sides take turns in one process on one core. Prints one JSON line.
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
from update import CASES, programs

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.host_memory import keep_freed_memory
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import init_qwen
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.trainer.batch import assign_rows, pack_rows
from sspo_jax.types import Rollout, TrainBatch


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is updated on: groups of eight responses."""

    config: QwenConfig
    groups: int
    prompt: int
    responses: tuple[int, int]  # shortest and longest
    each: tuple[int, int]  # tokens of a row, rows of a micro-batch, with a prompt for each response
    once: tuple[int, int]


def settings() -> dict[str, Setting]:
    """By the names of benchmarks/update.py, the default experiment, and an update of the study of ratio levels."""
    tiny = load_experiment("arithmetic_tiny")
    assert tiny.model.shape is not None
    return {
        "A": Setting(CASES["A"].config, 8, 64, (128, 128), (192, 8), (579, 2)),
        "study": Setting(tiny.model.computed(tiny.model.shape), 2, 25, (15, 52), (96, 16), (192, 2)),
        "default": Setting(tiny.model.computed(tiny.model.shape), 8, 25, (15, 52), (96, 8), (192, 2)),
    }


def rollout(setting: Setting) -> Rollout:
    """Random tokens."""
    noise, count = np.random.default_rng(0), 8 * setting.groups
    prompts = [noise.integers(5, 400, setting.prompt).astype(np.int32) for _ in range(setting.groups)]
    low, high = setting.responses
    responses = [noise.integers(5, 400, noise.integers(low, high + 1)).astype(np.int32) for _ in range(count)]
    return Rollout(
        prompts=tuple(prompts[row // 8] for row in range(count)),
        responses=tuple(responses),
        logprobs=tuple(np.full(len(response), -1, np.float32) for response in responses),
        finish_reasons=np.ones(count, np.int32),
        group_ids=np.arange(count, dtype=np.int32) // 8,
        sample_ids=np.arange(count, dtype=np.int32) % 8,
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(settings()), default="default")
    parser.add_argument("--row-tokens", type=int, help="of a row with shared prompts")
    parser.add_argument("--micro-rows", type=int, help="of a micro-batch with shared prompts")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    setting = settings()[options.case]
    once = (options.row_tokens or setting.once[0], options.micro_rows or setting.once[1])
    mesh, sampled = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]), rollout(setting)
    train = programs(setting.config, mesh)
    params = init_qwen(setting.config, jax.random.key(0), mesh=mesh)

    def batches(layout: tuple[int, int], share: bool) -> list[TrainBatch]:
        how: dict[str, Any] = {"row_tokens": layout[0], "share_prompts": share}
        members = assign_rows(sampled, np.arange(len(sampled)), **how)
        cuts = pack_rows(sampled, np.ones(len(sampled), np.float32), members, micro_rows=layout[1], **how)
        return [train.place(cut) for cut in cuts]

    def seconds(parts: list[TrainBatch], is_update: bool) -> float:
        start, gradients = time.process_time(), train.zero_gradients()
        for part in parts:
            gradients, *_ = train.micro_batch(params, gradients, part, is_update)
            jax.block_until_ready(gradients)
        return time.process_time() - start

    with jax.set_mesh(mesh):
        sides = {"each": batches(setting.each, False), "once": batches(once, True)}
        result: dict[str, Any] = {"benchmark": "shared_prompts", "case": options.case, "once": list(once)}
        for is_update in (True, False):
            taken: dict[str, list[float]] = {"each": [], "once": []}
            for _ in range(options.repeats + 2):
                for name, parts in sides.items():
                    taken[name].append(seconds(parts, is_update))
            what = "update" if is_update else "score"
            medians = {name: statistics.median(own[2:]) for name, own in taken.items()}
            result |= {f"{what}_{name}_cpu_seconds": round(value, 4) for name, value in medians.items()}
            result[f"{what}_ratio"] = round(medians["each"] / medians["once"], 2)
        for name, parts in sides.items():
            result[f"places_{name}"] = sum(part.tokens.size for part in parts)
            result[f"tokens_{name}"] = sum(int(np.count_nonzero(part.segment_ids)) for part in parts)
            compiled = train.micro_batch.lower(params, params, parts[0], True).compile()
            memory = compiled.memory_analysis()
            result[f"scratch_{name}_mib"] = round(memory.temp_size_in_bytes / 2**20, 1) if memory else None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
