"""Adapters over weights in int8, and rollouts from weights in int8."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.losses import Sspo
from sspo_jax.losses.correction import RolloutCorrection
from sspo_jax.models import apply_qwen, load_qwen
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.int8 import dense, is_int8, quantize, sharded
from sspo_jax.models.lora import LoraConfig, with_lora
from sspo_jax.models.qwen import Params
from sspo_jax.models.trainable import Trainable
from sspo_jax.runs.base_weights import load_frozen
from sspo_jax.runs.metrics_file import read_metrics
from sspo_jax.runs.policy import read_policy, read_trained
from sspo_jax.sharding import MeshConfig, bytes_per_device, make_mesh
from sspo_jax.trainer import train
from sspo_jax.trainer.setup import check
from tests.trainer.conftest import one_device, small
from tests.trainer.test_lora_run import LORA, gradients, programs, weights

INT8 = dataclasses.replace(LORA, frozen="int8")


def rounded(base: Params) -> Params:
    """The base with its matrices in int8, where they lay."""
    found = {}
    for name, kernel in base["blocks"].items():
        shapes = jax.eval_shape(lambda x, name=name: quantize(name, x, lead=1), kernel)
        placed = sharded(shapes, kernel.sharding) if is_int8(shapes) else kernel.sharding
        found[name] = jax.jit(lambda x, name=name: quantize(name, x, lead=1), out_shardings=placed)(kernel)
    return base | {"blocks": found}


@pytest.mark.parametrize(
    "mesh_config",
    [
        pytest.param(MeshConfig(fsdp=1), id="one-device"),
        pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), id="eight-devices", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_over_the_weights_they_stand_for(mesh_config: MeshConfig):
    size = mesh_config.data * mesh_config.fsdp * mesh_config.tensor
    mesh = make_mesh(mesh_config, jax.devices()[:size])
    own, plain = programs(Sspo.paper_like(), INT8, mesh), programs(Sspo.paper_like(), LORA, mesh)
    base, adapters = weights(own, mesh)
    base = rounded(base)
    assert jax.tree.structure(base) == jax.tree.structure(own.trainable.abstract_base(mesh))
    ours = gradients(own, adapters, base)
    theirs = gradients(plain, adapters, base | {"blocks": dense(base["blocks"])})
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)) > 1e-3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), ours, theirs)


def test_a_checkpoint_is_read_as_it_is_planned(tmp_path: pathlib.Path):
    model = check(small(warm_start=None)).model
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    base, _ = weights(programs(Sspo.paper_like(), LORA, mesh), mesh)
    model = dataclasses.replace(model, num_kv_heads=2)
    save_qwen(tmp_path / "base", base, model, dtype="float32", tokenizer=None)
    found = load_frozen(tmp_path / "base", model, mesh, INT8)
    planned, full = (Trainable(model, lora).abstract_base(mesh) for lora in (INT8, LORA))
    assert planned is not None
    assert full is not None
    described = [
        [(x.shape, x.dtype, x.sharding.spec) for x in jax.tree.leaves(tree)] for tree in (found, planned)
    ]  # fmt: skip
    assert described[0] == described[1]
    matrices = sum(4 * x.size for name, x in full["blocks"].items() if is_int8(planned["blocks"][name]))
    assert bytes_per_device(full) - bytes_per_device(planned) > 0.7 * matrices
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(rounded(base)))


@pytest.mark.slow
def test_a_run_samples_from_int8_and_exports_what_it_trained(cache: pathlib.Path, tmp_path: pathlib.Path):
    loss = dataclasses.replace(
        Sspo.paper_like(), entropy_coefficient=0.1, correction=RolloutCorrection(mode="truncate")
    )  # a gradient, whatever the rewards are
    config = small(
        steps=2, warm_start=None, mesh__fsdp=1, run_dir=str(tmp_path / "run"), loss=loss, model__lora=INT8,
        rollout__weights="int8", optimizer__learning_rate=0.02,
    )  # fmt: skip
    with one_device():
        assert train(config, experiment="int8").is_complete
        rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["step"]]
        merged, model, _ = read_policy(tmp_path / "run")
        adapters = jax.device_get(read_trained(tmp_path / "run")[0])
    # Adapters are zero in the first step, so sampler and policy have the same int8 weights; then they part.
    assert rows[0]["sampler/logprob_gap_max"] < 1e-4
    assert 1e-5 < rows[1]["sampler/logprob_gap_mean"] < 0.05
    tokens, run = jnp.arange(8, 24)[None], jax.jit(apply_qwen, static_argnums=1)
    base, _ = load_qwen(tmp_path / "run" / "base", mesh=make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
    trained = run(with_lora(jax.device_get(rounded(base)), adapters, INT8), model, tokens)
    np.testing.assert_allclose(run(jax.device_get(merged), model, tokens), trained, rtol=0, atol=2e-5)
    base = jax.device_get(base)
    assert np.abs(run(with_lora(base, adapters, LORA), model, tokens) - trained).max() > 1e-4


def test_a_server_has_weights_of_its_own_form():
    from sspo_jax.config import ServerConfig

    config = small(rollout__weights="int8", rollout__server=ServerConfig(url="http://localhost:1"))
    with pytest.raises(ValueError, match=r"--rollout.weights is int8, but --rollout.server.url samples elsewhere"):
        config.check()


def test_a_recorded_run_without_the_option_keeps_its_weights():
    from sspo_jax.runs.base_weights import lora_of

    record = {"config": {"model": {"lora": {"rank": 3, "alpha": 6.0, "targets": list(LORA.targets)}}}}
    assert lora_of(record) == LORA == LoraConfig(rank=3, alpha=6.0)
