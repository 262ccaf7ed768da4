"""Hours, cost and disk of a run, against figures worked out by hand."""

import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.commands.main import main
from sspo_jax.models.configs import QWEN25_1P5B
from sspo_jax.models.lora import LoraConfig
from sspo_jax.planning.cost import GPUS, REACHED, cost, disk, gpus_of, step_floor
from sspo_jax.runs.next_commands import next_commands

CONFIG = load_experiment("qwen25_math_1p5b_sspo")
MODEL = QWEN25_1P5B.computed(dtype="bfloat16", remat="full")
FLOOR = step_floor(MODEL, CONFIG.rollout, GPUS["h100"], 8, epochs=CONFIG.update.epochs, has_reference=False, lora=None)


def test_the_floor_of_a_step():
    decoding, training = FLOOR
    # 1.54e9 weights of 2 bytes (tied), and 384 slots x 4,024 columns x 28 layers x 2 x 2 heads x 128 x 2 bytes / 2;
    # three rounds of 384 for 1,024 samples, 3,000 steps each, 8 x 3.35 TB/s.
    cache = 384 * 4024 * 28 * 2 * 2 * 128 * 2
    by_hand = 3 * 3000 * (2 * MODEL.num_parameters + cache / 2) / (8 * 3.35e12)
    assert decoding == pytest.approx(by_hand, rel=1e-6)
    # Forward once to sample and once to score, three times' worth to update: 5 x 2 x parameters and attention.
    tokens = 1024 * 4024
    assert training == pytest.approx(5 * 2 * MODEL.num_parameters * tokens / (8 * 989e12), rel=0.25)


def test_hours_and_price_are_in_proportion():
    hours = 500 * sum(FLOOR) / REACHED / 3600
    _, line = cost(FLOOR, steps=500, samples=1024, chips=8, price=2.0)
    assert f"500 steps: {hours:.3g} hours, {8 * hours:,.3g} chip hours, {16 * hours:,.0f} at 2 per chip hour" in line
    assert "per chip hour" not in cost(FLOOR, steps=500, samples=1024, chips=8)[1]


def test_disk():
    line = disk(MODEL, CONFIG.checkpoint, lora=None, keeps_best=True, response_tokens=0)
    assert f"a checkpoint {12 * MODEL.num_parameters / 1e9:.3g} GB, 3 of them at once" in line
    assert f"an export {2 * MODEL.num_parameters / 1e9:.3g} GB" in line
    lora = disk(MODEL, CONFIG.checkpoint, lora=LoraConfig(rank=16), keeps_best=False, response_tokens=1000)
    assert "a checkpoint 222 MB" in lora  # 18.5 M parameters
    assert "the best policy 0 B; sampled texts up to 4 kB" in lora


def test_gpus_are_planned_without_a_compiler(capsys):
    arguments = ["plan", "qwen25_math_1p5b_sspo", "--topology", "h100:8", "--price-per-chip-hour", "2.5"]
    assert main([*arguments, "--steps", "10"]) == 0
    said = capsys.readouterr().out
    assert "8 GPUs: nothing is compiled for them" in said
    assert "10 steps:" in said
    assert "at 2.5 per chip hour" in said
    assert said.splitlines()[-1] == next_commands("train qwen25_math_1p5b_sspo --steps 10")
    assert gpus_of("v5e:2x4") is None
    assert main(["plan", "hello", "--topology", "h100"]) == 1
    assert "expected a number of GPUs after the colon, as in h100:8" in capsys.readouterr().err
