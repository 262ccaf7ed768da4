"""A whole step of GRPO (sampling, reward, update) beside TRL and Tunix, as their users run it: a JSON line for each.

    python benchmarks/grpo_step.py [--rounds 3] [--steps 6] [--equal 0.5] [--core 0]

Workload A of benchmarks/sampler.py: a random Qwen2 of hidden 256, 4 layers, 8/2 heads, intermediate 704 and vocabulary
4,096; 8 prompts of 64 tokens x 8 samples of at most 128 (one of the 4,096 tokens ends a response), float32,
temperature 1, a reward that costs nothing, one update with AdamW on what was sampled, no scoring pass, since the policy
that sampled is the one that is trained. All load the same checkpoint and tokenizer. `--equal` is the share of problems
all responses to which earn the same, as too easy and too hard ones do: their groups have no gradient. By default none.

Ours is `sspo train` with `--update.share-prompts` (and without, as `ours-rows`). TRL's is GRPOTrainer without gradient
checkpointing, Tunix's its GRPOLearner. They run in turn, `--rounds` times, on one core; the first `SKIPPED` steps of a
run, which compile, do not count. `seconds` is the median over all other steps, of the time from the end of one step to
the end of the next; wall clock, so nothing else may use the core.

TRL and Tunix have environments of their own, `.venv-trl` and `.venv-tunix`, which `make bench-peers` makes (others:
`--trl-python`, `--tunix-python`); without one its line is missing.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import statistics
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable

HERE = pathlib.Path(__file__).parent
TRL, TUNIX = (HERE.parent / f".venv-{name}" / "bin" / "python" for name in ("trl", "tunix"))
SKIPPED = 2
VOCABULARY, PROMPT, STEPS_OF_DATA = 4096, 64, 64
EXPERIMENT = """
from sspo_jax.config import CheckpointConfig, EvaluationConfig, LogConfig, ModelConfig, OptimizerConfig
from sspo_jax.config import RolloutConfig, TrainConfig, UpdateConfig
from sspo_jax.data.sources import JsonlData
from sspo_jax.losses import Grpo
from sspo_jax.rewards import RewardConfig, UserReward


def config():
    return TrainConfig(
        steps=1,
        model=ModelConfig(path="model", dtype="float32", remat="none"),
        data=JsonlData(path="problems.jsonl"),
        prompt="none",
        rollout=RolloutConfig(prompts=8, group_size=8, max_new_tokens=128, max_prompt_tokens=64, temperature=1.0),
        reward=RewardConfig(user=(UserReward(function="own_reward:made_up"),)),
        loss=Grpo(),
        update=UpdateConfig(per_rollout=1, row_tokens=192, micro_rows=4, old_logprobs="sampler"),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(quiet=True, trackers="none", tokens_every=0, report_every=0, rollouts_every=0),
    )
"""
REWARD = """
import zlib


def made_up(problem, response):
    return 0.0 if problem.startswith("a") else float(zlib.crc32(response.encode()) % 7)
