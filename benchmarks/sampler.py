"""Rollout speed beside what a user would pick instead: `python benchmarks/sampler.py [A B tail] [--rounds 4]`.

Workloads (random weights, tied embeddings, float32, temperature 1, no end token; log-probabilities and stops on):

- A: hidden 256, 4 layers, 8/2 heads, intermediate 704, vocabulary 4,096; 8 prompts of 64 x 8 samples of 128 tokens.
- B: hidden 896, 6 layers, 14/2 heads, intermediate 4,864, vocabulary 151,936; 2 prompts of 64 x 8 samples of 64 tokens.
- tail: the model of A, 512 samples whose lengths are log-normal (median 300, 99 % below 3,000 of 3,072), all divided by
  `--shorten`; transformers decodes them in batches of 64, each as long as its longest.
- 1.5B: the shape of Qwen2.5-1.5B; 32 prompts of 128 x 8 samples of 512 tokens, in bfloat16, for an accelerator
  (`--core -1`).
- 1.5B-tail: that model with the lengths of tail, divided by `--shorten` too.
- small: hidden 160, 3 layers, vocabulary 512; 32 prompts of 48 x 8 samples of 64 tokens, the shape of the default run.

Every system is a process of its own, pinned to `--core`; they take turns, one repetition each, so that a slow phase of
the machine hits all alike. Prints one JSON line for each: tokens/s by wall clock and by CPU seconds (the latter is what
to compare while others use the machine), seconds of the first call, compiled programs, peak memory (ours also as a
multiple of weights and cache, without what the process held before: of the first call, and of the later ones). Ours
says how far it is from the bound, the larger of two times a step: its FLOPs at the rate of a large product here, and
its bytes (weights, and what the samples have in the cache) at the rate memory is read, both measured in the same
process. At the end there is a table, on stderr.

Peers that are not installed are left out. transformers comes with the development dependencies (torch, CPU build);
Tunix has an environment of its own, `.venv-tunix`, which `make bench-peers` makes (or `--tunix-python PYTHON`).
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

_FIELDS = ("hidden", "layers", "heads", "kv_heads", "inter", "vocab", "prompts", "group", "prompt", "new")
SHAPES: dict[str, dict[str, int]] = {
    name: dict(zip(_FIELDS, sizes, strict=True))
    for name, sizes in {
        "A": (256, 4, 8, 2, 704, 4096, 8, 8, 64, 128),
        "B": (896, 6, 14, 2, 4864, 151936, 2, 8, 64, 64),
        "tail": (256, 4, 8, 2, 704, 4096, 64, 8, 64, 3072),
        "1.5B": (1536, 28, 12, 2, 8960, 151936, 32, 8, 128, 512),
        "1.5B-tail": (1536, 28, 12, 2, 8960, 151936, 64, 8, 64, 3072),
        "small": (160, 3, 4, 4, 448, 512, 32, 8, 48, 64),
    }.items()
}
PEERS = pathlib.Path(__file__).parent / "peers"
TUNIX = pathlib.Path(__file__).parents[1] / ".venv-tunix" / "bin" / "python"


def workload(name: str, shorten: int, attention: str) -> dict[str, Any]:
    """Shape, prompts, the length of every response, and what computes our attention."""
    shape = SHAPES[name]
    rng = random.Random(0)
    prompts = [[rng.randrange(8, shape["vocab"]) for _ in range(shape["prompt"])] for _ in range(shape["prompts"])]
    rows = shape["prompts"] * shape["group"]
    lengths = [shape["new"]] * rows
    if name.endswith("tail"):
        sigma = math.log(10) / 2.3263  # of ten times the median, 99 % are below
        lengths = [min(3072, max(1, round(300 * math.exp(rng.gauss(0, sigma))))) for _ in range(rows)]
        lengths = [-(-length // shorten) for length in lengths]
    dtype = "bfloat16" if name.startswith("1.5B") else "float32"
    return {**shape, "name": name, "dtype": dtype, "attention": attention, "prompt_ids": prompts, "lengths": lengths}


def serve_rounds(run_once: Any, described: dict[str, Any]) -> None:
    """A worker: one call, then one more for each line on stdin, a JSON line after each."""

    def timed() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run_once()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": tokens}

    first = timed()
    print(json.dumps({"first": first}), flush=True)
    for line in sys.stdin:
        if line.strip() != "go":
            break
        print(json.dumps(timed()), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    extra = described() if callable(described) else described
    print(json.dumps({**extra, "peak_mb": peak}), flush=True)


def resident(name: str) -> int:
    """Bytes of this process in memory: `VmRSS` now, `VmHWM` at the peak."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}")


