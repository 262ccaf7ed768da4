"""A run is evaluated as it is, by the real program, and starts again over what a kill or a response left in it."""

import json
import os
import pathlib

import pytest

from sspo_jax.evaluation.results import read_results
from sspo_jax.files import read_json, read_json_lines, write_json_lines
from tests.trainer.conftest import SMALL, run_cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two steps of the small experiment, with a term of the reward besides correctness."""
    folder = tmp_path_factory.mktemp("evaluated")
    done = run_cli("train", str(SMALL), "--run-dir", "run", *_OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


_OPTIONS = ("--steps", "2", "--reward.format.weight", "0.25", "--reward.overlong.weight", "0.5")


def test_each_term_is_a_metric(run: pathlib.Path):
    rows = [row for _, row in read_json_lines(run / "metrics.jsonl")]
    for row in rows[1:]:
        names = ("correctness_mean", "format_mean", "overlong_mean", "excluded_fraction")
        assert all(isinstance(row[f"reward/{name}"], float) for name in names)
        mean = row["reward/correctness_mean"] + 0.25 * row["reward/format_mean"] + 0.5 * row["reward/overlong_mean"]
        assert row["reward/mean"] == pytest.approx(mean)
        assert row["verify/seconds"] > 0
    for _, row in read_json_lines(run / "rollouts" / "step_000002.jsonl"):
        assert set(row["terms"]) == {"correctness", "format", "overlong"}


def test_no_option_is_needed(run: pathlib.Path):
    done = run_cli("evaluate", "--model", "run", "--workers", "1", "--out", "scores", cwd=run.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_results(run.parent / "scores")
    assert found.protocol["max_new_tokens"] == 16
    assert found.protocol["prompt"] == "chat"
    assert found.protocol["dtype"] == "float32"
    assert found.protocol["preset"] == "paper-greedy (max_new_tokens=16)"
    (scores,) = found.sets
    of_run = read_json(run / "evaluations" / "step_000002.json")["arithmetic_held_out"]
    assert (scores.name, scores.problems) == ("arithmetic_held_out", of_run["problems"])
    assert scores.accuracy.value == of_run["greedy"]["value"]
    other = run_cli(
        *("evaluate", "--model", "run", "--workers", "1", "--out", "other", "--data", "arithmetic[:3]"), cwd=run.parent
    )
    assert other.returncode == 0, other.stdout + other.stderr
    assert read_results(run.parent / "other").sets[0].problems == 3


def test_a_finished_run_starts_again_over_left_over_parts_and_odd_characters(run: pathlib.Path):
    for file in (run / "evaluations").glob("*.jsonl"):
        rows = [row | {"response": "odd\u2028\u2029\u0085" + row["response"]} for _, row in read_json_lines(file)]
        write_json_lines(file, rows)
    for name in ("evaluations/step_000002.json.part", "rollouts/step_000009.jsonl.part"):
        (run / name).touch()
    os.remove(run / "summary.json")
    again = run_cli("train", str(SMALL), "--run-dir", "run", *_OPTIONS, cwd=run.parent)
    assert again.returncode == 0, again.stdout + again.stderr
    examples = json.loads((run / "summary.json").read_text(encoding="utf-8"))["examples"]
    assert examples[0]["after"]["response"].startswith("odd\u2028\u2029\u0085")
