"""`sspo evaluate` on checkpoints: the same command gives the same samples, also when it was interrupted between."""

import dataclasses

import jax
import pytest

from sspo_jax.commands.evaluate import EvaluateConfig, evaluate, evaluate_command, main
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.evaluation.results import SAMPLES, read_results, read_samples
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import init_qwen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two small checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("models")
    shape = QwenConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        max_positions=256,
    )  # fmt: skip
    for seed in (0, 1):
        params = init_qwen(shape, jax.random.key(seed))
        save_qwen(folder / f"m{seed}", params, shape, dtype="float32", tokenizer=load_tokenizer("tiny"))
    return folder


@pytest.fixture
def config(checkpoints, tmp_path):
    return EvaluateConfig(
        model=str(checkpoints / "m0"), data="arithmetic[:10]", preset="avg@k", samples=2, max_new_tokens=6,
        prompt="chat", dtype="float32", problems_at_once=4, slots=4, workers=1, out=str(tmp_path / "whole"),
    )  # fmt: skip


def test_an_interrupted_evaluation_resumes_to_the_same_samples(config, tmp_path):
    _, whole = evaluate(config)
    rows = read_samples(whole)
    assert [(row.id, row.sample) for row in rows] == [
        (f"arithmetic-held_out-0-{index}", sample) for index in range(10) for sample in range(2)
    ]
    assert len({row.response for row in rows}) > 10  # random weights say many things
    lines = (whole / SAMPLES).read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn"
    torn.mkdir()
    # one block of 4 x 2 samples, some of the next one, and half a line
    (torn / SAMPLES).write_bytes(b"".join(lines[: 1 + 8 + 3]) + lines[12][:50])
    again, _ = evaluate(dataclasses.replace(config, out=str(torn)))
    assert (torn / SAMPLES).read_bytes() == (whole / SAMPLES).read_bytes()
    assert again.sets[0].metrics == read_results(whole).sets[0].metrics


def test_slots_change_nothing_and_the_seed_does(config, tmp_path):
    _, one = evaluate(config)
    _, two = evaluate(dataclasses.replace(config, slots=8, out=str(tmp_path / "slots")))
    assert [row.response for row in read_samples(one)] == [row.response for row in read_samples(two)]
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        evaluate(dataclasses.replace(config, seed=1))
    _, other = evaluate(dataclasses.replace(config, seed=1, out=str(tmp_path / "seed")))
    assert [row.response for row in read_samples(one)] != [row.response for row in read_samples(other)]


def test_two_checkpoints_from_the_command_line(config, checkpoints, tmp_path, capsys):
    for name in ("m0", "m1"):
        arguments = ["--model", str(checkpoints / name), "--data", "arithmetic[:10]", "--max-new-tokens", "6"]
        arguments += ["--prompt", "chat", "--dtype", "float32", "--workers", "1", "--out", str(tmp_path / name)]
        assert main(arguments) == 0
    assert "paper-greedy (max_new_tokens=6)" in capsys.readouterr().out
    assert main(["--compare", str(tmp_path / "m0"), str(tmp_path / "m1")]) == 0
    assert "| arithmetic_held_out |" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_first(config, checkpoints):
    with pytest.raises(ValueError, match="leave no room for a prompt in the model's context of 256"):
        evaluate_command(dataclasses.replace(config, max_new_tokens=256))
    with pytest.raises(ValueError, match=r"'arithmetic-held_out-0-0' has .* tokens, expected at most 16"):
        evaluate_command(dataclasses.replace(config, max_new_tokens=240))
