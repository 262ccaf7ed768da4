"""Step time with sampling ahead: a trainer and one `sspo serve`, each pinned to a core of its own; one JSON line.

    python benchmarks/lag.py [--steps 10] [--slots 8] [--tail] [--partial-tokens 48]

The model of the default experiment with random weights, GRPO, 16 x 8 responses a step of at most 52 tokens (with --tail
at most 208, ended by chance at every token, so that few are long). A run without a lag gives the two parts, sampling
and training, and their sum; one with lag 1 the step time, which is at best the larger of them. Loads are equal where
`sampling` and `training` are: --slots, the responses that the server decodes at once, and --epochs move them. Without
--tail no more than the tokenizer's own token ends a response, so that all steps are alike.

The two processes share memory and caches, so that each part takes longer while the other goes on: the ratio `_beside`
is to the larger part as it took in the run with lag 1, and says what the schedule itself adds.

`step` is the median of the time between rows of metrics.jsonl, of all steps but the first four, which compile.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

EXPERIMENT = """
import dataclasses
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import EvaluationConfig, LogConfig
from sspo_jax.losses import Grpo

def config():
    base = load_experiment("arithmetic_tiny")
    return dataclasses.replace(
        base,
        warm_start=None,
        loss=Grpo(),
        model=dataclasses.replace(base.model, shape=dataclasses.replace(base.model.shape, max_positions=256)),
        rollout=dataclasses.replace(base.rollout, prompts={prompts}, stop_token_ids={stops}, max_new_tokens={longest}),
        update=dataclasses.replace(base.update, row_tokens={row}),
        evaluation=EvaluationConfig(),
        checkpoint=dataclasses.replace(base.checkpoint, every=1000),
        log=LogConfig(quiet=True, trackers="none", tokens_every=0, report_every=0, rollouts_every=0),
    )
"""
START = """
import sys, jax
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.models import init_model, save_model
shape = load_experiment(sys.argv[1]).model.shape
save_model(sys.argv[2], init_model(shape, jax.random.key(0)), shape, dtype="float32")
"""
SKIPPED = 4
"""Steps that compile."""


def pinned(core: int) -> Callable[[], None]:
    """What a process does before it starts: it keeps to one core."""

    def keep() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    return keep


def serve(checkpoint: pathlib.Path, slots: int, core: int) -> tuple[subprocess.Popen[str], str]:
    """(process, address) of a server that reads weights anywhere."""
    command = [sys.executable, "-m", "sspo_jax", "serve", "--model", str(checkpoint), "--port", "0"]
    command += ["--reload-directory", "/", "--slots", str(slots), "--gather-seconds", "0.02"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(core))
    assert server.stdout is not None
    return server, server.stdout.readline().split(" at ")[1].strip().removesuffix("/v1")


def run(experiment: pathlib.Path, folder: pathlib.Path, core: int, *options: str) -> list[dict[str, float]]:
    """Metrics of the steps of a run."""
    command = [sys.executable, "-m", "sspo_jax", "train", str(experiment), "--run-dir", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=pinned(core))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def step_seconds(rows: list[dict[str, float]]) -> float:
    """Median time from one row to the next."""
    ends = [row["time/unix_seconds"] for row in rows][SKIPPED - 1 :]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))


def median(rows: list[dict[str, float]], *names: str) -> float:
    """Of the sum of these metrics, over the steps."""
    return statistics.median(sum(row.get(f"time/{name}_seconds", 0.0) for name in names) for row in rows[SKIPPED:])


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--tail", action="store_true", help="few long responses; with partial rollouts too")
    parser.add_argument("--partial-tokens", type=int, default=48)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1]
    longest = 208 if arguments.tail else 52
    stops = tuple(range(20, 30)) if arguments.tail else ()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        experiment = folder / "experiment.py"
        text = EXPERIMENT.format(prompts=arguments.prompts, stops=stops, longest=longest, row=44 + longest)
        experiment.write_text(text, encoding="utf-8")
        checkpoint = folder / "start"
        subprocess.run([sys.executable, "-c", START, str(experiment), str(checkpoint)], check=True)
        server, url = serve(checkpoint, arguments.slots, cores[-1])
        options = ["--steps", str(arguments.steps), "--update.epochs", str(arguments.epochs)]
        options += ["--rollout.server.url", url]
        found: dict[str, float] = {}
        try:
            alone = run(experiment, folder / "lag0", cores[0], *options)
            ahead = run(experiment, folder / "lag1", cores[0], *options, "--rollout.lag", "1")
            if arguments.tail:
                partial = ("--rollout.partial.tokens", str(arguments.partial_tokens), "--rollout.partial.groups", "0.5")
                going_on = run(experiment, folder / "partial", cores[0], *options, "--rollout.lag", "1", *partial)
                found["step_at_lag_1_partial"] = step_seconds(going_on)
                found["tokens_per_second_partial"] = rate(going_on)
        finally:
            server.kill()
    beside = {"sampling": median(ahead, "rollout", "verify"), "training": median(ahead, "score", "update")}
    parts = {"sampling": median(alone, "rollout", "verify"), "training": median(alone, "score", "update")}
    steps = {"step_at_lag_0": step_seconds(alone), "step_at_lag_1": step_seconds(ahead)}
    ratios = {
        "lag_1_by_larger_part": steps["step_at_lag_1"] / max(parts.values()),
        "lag_1_by_larger_part_beside": steps["step_at_lag_1"] / max(beside.values()),
        "lag_0_by_sum": steps["step_at_lag_0"] / sum(parts.values()),
        "waited_at_lag_1": median(ahead, "wait"),
        "tokens_per_second_at_lag_0": rate(alone),
        "tokens_per_second_at_lag_1": rate(ahead),
    }
    shown = {name: round(value, 3) for name, value in {**parts, **steps, **ratios, **found}.items()}
    print(json.dumps({"benchmark": "lag", "cores": len(cores), **vars(arguments), **shown}))


def rate(rows: list[dict[str, float]]) -> float:
    """Tokens trained on in a second of the run, over the steps that count."""
    seconds = rows[-1]["time/unix_seconds"] - rows[SKIPPED - 1]["time/unix_seconds"]
    return sum(row["rollout/tokens"] for row in rows[SKIPPED:]) / seconds


if __name__ == "__main__":
    main()
