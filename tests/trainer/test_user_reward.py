"""A failing reward function of one's own: the run saves, says why, and goes on when it is started again."""

import pathlib

import pytest

from sspo_jax.files import read_json_lines
from tests.trainer.conftest import SMALL, run_cli

pytestmark = pytest.mark.slow

_REWARD = """
import os

def brevity(response, gold):
    if os.path.exists({marker!r}):
        raise KeyError("no such answer")
    return 1.0 / (1 + len(response))
"""
_EXPERIMENT = """
import dataclasses
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.rewards import RewardConfig, UserReward

def config():
    reward = RewardConfig(user=(UserReward(function="my_reward:brevity", on_failure={on_failure!r}),), workers=1)
    return dataclasses.replace(load_experiment({small!r}), steps=2, reward=reward)
"""


def test_a_failing_function_costs_no_run(tmp_path: pathlib.Path):
    marker, experiment = tmp_path / "fail", tmp_path / "mine.py"
    (tmp_path / "my_reward.py").write_text(_REWARD.format(marker=str(marker)))
    experiment.write_text(_EXPERIMENT.format(on_failure="raise", small=str(SMALL)))
    marker.touch()
    failed = run_cli("train", "mine.py", "--run-dir", "run", cwd=tmp_path)
    assert failed.returncode == 1
    assert "sspo train: my_reward:brevity failed in its worker: KeyError" in failed.stderr
    assert "the same --run-dir, run, begins again" in failed.stderr
    assert "loop.py" not in failed.stderr
    marker.unlink()
    experiment.write_text(_EXPERIMENT.format(on_failure="exclude", small=str(SMALL)))
    again = run_cli("train", "mine.py", "--run-dir", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    rows = [row for _, row in read_json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[2]["reward/my_reward:brevity_mean"] > 0
