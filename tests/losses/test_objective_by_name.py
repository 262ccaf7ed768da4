"""`--loss NAME`, and an objective of one's own in an experiment file, with the real program."""

import json
import pathlib

import pytest

from sspo_jax import losses
from sspo_jax.commands.experiments import choose_objective, objectives
from tests.trainer.conftest import run_cli

ROOT = pathlib.Path(__file__).parents[2]

EXPERIMENT = '''
"""An objective of one's own: REINFORCE, weighted by nothing."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from sspo_jax.losses import Objective
from sspo_jax.losses.aggregation import Reduction
from sspo_jax.losses.surrogate import Clipped, finish
from tests.trainer import small_experiment


def reinforce_loss(
    logprobs, old_logprobs, advantages, mask, *, strength, aggregation, norm_length, segment_ids, denominator, weights
):
    objective = strength * jnp.where(mask, advantages, 0) * jnp.where(mask, logprobs, 0)
    reduction = Reduction(aggregation, norm_length, segment_ids, denominator)
    one = jnp.ones_like(objective)
    return finish(objective, one, Clipped.nowhere(mask), logprobs, old_logprobs, mask, weights, reduction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforce(Objective):
    """REINFORCE."""

    function = staticmethod(reinforce_loss)

    strength: float = 1.0
    """Factor of the gradient."""


def config():
    return dataclasses.replace(
        small_experiment.config(), steps=1, loss=Reinforce(), warm_start=None,
        evaluation=dataclasses.replace(small_experiment.config().evaluation, data=()),
    )
'''


def test_names():
    found = objectives()
    published = {"grpo", "dr_grpo", "dapo", "gspo", "gmpo", "cispo", "sapo", "sspo", "sspo_calibrated"}
    published |= {"dppo", "dppo_kl", "vespo", "gspo_luspo", "sspo_lpo", "m2po", "distill"}
    assert set(found) == published | {"sspo_paper_like"}
    assert found["dr_grpo"]() == losses.Grpo.dr_grpo()
    assert found["sspo_calibrated"]() == losses.Sspo.calibrated()
    assert found["sspo"]() == losses.Sspo()


def test_the_name_replaces_the_objective_and_leaves_the_other_options():
    own = losses.Sspo()
    chosen, others = choose_objective(own, ["--steps", "3", "--loss", "gspo", "--loss.clip-high", "4e-4"])
    assert chosen == losses.Gspo()
    assert others == ["--steps", "3", "--loss.clip-high", "4e-4"]
    assert choose_objective(own, ["--loss=dapo"])[0] == losses.Grpo.dapo()
    assert choose_objective(own, ["--loss.clip-low", "0.1"]) == (own, ["--loss.clip-low", "0.1"])
    for wrong in (["--loss", "ppo"], ["--loss"], ["--loss="]):
        with pytest.raises(ValueError, match=r"expected one of: .*dr_grpo.*sspo_calibrated"):
            choose_objective(own, wrong)


@pytest.mark.slow
def test_an_objective_in_the_experiment_file(tmp_path):
    file = tmp_path / "reinforce.py"
    file.write_text(EXPERIMENT, encoding="utf-8")
    path = {"PYTHONPATH": str(ROOT), "SSPO_CACHE_DIR": str(tmp_path / "cache")}
    shown = run_cli("train", str(file), "--help", cwd=tmp_path, **path)
    assert shown.returncode == 0, shown.stderr
    assert "--loss.strength" in shown.stdout
    run = tmp_path / "run"
    trained = run_cli("train", str(file), "--loss.strength", "0.5", "--run-dir", str(run), cwd=tmp_path, **path)
    assert trained.returncode == 0, trained.stderr
    record = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]["loss"]
    assert (record["objective"], record["strength"]) == ("Reinforce", 0.5)
    assert "loss/policy" in json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def test_a_name_on_the_command_line(tmp_path):
    experiment = str(ROOT / "tests" / "trainer" / "small_experiment.py")
    path = {"PYTHONPATH": str(ROOT), "SSPO_CACHE_DIR": str(tmp_path / "cache")}
    shown = run_cli("train", experiment, "--loss", "gmpo", "--loss.clip-high", "0.3", "--help", cwd=tmp_path, **path)
    assert shown.returncode == 0, shown.stderr
    assert "Bound of the log-ratio above 0" in shown.stdout
    refused = run_cli("train", experiment, "--loss", "ppo", cwd=tmp_path, **path)
    assert refused.returncode == 1
    assert "'ppo', expected one of: cispo" in refused.stderr