"""


def prepare(folder: pathlib.Path, equal: float) -> None:
    """A checkpoint, problems and a reward that both systems read.

    Args:
      equal: share of the problems whose responses all earn the same; they begin with an a.
    """
    import tokenizers
    import torch
    import transformers

    control = ("<pad>", "<end>", "<unknown>")
    words = ["".join(letters) for letters in itertools.product(string.ascii_lowercase[:16], repeat=3)][len(control) :]
    vocabulary = {word: i for i, word in enumerate((*control, *(f"\u0120{word}" for word in words)))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, intermediate_size=704,
        vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    draw = random.Random(0)
    of_both = [[word for word in words if word.startswith("a") == is_equal] for is_equal in (False, True)]
    texts = (
        " ".join([draw.choice(of_both[draw.random() < equal]), *draw.choices(words, k=PROMPT - 1)])
        for _ in range(8 * STEPS_OF_DATA)
    )
    rows = [json.dumps({"id": str(i), "problem": text, "answer": "0"}) for i, text in enumerate(texts)]
    (folder / "problems.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "experiment.py").write_text(EXPERIMENT)
    (folder / "own_reward.py").write_text(REWARD)


def ours(folder: pathlib.Path, steps: int, number: int, *options: str) -> tuple[list[str], Callable[[], list[dict]]]:
    """Command of a run, and how to read the seconds of its steps once it has ended."""
    run = folder / f"run-{number}-{len(options)}"
    command = [sys.executable, "-m", "sspo_jax", "train", "experiment.py", "--run-dir", str(run), *options]

    def read() -> list[dict]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["step"] > 0]
        return [
            {
                "seconds": later["time/unix_seconds"] - row["time/unix_seconds"],
                "generate": later["time/rollout_seconds"],
                "tokens": later["rollout/tokens"],
            }
            for row, later in itertools.pairwise(rows)
        ]

    return [*command, "--steps", str(steps)], read


def peer(
    name: str, folder: pathlib.Path, steps: int, number: int, python: str
) -> tuple[list[str], Callable[[], list[dict]]]:
    """The same of another trainer."""
    file = folder / f"{name}-{number}.jsonl"
    command = [python, str(HERE / "peers" / f"{name}_grpo_step.py"), "--steps", str(steps), "--out", str(file)]

    def read() -> list[dict]:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [
            {"seconds": later["end"] - row["end"], "generate": later["generate"], "tokens": later["tokens"]}
            for row, later in itertools.pairwise(rows)
        ]

    return command, read


def main() -> None:
    """Prints one JSON line for each system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="that count, in each run")
    parser.add_argument("--equal", type=float, default=0.0, help="share of problems whose responses all earn the same")
    parser.add_argument("--core", type=int, default=0, help="the core all are pinned to; -1: not pinned")
    parser.add_argument("--trl-python", default=str(TRL), help="interpreter of an environment with trl")
    parser.add_argument("--tunix-python", default=str(TUNIX), help="interpreter of an environment with google-tunix")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, options.equal)
        found: dict[str, list[dict]] = {}
        for number, _ in enumerate(range(options.rounds)):
            steps = options.steps + SKIPPED
            shared = ("--update.share-prompts", "--update.row-tokens", "1095", "--update.micro-rows", "1")
            systems = {"ours": ours(folder, steps, number, *shared), "ours-rows": ours(folder, steps, number)}
            for name, python in (("trl", options.trl_python), ("tunix", options.tunix_python)):
                if pathlib.Path(python).exists():
                    systems[name] = peer(name, folder, steps, number, python)
            for system, (command, read) in systems.items():
                environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
                environment |= {"PYTHONPATH": str(HERE.parent)} if system.startswith("ours") else {}
                environment |= {"OMP_NUM_THREADS": "1"} if options.core >= 0 else {}
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True,
                    preexec_fn=(lambda: os.sched_setaffinity(0, {options.core})) if options.core >= 0 else None,
                )  # fmt: skip
                if done.returncode:
                    raise RuntimeError(f"{system} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
                found.setdefault(system, []).extend(read()[SKIPPED - 1 :])
    best = statistics.median(step["seconds"] for step in found["ours"])
    for system, steps in found.items():
        seconds = sorted(step["seconds"] for step in steps)
        middle = statistics.median(seconds)
        line = {
            "benchmark": "grpo_step",
            "workload": "A",
            "system": system,
            "seconds": round(middle, 3),
            "least": round(seconds[0], 3),
            "most": round(seconds[-1], 3),
            "generate_seconds": round(statistics.median(step["generate"] for step in steps), 3),
            "tokens": round(statistics.median(step["tokens"] for step in steps)),
            "steps": len(steps),
            "equal": options.equal,
            "ours_is": round(middle / best, 2),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
