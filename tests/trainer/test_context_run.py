"""Runs whose training rows are cut in time: rollouts, updates and checkpoints as on one device."""

import pathlib

import numpy as np
import pytest

from sspo_jax.config import WarmStartConfig
from sspo_jax.losses import Grpo
from sspo_jax.runs.metrics_file import read_metrics
from sspo_jax.sharding import MeshConfig, axes_of
from sspo_jax.trainer import train
from sspo_jax.trainer.setup import check
from tests.trainer.conftest import one_device, small

# With a gradient, whatever the rewards are.
CHANGES = {"warm_start": None, "loss": Grpo(entropy_coefficient=0.1), "optimizer__learning_rate": 0.01}
CUT = MeshConfig(fsdp=2, context=2, tensor=1, data=2)
COMPARED = ("reward/mean", "response/length_mean", "policy/entropy", "loss/total", "optim/grad_norm", "policy/kl_old")


@pytest.mark.slow
def test_a_run_is_that_of_one_device_and_goes_on(cache: pathlib.Path, tmp_path: pathlib.Path):
    with one_device():
        config = small(steps=3, mesh=MeshConfig(fsdp=1), run_dir=str(tmp_path / "one"), **CHANGES)
        assert train(config, experiment="one").is_complete
    for steps in (2, 3):  # the second time from its checkpoint
        config = small(steps=steps, mesh=CUT, run_dir=str(tmp_path / "cut"), **CHANGES)
        assert train(config, experiment="cut").is_complete
    one, cut = (
        {row["step"]: row for row in read_metrics(tmp_path / name / "metrics.jsonl")} for name in ("one", "cut")
    )
    compared = [name for name in COMPARED if name in one[1]]
    assert {"policy/entropy", "optim/grad_norm"} <= set(compared)
    for step in (1, 2, 3):
        ours, theirs = ([rows[step][name] for name in compared] for rows in (cut, one))
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5, err_msg=f"step {step}: {compared}")


def test_rows_that_do_not_go_around_are_refused():
    with pytest.raises(ValueError, match=r"a training row has 57 tokens; expected a multiple of --mesh.context = 2"):
        check(small(warm_start=None, mesh=CUT, update__row_tokens=57))
    warm_start = WarmStartConfig(rows=8, row_tokens=95)
    with pytest.raises(ValueError, match=r"--warm-start.row-tokens is 95; expected a multiple of --mesh.context = 2"):
        check(small(warm_start=warm_start, mesh=CUT))


def test_decoding_has_no_such_axis():
    chosen = check(small(warm_start=None, mesh=CUT))
    assert axes_of(chosen.mesh) == {"data": 2, "fsdp": 2, "context": 2}
    assert axes_of(chosen.decoding.mesh) == {"data": 8}
