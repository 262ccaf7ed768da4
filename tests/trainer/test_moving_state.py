"""What a run carries from step to step beside its parameters: a reference policy that moves, an entropy bonus."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.config import ModelConfig
from sspo_jax.losses import Distill, Sspo
from sspo_jax.models.lora import LoraConfig
from sspo_jax.runs.checkpoint import Checkpoint, Checkpoints
from sspo_jax.trainer.step import moved
from tests.trainer import small_experiment
from tests.trainer.conftest import SMALL, run_cli
from tests.trainer.test_resume import metrics, same_as, start, wait_for_step

MOVING = (
    *("--loss.kl-coefficient", "0.1", "--model.reference-every", "2"),
    *("--loss.entropy-target", "20", "--loss.entropy-coefficient", "0.01"),  # never reached: the weight rises
)


def test_a_moved_reference_has_arrays_of_its_own():
    reference, params = {"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([1.0, 2.0])}
    taken = moved(reference, params, 1.0)
    params["w"].delete()  # as the next update does
    assert taken["w"].tolist() == [1.0, 2.0]
    average = moved({"w": jnp.array([0.0, 4.0])}, taken, 0.25)
    assert average["w"].tolist() == [0.25, 3.5]


def test_a_checkpoint_holds_them_and_one_without_is_as_it_was(tmp_path: pathlib.Path):
    arrays = {"params": {"w": jnp.arange(3.0)}, "optimizer": {"m": jnp.ones(3)}}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)
    plain, moving = Checkpoints(tmp_path / "plain", keep=None), Checkpoints(tmp_path / "moving", keep=None)
    plain.save(Checkpoint(params=arrays["params"], optimizer=arrays["optimizer"], step=1, data={}))
    moving.save(
        Checkpoint(
            params=arrays["params"],
            optimizer=arrays["optimizer"],
            step=1,
            data={},
            reference={"w": jnp.arange(3.0) / 7},
            entropy_coefficient=0.1 + 0.2,
        )
    )
    for each in (plain, moving):
        each.wait()
    restored = plain.restore(like)
    assert restored is not None
    assert (restored.reference, restored.entropy_coefficient) == (None, None)
    meta = json.loads(next((tmp_path / "plain").glob("1/meta/*")).read_text(encoding="utf-8"))
    assert set(meta) == {"step", "data", "digest"}
    restored = moving.restore(like | {"reference": like["params"]})
    assert restored is not None
    assert restored.entropy_coefficient == 0.1 + 0.2
    assert np.array_equal(restored.reference["w"], np.arange(3, dtype=np.float32) / 7)
    reader = Checkpoints(tmp_path / "moving", keep=None, is_reader=True)
    only = reader.restore({"params": like["params"]})
    assert only is not None
    assert np.array_equal(only.params["w"], np.arange(3.0))
    for each in (plain, moving, reader):
        each.close()


def test_settings_that_contradict_each_other_are_refused():
    plain = small_experiment.config()
    shape = plain.model.shape

    def refuse(match: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(plain, **changes).check()

    def model(**changes: object) -> ModelConfig:
        return dataclasses.replace(plain.model, shape=shape, **changes)

    penalised = Sspo(kl_coefficient=0.1)
    refuse("so nothing reads the reference policy", model=model(reference_every=1))
    refuse("the reference never moves", model=model(reference_mix=0.5), loss=penalised)
    adapters = model(reference_mix=0.5, reference_every=1, lora=LoraConfig(rank=2))
    refuse("the mean of two pairs of adapters", model=adapters, loss=penalised)
    refuse("Distill learns from a teacher, but --model.reference is not set", loss=Distill())
    sampler = dataclasses.replace(plain.update, old_logprobs="sampler")
    refuse("gives no entropies, but --loss.entropy-target is 0.2", update=sampler, loss=_without_entropies())


def _without_entropies() -> Sspo:
    return Sspo(adapt_entropy=False, entropy_target=0.2)


AVERAGED = """
import dataclasses

from sspo_jax.commands.experiments import load_experiment


def config():
    plain = load_experiment({small!r})
    return dataclasses.replace(plain, model=dataclasses.replace(plain.model, reference_mix={mix}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mix", [1.0, 0.25], ids=["replaced", "averaged"])
def test_a_killed_run_goes_on_with_the_same_reference_and_weight(
    cache: pathlib.Path, tmp_path: pathlib.Path, mix: float
):
    experiment = tmp_path / "moving.py"
    experiment.write_text(AVERAGED.format(mix=mix, small=str(SMALL)))
    whole = run_cli("train", str(experiment), "--run-dir", "whole", *MOVING, cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    process = start(tmp_path / "run", tmp_path, *MOVING, experiment=experiment)
    wait_for_step(tmp_path / "run", 3, process)  # the reference has moved, after step 2
    process.kill()
    process.communicate()
    again = run_cli("train", str(experiment), "--run-dir", "run", *MOVING, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after step" in again.stdout
    same_as(tmp_path / "run", tmp_path / "whole")
    rows = {row["step"]: row for row in metrics(tmp_path / "run")}
    weights = [rows[step]["loss/entropy_coefficient"] for step in (1, 2, 3, 4)]
    assert weights == pytest.approx([0.01, 0.015, 0.02, 0.025])
    assert rows[3]["loss/kl"] > 0
    if mix == 1.0:  # two updates a step: at the first of step 3 the reference is the policy itself
        assert rows[3]["loss/kl"] < rows[2]["loss/kl"]
        assert rows[3]["loss/kl"] < rows[4]["loss/kl"]
