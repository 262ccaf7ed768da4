"""An optimizer of one's own in an experiment file, with the real program."""

import json
import pathlib

import pytest

from sspo_jax.files import read_json_lines
from tests.trainer.conftest import SMALL, run_cli

pytestmark = pytest.mark.slow

EXPERIMENT = '''
import dataclasses
import optax
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import OptimizerConfig

@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(OptimizerConfig):
    """Muon for matrices, Adam for the rest."""

    beta: float = 0.95
    """Momentum."""

    def transformation(self, learning_rate):
        return optax.contrib.muon(learning_rate, beta=self.beta)

def config():
    return dataclasses.replace(load_experiment({small!r}), optimizer=Muon(learning_rate=1e-3))
'''


def test_muon_trains_resumes_and_exports(tmp_path: pathlib.Path):
    (tmp_path / "muon.py").write_text(EXPERIMENT.format(small=str(SMALL)))
    command = ("train", "muon.py", "--optimizer.beta", "0.9", "--log.quiet", "--run-dir")
    for run, steps in (("run", "2"), ("run", "3"), ("whole", "3")):
        done = run_cli(*command, run, "--steps", steps, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    metrics = [[row for _, row in read_json_lines(tmp_path / run / "metrics.jsonl")] for run in ("run", "whole")]
    for resumed, whole in zip(*metrics, strict=True):
        for name in ("reward/correctness_mean", "loss/policy", "optim/grad_norm", "optim/learning_rate"):
            assert resumed.get(name) == whole.get(name)
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["optimizer"]
    assert (recorded["optimizer"], recorded["beta"]) == ("Muon", 0.9)
    done = run_cli("export", "run", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = run_cli("train", str(SMALL), "--run-dir", "run", cwd=tmp_path)
    assert refused.returncode == 1
    assert "optimizer.optimizer: 'Muon' there, None here" in refused.stderr