def forget_peak() -> None:
    """The peak starts anew: making random weights takes several times their size."""
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def bound(config: Any, work: dict[str, Any], slots: int) -> dict[str, float]:
    """The most tokens a second that this machine's arithmetic and its memory allow, each as measured now."""
    import jax
    import jax.numpy as jnp

    def best(function: Any, *arrays: Any) -> float:
        compiled, seconds = jax.jit(function), []
        for _ in range(8):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arrays))
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    width = jnp.dtype(work["dtype"]).itemsize
    side, count = (2048, 1 << 26) if jax.default_backend() == "cpu" else (8192, 1 << 30)
    matrix = jax.random.normal(jax.random.key(0), (side, side), work["dtype"])
    flops_rate = 2 * side**3 / best(jnp.matmul, matrix, matrix)
    bytes_rate = 4 * count / best(lambda x: jnp.sum(x.reshape(-1, 1024), axis=0), jnp.ones(count))
    del matrix
    tokens = sum(work["lengths"])
    # A response of n tokens reads prompt, prompt + 1, ... prompt + n - 1 entries of the cache.
    entries = sum(n * work["prompt"] + n * (n - 1) / 2 for n in work["lengths"])
    heads = config.num_layers * config.head_dim
    flops = 2 * config.num_parameters * tokens + 4 * heads * config.num_heads * entries
    steps = tokens / slots  # of full batches: each reads the weights once
    read = width * config.num_parameters * steps + 2 * width * heads * config.num_kv_heads * entries
    return {
        "gflops": round(flops_rate / 1e9, 1),
        "gigabytes_per_second": round(bytes_rate / 1e9, 1),
        "bound_tokens_per_second": round(tokens / max(flops / flops_rate, read / bytes_rate), 1),
    }


def ours(work: dict[str, Any]) -> None:
    """The worker of this project, through the public `Sampler.generate`."""
    from sspo_jax.host_memory import keep_freed_memory

    keep_freed_memory()  # as `sspo` does

    import jax

    from sspo_jax.models.configs import QwenConfig
    from sspo_jax.models.qwen import init_qwen
    from sspo_jax.sampler import Sampler, SamplingParams
    from sspo_jax.sampler.kv_cache import cache_bytes

    config = QwenConfig(
        vocab_size=work["vocab"],
        hidden_size=work["hidden"],
        intermediate_size=work["inter"],
        num_layers=work["layers"],
        num_heads=work["heads"],
        num_kv_heads=work["kv_heads"],
        head_dim=work["hidden"] // work["heads"],
    ).computed(dtype=work["dtype"], attention=work["attention"])
    jax.devices()
    beside = resident("VmRSS")  # interpreter and libraries; what the compiler takes later counts as ours
    params = jax.block_until_ready(init_qwen(config, jax.random.key(0)))
    weights = config.num_parameters * 4
    # Token 1 ends a response, but no budget leaves room for it: the check is paid, the length is that of the peers.
    longest = max(work["lengths"])
    sampling = SamplingParams(max_new_tokens=longest, min_new_tokens=longest, stop_token_ids=(1,))
    sampler = Sampler(config, sampling)
    forget_peak()
    params = sampler.ready(params, release=True)
    calls, peaks = [0], []

    def run_once() -> int:
        calls[0] += 1
        if calls[0] == 2:  # what follows compiles nothing
            peaks.append(resident("VmHWM"))
            forget_peak()
        rollout = sampler.generate(
            params, work["prompt_ids"], group_size=work["group"], seed=calls[0], budgets=work["lengths"]
        )
        return int(rollout.response_mask.sum())

    def described() -> dict[str, Any]:
        stats = sampler.stats
        slots = sampler.num_slots(len(work["lengths"]))
        least = weights + cache_bytes(config, slots, work["prompt"] + longest, work["dtype"])
        peaks.append(resident("VmHWM"))
        return {
            "system": "sspo_jax",
            "device": jax.devices()[0].device_kind,
            "programs": len(sampler.programs),
            "compile_seconds": round(sampler.programs.seconds, 2),
            "useful_fraction": round(stats.useful_fraction, 3),
            "steps": stats.steps,
            "weights_mb": weights >> 20,
            "memory_to_weights_and_cache": [round((peak - beside) / least, 2) for peak in peaks],
            "temporary_mb": sampler.programs.temporary_bytes() >> 20,
            **bound(config, work, slots),
        }

    serve_rounds(run_once, described)  # type: ignore[arg-type]


