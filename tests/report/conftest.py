"""A run directory without a run: its files, from made-up numbers."""

import json
import math
import pathlib

import numpy as np
import pytest

from sspo_jax.losses.diagnostics import LOG_RATIO_EDGES
from sspo_jax.runs.token_log import LoggedResponse, TokenLog
from tests.trainer.conftest import small

PIECES = ("2", " plus", " 3", " is", " 5", ",", " so", " it", " is", " </script>", "5", ".")
CLAUSES = np.array([0] * 6 + [1] * 6, np.int32)


def response(number: int, *, log_ratio: float, advantage: float, tokens: int = 12) -> LoggedResponse:
    """Two clauses, of which the second has moved by `log_ratio`; its bounds are 0.98 and 1.02."""
    pieces = (PIECES * (tokens // 12 + 1))[:tokens]
    clauses = np.resize(CLAUSES, tokens) if tokens == 12 else np.arange(tokens, dtype=np.int32) // 8
    moved = np.where(clauses == 1, log_ratio, 0.0).astype(np.float32)
    old = np.linspace(-1.0, -0.1, tokens).astype(np.float32)
    ratio = np.exp(moved)
    clipped = np.where((ratio > 1.02) & (advantage > 0), 1, np.where((ratio < 0.98) & (advantage < 0), -1, 0))
    grpo = np.where((ratio > 1.2) & (advantage > 0), 1, np.where((ratio < 0.8) & (advantage < 0), -1, 0))
    mean = float(moved.mean())
    gspo = int(mean > 4e-4 and advantage > 0) - int(mean < -3e-4 and advantage < 0)
    one = np.ones(tokens, np.float32)
    arrays = {
        "tokens": np.arange(tokens, dtype=np.int32), "subsentences": clauses, "old_logprobs": old,
        "text_lengths": np.array([len(piece) for piece in pieces], np.int32), "sampler_logprobs": old,
        "entropies": np.linspace(0.1, 0.9, tokens).astype(np.float32), "logprobs": (old + moved)[None],
        "ratio": ratio[None], "low": 0.98 * one[None], "high": 1.02 * one[None],
        "clipped": clipped[None].astype(np.int8),
        "clipped_grpo": grpo[None].astype(np.int8), "clipped_gspo": np.full((1, tokens), gspo, np.int8),
        "clipped_sspo": grpo[None].astype(np.int8), "entropy_scale": one, "length_scale": one,
    }  # fmt: skip
    about = {
        "id": f"p{number // 2}", "sample": number % 2, "problem": f"What is 2+{number}? <b>", "gold": "5",
        "status": "correct" if advantage > 0 else "wrong", "reward": float(advantage > 0), "chosen": "spread",
    }  # fmt: skip
    return LoggedResponse(about=about, advantage=advantage, updates=np.array([2]), pieces=pieces, arrays=arrays)


def token_log(step: int, *, count: int = 4, tokens: int = 12) -> TokenLog:
    """Of which the second response was clipped high and the fourth low, further with every step."""
    moves = [(0.001, 1.0), (0.02 + 0.01 * step, 1.0), (0.001, -1.0), (-0.021, -1.0)]
    rows = [response(n, log_ratio=moves[n % 4][0], advantage=moves[n % 4][1], tokens=tokens) for n in range(count)]
    return TokenLog(step=step, objective="Sspo", mean_entropy=0.5, responses=tuple(rows))


def row(step: int, steps: int) -> dict[str, float]:
    """Metrics of a step, of which there are as many as a real run has."""
    done = step / steps
    metrics = {
        "reward/mean": done, "reward/correctness_mean": done, "reward/informative_fraction": 1 - done / 2,
        "verify/correct_fraction": done, "ratio/clip_fraction": 0.02 + 0.01 * math.sin(step),
        "ratio/clip_fraction_high": 0.015, "ratio/clip_fraction_low": 0.005, "ratio/mean": 1.0,
        "policy/entropy": 1 - done, "policy/kl_old": 0.01, "optim/grad_norm": 0.5,
        "optim/skipped_updates": float(step == 3),
        "sampler/logprob_gap_mean": 1e-5, "response/length_mean": 40.0, "response/truncated_fraction": 0.0,
        "time/rollout_seconds": 2.0, "time/update_seconds": 3.0, "time/unix_seconds": 1.7e9 + 10 * step,
        "throughput/rollout_tokens_per_second": 1000.0 + step,
    }  # fmt: skip
    for number in (1, 2, 3, 4):
        metrics[f"update/{number}/clip_fraction"] = 0.01 * (number - 1)
    for name, value in (("grpo", 0.01), ("sspo", 0.0), ("gspo", 0.4)):
        metrics[f"counterfactual/{name}_clip_fraction"] = value
    for level in ("token", "subsentence", "response"):
        metrics[f"ratio/{level}_effective_sample_size"] = 0.99
        names = [f"below_{edge:g}" for edge in LOG_RATIO_EDGES] + ["above"]
        metrics |= {f"ratio_histogram/{level}_{name}": 1 / len(names) for name in names}
    return metrics


def make_run(path: pathlib.Path, *, steps: int = 12, tokens_every: int = 5, better: bool = True, responses: int = 4,
             response_tokens: int = 12) -> pathlib.Path:  # fmt: skip
    """The directory of a run that is complete."""
    for name in ("rollouts", "tokens", "evaluations", "checkpoints"):
        (path / name).mkdir(parents=True, exist_ok=True)
    record = {
        "experiment": "made_up", "commit": "0123456789abcdef", "devices": "1 x cpu", "provenance": {}, "python": "3.12",
        "model": {"num_layers": 2, "hidden_size": 32}, "config": {**small().resolved(), "steps": steps}, "packages": {},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(record))
    rows = [{"step": 0, "eval/held/accuracy": 0.25}] + [
        {"step": step, **row(step, steps)} for step in range(1, steps + 1)
    ]
    rows[-1]["eval/held/accuracy"] = 0.75
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    for step in range(1, steps + 1):
        texts = [
            {
                "id": f"p{step % 6}", "sample": sample, "problem": "1+1?", "gold": "2",
                "response": f"It is {sample}. </script>",
                "status": "correct" if sample * steps < 4 * step else "unparsed", "extracted": None, "reason": "none",
                "reward": 1.0, "tokens": 5 + sample, "finish": "stop",
            }
            for sample in range(4)
        ]  # fmt: skip
        (path / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
        if step % tokens_every == 0:
            log = token_log(step, count=responses, tokens=response_tokens)
            (path / "tokens" / f"step_{step:06d}.npz").write_bytes(log.to_bytes())
    for step, solved in ((0, 10), (steps, 30 if better else 12)):
        score = {"value": solved / 40, "low": solved / 40 - 0.1, "high": solved / 40 + 0.1}
        entry = {"held": {"problems": 40, "greedy": score, "length_mean": 30.0, "samples": 2, "avg": score}}
        (path / "evaluations" / f"step_{step:06d}.json").write_text(json.dumps(entry))
        verdicts = [
            {"set": "held", "id": f"h{n}", "sample": 0, "status": "correct" if n < solved else "wrong"}
            for n in range(40)
        ]
        verdicts += [{**each, "sample": sample} for each in verdicts for sample in range(2)]
        (path / "evaluations" / f"step_{step:06d}.jsonl").write_text(
            "".join(json.dumps(each) + "\n" for each in verdicts)
        )
    (path / "profile").mkdir(exist_ok=True)
    stages = [
        {"stage": "rollout", "seconds": 4.0, "flops": 2e12, "bytes": 3e11, "bound_seconds": 1.0, "bound_by": "memory",
         "share": 0.25},
        {"stage": "verify", "seconds": 0.5},
    ]  # fmt: skip
    record = {"steps": [3, 4], "device": "1 x made up", "compile_seconds": 0.0, "stages": stages}
    (path / "profile" / "roofline.json").write_text(json.dumps(record))
    (path / "summary.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("runs") / "two", better=False)
