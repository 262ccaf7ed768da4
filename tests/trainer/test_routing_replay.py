"""Routing replay: updates send tokens through the experts recorded when their old log-probs were computed."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.config import OptimizerConfig, TrainConfig
from sspo_jax.losses import Grpo
from sspo_jax.models import init_qwen
from sspo_jax.models.experts import expert_loads, mixture_of_experts, route
from sspo_jax.models.qwen import Params, hidden_states
from sspo_jax.runs.metrics_file import combine, host_values, read_metrics
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.trainer import train
from sspo_jax.trainer.setup import check
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.types import Loads
from tests.models.test_meshes import EXPERTS
from tests.trainer.conftest import one_device, small
from tests.trainer.test_lora_run import rows

SIZES = {"num_experts": 8, "experts_per_token": 2, "expert_size": 16, "num_heads": 4, "num_kv_heads": 2}


def with_experts(**changes: object) -> TrainConfig:
    config = small(**changes)
    assert config.model.shape is not None
    shape = dataclasses.replace(config.model.shape, init_scale=0.2, **SIZES)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, shape=shape))


@functools.cache
def programs(mesh_config: MeshConfig, *, replay: bool) -> TrainPrograms:
    inputs = check(with_experts(warm_start=None))
    size = mesh_config.fsdp * mesh_config.expert
    return TrainPrograms(
        config=inputs.model,
        objective=Grpo(),
        optimizer_config=OptimizerConfig(),
        segmenter=inputs.segmenter,
        mesh=make_mesh(mesh_config, jax.devices()[:size]),
        temperature=1.0,
        replay_routing=replay,
    )


ONE = MeshConfig(fsdp=1)


def moved(params: Params) -> Params:
    """Parameters whose routers rank otherwise."""
    noise = jax.random.normal(jax.random.key(5), params["blocks"]["router"].shape)
    return params | {"blocks": params["blocks"] | {"router": params["blocks"]["router"] + 0.2 * noise}}


def two_updates(mesh_config: MeshConfig, *, replay: bool) -> tuple[dict[str, float], dict[str, float], dict]:
    """Metrics of an update with the weights that scored and with others, and what the scoring pass recorded."""
    own = programs(mesh_config, replay=replay)
    params = init_qwen(own.config, jax.random.key(0), mesh=own.mesh)
    with jax.set_mesh(own.mesh):
        batch = own.place(rows())
        _, scores, _ = own.micro_batch(params, own.zero_gradients(), batch, False)
        batch = dataclasses.replace(
            batch, old_logprobs=scores.logprobs, entropies=scores.entropies, experts=scores.experts
        )
        batch = dataclasses.replace(batch, denominator=own.denominator([batch]))
        found = []
        for weights in (params, jax.jit(moved, out_shardings=own.trainable.shardings(own.mesh))(params)):
            gradients, later, metrics = own.micro_batch(weights, own.zero_gradients(), batch, True)
            found.append((host_values(combine([jax.device_get(metrics)])), jax.device_get((gradients, later))))
    (same, _), (other, (gradients, later)) = found
    experts = None if scores.experts is None else np.asarray(scores.experts)
    return same, other, {"experts": experts, "gradients": gradients, "later": later}


def test_with_the_weights_that_scored_nothing_changes():
    same, other, found = two_updates(ONE, replay=True)
    assert same["ratio/max"] == same["ratio/mean"] == 1.0
    assert same["experts/changed_fraction"] == 0.0
    assert other["experts/changed_fraction"] > 0.1
    assert found["experts"].shape == (2, 8, 24, 2)
    assert found["experts"].min() >= 0
    # Loads are of the recorded experts, so they stay as they were.
    assert same["experts/load_max"] == other["experts/load_max"]
    counts = np.stack([np.bincount(layer.ravel(), minlength=8) for layer in found["experts"].astype(int)])
    relative = counts / counts.mean(axis=1, keepdims=True)
    assert same["experts/load_max"] == pytest.approx(relative.max())
    assert same["experts/load_std"] == pytest.approx(relative.std(axis=1).mean())
    assert same["experts/load_idle_fraction"] == np.mean(counts == 0)


def test_updates_go_through_the_recorded_experts():
    _, replayed, found = two_updates(ONE, replay=True)
    _, routed, without = two_updates(ONE, replay=False)
    assert without["experts"] is None
    assert "experts/changed_fraction" not in routed
    assert np.abs(found["later"].logprobs - without["later"].logprobs).max() > 1e-3
    # The log-probs are those of a pass that is given the experts, and the changes are counted as one would by hand.
    own = programs(ONE, replay=True)
    params = moved(init_qwen(own.config, jax.random.key(0), mesh=own.mesh))
    batch = rows()
    with jax.set_mesh(own.mesh):
        _, _, router = hidden_states(
            params,
            own.config,
            jnp.asarray(batch.tokens),
            positions=jnp.asarray(batch.positions),
            segment_ids=jnp.asarray(batch.segment_ids),
            experts=jnp.asarray(found["experts"]),
        )
    router = np.asarray(router)
    differs = [
        len(set(recorded) - set(ranked)) for recorded, ranked in zip(
            found["experts"].reshape(-1, 2).tolist(), router.reshape(-1, 2).tolist(), strict=True
        )
    ]  # fmt: skip
    assert replayed["experts/changed_fraction"] == pytest.approx(np.sum(differs) / router.size)
    assert np.abs(found["gradients"]["blocks"]["router"]).max() > 0


@pytest.mark.slow
def test_eight_devices_record_and_replay_what_one_does():
    mesh = MeshConfig(fsdp=4, expert=2)
    (same, other, one), (same_8, other_8, eight) = two_updates(ONE, replay=True), two_updates(mesh, replay=True)
    assert np.array_equal(one["experts"], eight["experts"])
    np.testing.assert_allclose(eight["later"].logprobs, one["later"].logprobs, atol=2e-5)
    for name in ("experts/load_max", "experts/load_std", "experts/load_idle_fraction", "experts/changed_fraction"):
        assert same_8[name] == pytest.approx(same[name], rel=1e-6)
        assert other_8[name] == pytest.approx(other[name], rel=1e-6)


def test_a_layer_is_the_sum_over_the_recorded_experts():
    """Against float64, with some of the tokens left to the router."""
    noise = np.random.default_rng(3)
    shapes = {"router": (32, 8), "expert_gate": (8, 32, 16), "expert_up": (8, 32, 16), "expert_down": (8, 16, 32)}
    block = {name: 0.3 * noise.normal(size=shape) for name, shape in shapes.items()}
    x = noise.normal(size=(5, 32))
    recorded = np.array([[0, 1], [7, 2], [-1, -1], [3, 4], [5, 6]])
    with_float32 = {name: jnp.asarray(value, jnp.float32) for name, value in block.items()}
    routing, own = route(with_float32, EXPERTS, jnp.asarray(x, jnp.float32), jnp.asarray(recorded))
    y = mixture_of_experts(with_float32, EXPERTS, jnp.asarray(x, jnp.float32), routing)
    for token in range(5):
        logits = x[token] @ block["router"]
        share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        ranked = np.argsort(-share)[:2]
        assert np.asarray(own)[token].tolist() == ranked.tolist()
        chosen = ranked if token == 2 else recorded[token]
        wanted = np.zeros(32)
        for expert in chosen:
            gate = x[token] @ block["expert_gate"][expert]
            inner = gate / (1 + np.exp(-gate)) * (x[token] @ block["expert_up"][expert])
            wanted += share[expert] / share[chosen].sum() * (inner @ block["expert_down"][expert])
        np.testing.assert_allclose(y[token], wanted, rtol=1e-4, atol=1e-5)


def test_loads_count_tokens_in_the_mask_and_add_up():
    chosen = jnp.array([[[[0, 1], [0, 2]], [[1, 2], [0, 1]]]])
    mask = jnp.array([[True, True], [True, False]])
    assert expert_loads(chosen, mask, 4).tolist() == [[2, 2, 2, 0]]
    counted = np.array([[[3.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [4.0, 0.0]]])
    parts = [{"experts/load": Loads(part, 2.0)} for part in counted]
    values = host_values(combine(parts))
    assert values == {
        "experts/load_max": 2.0, "experts/load_std": (0.5 + 1.0) / 2, "experts/load_idle_fraction": 0.25,
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_records_loads_and_replays(cache: pathlib.Path, tmp_path: pathlib.Path):
    changes = {"steps": 2, "warm_start": None, "mesh__fsdp": 1, "run_dir": str(tmp_path / "run")}
    changes["loss"] = Grpo(entropy_coefficient=0.1)  # a gradient, whatever the rewards are
    config = with_experts(**changes, update__replay_routing=True, update__epochs=2, optimizer__learning_rate=0.02)
    with one_device():
        assert train(config, experiment="experts").is_complete
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(row["experts/load_max"] >= 1 for row in rows if row["step"])
    assert any(row["experts/changed_fraction"] > 0 for row in rows if row["step"])


def test_what_cannot_be_replayed_is_refused():
    with pytest.raises(ValueError, match="this model has no experts to send tokens to"):
        check(small(update__replay_routing=True))
    with pytest.raises(ValueError, match="the pass that records the experts is left out"):
        with_experts(update__replay_routing=True, update__old_logprobs="sampler", loss=Grpo()).check()
