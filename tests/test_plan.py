"""Planning for TPUs: the figures by hand, and one real compilation where libtpu is installed."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest

from sspo_jax import plan
from sspo_jax.models import configs
from sspo_jax.train import load_experiment

CHIP = plan.CHIPS["v5e"]


def program(name: str, gib: float, refusal: str = "") -> plan.Program:
    size = int(gib * plan.GIB)
    return plan.Program(name=name, arguments=size, temporaries=0, resident=0, seconds=0.0, refusal=refusal)


def test_model_flops_by_hand():
    """One layer, width 4, 2 query heads and 1 key head of 2, MLP 8, vocabulary 10, context 6.

    Weights: query and output 4*4 each, key and value 4*2 each: 48; MLP 3*4*8 = 96; unembedding 40. 2 * 184 = 368.
    Attention: 2 products of 2 FLOPs, 2 heads of 2, over 6 / 2 tokens: 2 * 2 * 4 * 3 = 48.
    """
    model = configs.QwenConfig(
        vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2
    )
    assert plan.model_flops(model, 6) == 368 + 48
    # Two of four experts of width 3, and the router: 2 * (48 + 2 * 36 + 16 + 40) + 48.
    experts = dataclasses.replace(model, num_experts=4, experts_per_token=2, expert_size=3)
    assert plan.model_flops(experts, 6) == 2 * (48 + 72 + 16 + 40) + 48


def test_verdict_names_what_is_free_or_missing():
    config = load_experiment("qwen25_math_1p5b_sspo")
    assert plan.verdict([program("update", 12.0), program("decode", 3.0)], config, CHIP, shards=4) == [
        "FITS: update leaves 3.75 GiB a chip free"
    ]
    (line,) = plan.verdict([program("update", 17.0), program("decode", 3.0)], config, CHIP, shards=4)
    assert line.startswith("DOES NOT FIT: update is over by 1.25 GiB a chip; try --update.micro-rows 4,")
    (line,) = plan.verdict([program("update", 12.0), program("decode", 17.0)], config, CHIP, shards=4)
    assert "decode is over by 1.25 GiB a chip; try --rollout.slots 128" in line
    (line,) = plan.verdict([program("update", 0.0, "exceeds"), program("decode", 15.0)], config, CHIP, shards=8)
    assert line.startswith("DOES NOT FIT: update is over; try more shards")


def test_known_names_need_no_files():
    config = load_experiment("qwen25_math_1p5b_sspo")
    shape = plan.model_shape(config)
    assert (shape.num_layers, shape.remat, shape.dtype) == (28, "full", "bfloat16")
    unknown = dataclasses.replace(config, model=dataclasses.replace(config.model, path="Qwen/Unknown"))
    with pytest.raises(ValueError, match=r"'Qwen/Unknown' is no directory.*Qwen/Qwen2.5-Math-1.5B"):
        plan.model_shape(unknown)


def test_unknown_topology():
    with pytest.raises(ValueError, match=r"topology 'v9:2x4': want one of v3, v4"):
        plan.chip_of("v9:2x4")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, "-m", "sspo_jax.plan", *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_it_says_what_to_install():
    result = run("arithmetic_tiny")
    assert result.returncode != 0
    assert 'pip install "jax[tpu]"' in result.stderr


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs jax[tpu]")


@pytest.mark.slow
@needs_libtpu
def test_tiny_run_on_eight_chips():
    result = run("arithmetic_tiny", "--topology", "v5e:2x4", "--update.micro-rows", "8", "--mesh.tensor", "2")
    assert result.returncode == 0, result.stderr
    for name in ("optimizer", "decode", "update"):
        assert f"\n  {name}" in result.stdout
    assert "fsdp 4, tensor 2" in result.stdout
    assert "FITS" in result.stdout


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit_is_refused():
    result = run("qwen25_math_7b_sspo", "--topology", "v5e:1x1", "--update.micro-rows", "8")
    assert result.returncode == 3, result.stderr
    assert "DOES NOT FIT" in result.stdout
