"""A run of a model whose layers differ, with the real program: warm start, steps, resumption, export."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.files import read_json_lines
from sspo_jax.models import apply_qwen
from sspo_jax.runs.policy import read_policy
from tests.trainer.conftest import SMALL, run_cli

pytestmark = pytest.mark.slow

EXPERIMENT = """
import dataclasses
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.rewards import RewardConfig, UserReward

def config():
    small = load_experiment({small!r})
    shape = dataclasses.replace(small.model.shape, attention_bias=False, qk_norm=True, **{kinds})
    model = dataclasses.replace(small.model, shape=shape, remat="full")
    reward = RewardConfig(user=(UserReward(function="brevity:reward"),), workers=1)
    return dataclasses.replace(small, model=model, reward=reward, steps=2)
"""
KINDS = {
    "delta": {"layer_types": ("linear_attention", "full_attention"), "rotary_fraction": 0.5, "delta_key_heads": 2,
              "delta_value_heads": 4, "delta_key_dim": 8, "delta_value_dim": 8},
    "window": {"sliding_window": 8, "sliding_layers": (1,)},
    "sparse": {"num_layers": 3, "num_experts": 4, "experts_per_token": 2, "expert_size": 16, "dense_layers": (1,),
               "sliding_window": 8, "sliding_layers": (0, 1, 2)},
}  # fmt: skip
REWARD = """
def reward(response, gold):
    return 1.0 / (1 + len(response))
"""


@pytest.mark.parametrize("kinds", KINDS)
def test_trains_resumes_and_exports(kinds: str, tmp_path: pathlib.Path, cache: pathlib.Path):
    import torch
    import transformers

    (tmp_path / "brevity.py").write_text(REWARD)
    (tmp_path / "kinds.py").write_text(EXPERIMENT.format(small=str(SMALL), kinds=KINDS[kinds]))
    for run, steps in (("run", "1"), ("run", "2"), ("whole", "2")):
        replay = ("--update.replay-routing",) if kinds == "sparse" else ()
        options = ("--log.quiet", "--run-dir", run, "--steps", steps, *replay)
        done = run_cli("train", "kinds.py", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    resumed, whole = ([row for _, row in read_json_lines(tmp_path / run / "metrics.jsonl")] for run in ("run", "whole"))
    assert [row["step"] for row in whole if "loss/policy" in row] == [1, 2]
    for ours, theirs in zip(resumed, whole, strict=True):
        for name in ("reward/mean", "loss/policy", "optim/grad_norm", "sampler/logprob_gap_max"):
            assert ours.get(name) == theirs.get(name)
    for row in whole:  # the sampler's states and the packed rows of training are of one model
        if "loss/policy" in row:
            assert row["optim/grad_norm"] > 0
            assert row["sampler/logprob_gap_max"] < 1e-4
    done = run_cli("export", "run", "out", "--dtype", "float32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    params, config, _ = read_policy(tmp_path / "run")
    tokens = np.arange(5, 35).reshape(2, 15)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(apply_qwen(params, config, jnp.asarray(tokens)), theirs, rtol=0, atol=2e-5)