def read_json(process: subprocess.Popen) -> dict[str, Any]:
    """The next line of a worker that is JSON."""
    for line in process.stdout or ():
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"a worker ended with code {process.wait()}")


def compare(
    commands: dict[str, list[str]], work: dict[str, Any], rounds: int, core: int, shorten: int
) -> list[dict[str, Any]]:
    """Interleaves the workers, prints a line for each and returns them; with 0 rounds the first call is what counts."""

    def pin() -> None:
        if core >= 0:
            os.sched_setaffinity(0, {core})

    processes, firsts, times = {}, {}, {name: [] for name in commands}
    for name, command in commands.items():
        processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=pin,
            env={**os.environ, "OMP_NUM_THREADS": "1" if core >= 0 else "", "HF_HUB_OFFLINE": "1"},
        )
        assert processes[name].stdin is not None
        processes[name].stdin.write(json.dumps(work) + "\n")
        processes[name].stdin.flush()
        try:
            firsts[name] = read_json(processes[name])["first"]
        except RuntimeError as error:
            print(json.dumps({"workload": work["name"], "peer": name, "error": str(error)}), flush=True)
            del processes[name]
    for turn in range(rounds):
        names = list(processes)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            processes[name].stdin.write("go\n")
            processes[name].stdin.flush()
            times[name].append(read_json(processes[name]))
    lines = []
    for name, process in processes.items():
        times[name] = times[name] or [firsts[name]]
        process.stdin.write("end\n")
        process.stdin.flush()
        described = read_json(process)
        process.wait()
        rates = {
            f"tokens_per_{kind}_second": round(statistics.median(t["tokens"] / t[kind] for t in times[name]), 1)
            for kind in ("wall", "cpu")
        }
        line = {
            "benchmark": "sampler",
            "workload": work["name"] + (f"/{shorten}" if work["name"].endswith("tail") else ""),
            "peer": name,
            **rates,
            "cpu_rates": [round(t["tokens"] / t["cpu"], 1) for t in times[name]],
            "first_call_wall": round(firsts[name]["wall"], 2),
            "first_call_cpu": round(firsts[name]["cpu"], 2),
            **described,
        }
        if "bound_tokens_per_second" in line:
            line["share_of_bound"] = round(line["tokens_per_wall_second"] / line["bound_tokens_per_second"], 3)
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def show(lines: list[dict[str, Any]]) -> None:
    """All systems beside each other, for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Rollouts: tokens per second of wall clock, medians")
    for column in ("workload", "system", "tokens/s", "ours is", "of the bound", "first call, s", "useful", "peak MB"):
        table.add_column(column, justify="left" if column in ("workload", "system") else "right")
    reference = {line["workload"]: line["tokens_per_wall_second"] for line in lines if line["peer"] == "ours"}
    for line in lines:
        rate, own = line["tokens_per_wall_second"], reference.get(line["workload"])
        table.add_row(
            line["workload"],
            line["system"],
            f"{rate:,.0f}",
            f"{own / rate:.2f} x" if own and line["peer"] != "ours" else "",
            f"{line['share_of_bound']:.0%}" if "share_of_bound" in line else "",
            f"{line['first_call_wall']:.1f}",
            f"{line['useful_fraction']:.3f}" if "useful_fraction" in line else "",
            f"{line['peak_mb']:,}",
        )
    Console(stderr=True, width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["A", "B", "tail"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=4, help="calls after the first; 0: that one is taken")
    parser.add_argument("--core", type=int, default=0, help="the core all are pinned to; -1: not pinned")
    parser.add_argument("--shorten", type=int, default=16, help="divides the lengths of `tail` and `1.5B-tail`")
    parser.add_argument("--attention", default="auto", help="of ours: `xla` reads all columns of the cache")
    parser.add_argument("--peers", default="transformers,tunix", help="which to run beside ours")
    parser.add_argument("--tunix-python", default=str(TUNIX), help="interpreter of an environment with google-tunix")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        ours(json.loads(sys.stdin.readline()))
        return
    lines = []
    for name in arguments.workloads:
        work = workload(name, arguments.shorten, arguments.attention)
        commands = {"ours": [sys.executable, __file__, "--worker"]}
        if "transformers" in arguments.peers:
            commands["transformers"] = [sys.executable, str(PEERS / "transformers_rollout.py")]
        if "tunix" in arguments.peers and pathlib.Path(arguments.tunix_python).exists():
            commands["tunix"] = [arguments.tunix_python, str(PEERS / "tunix_rollout.py")]
        lines += compare(commands, work, arguments.rounds, arguments.core, arguments.shorten)
    show(lines)


if __name__ == "__main__":
    main()
