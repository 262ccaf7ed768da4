"""A run that is smaller than its experiment says so where its scores stand."""

import dataclasses

from rich.console import Console

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.commands.options import parse
from sspo_jax.commands.train import shortened
from sspo_jax.config import TrainConfig
from sspo_jax.runs.display import Display
from sspo_jax.runs.summary import Summary, show_summary


def of(experiment: str, *options: str) -> list[str]:
    default = load_experiment(experiment)
    return shortened(default.sizes, parse(TrainConfig, options, prog="train", default=default).sizes)


def test_what_is_less_than_in_the_experiment():
    assert of("hello") == []
    assert of("arithmetic_tiny", "--steps", "40", "--optimizer.learning-rate", "1e-5") == []
    options = ("--steps", "5", "--evaluation.problems", "16", "--evaluation.samples", "2", "--rollout.prompts", "8")
    assert of("arithmetic_tiny", *options) == [
        "--steps 5 of 20",
        "--rollout.prompts 8 of 32",
        "--evaluation.problems 16 of all",
        "--evaluation.samples 2 of 8",
    ]


def test_the_final_table_says_it(tmp_path, capsys):
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    summary = Summary(
        experiment="hello", steps=5, is_complete=True, before={}, after={"a": {"greedy": score, "length_mean": 3.0}},
        best=None, metrics={}, seconds={}, rates={}, programs=0, compile_seconds=0.0, peak_memory_bytes=0, examples=[],
    )  # fmt: skip
    display = Display(quiet=True)
    display.console = Console(width=200)
    show_summary(display, summary, tmp_path)
    assert "SHORTENED" not in capsys.readouterr().out.upper()
    show_summary(display, dataclasses.replace(summary, shortened=("--steps 5 of 20",)), tmp_path)
    assert "hello: 5 steps (SHORTENED: --steps 5 of 20)" in capsys.readouterr().out


def test_hello_is_a_smaller_default_experiment():
    hello, whole = load_experiment("hello"), load_experiment("arithmetic_tiny")
    assert (hello.model, hello.data, hello.warm_start, hello.loss) == (
        whole.model,
        whole.data,
        whole.warm_start,
        whole.loss,
    )
    assert hello.steps < whole.steps
