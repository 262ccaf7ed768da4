"""A layout of its own for decoding: chosen from sizes, handed over, the same tokens, and no weight sent in the loop."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.models.configs import HUB_NAMES, QwenConfig
from sspo_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from sspo_jax.models.qwen import init_qwen
from sspo_jax.planning.collectives import loop_collectives, of_weights
from sspo_jax.runs.roofline import memory_of
from sspo_jax.sampler import LocalEngine, Sampler, SamplingParams
from sspo_jax.sampler.layout import GIB, Demand, decoding_layout
from sspo_jax.sharding import MeshConfig, RolloutMeshConfig, axes_of, make_mesh, rearranged, replicated
from tests.sampler.conftest import TINY

GREEDY = SamplingParams(max_new_tokens=8, temperature=0.0)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [20, 21]]
CPU_COLUMNS = 3072  # before the cache grows for the last time; 2,944 elsewhere
DEMAND = Demand(samples=1024, slots=384, prompt_tokens=1024, new_tokens=3000)


def trained_on() -> Any:
    return make_mesh(MeshConfig(fsdp=8))


@pytest.fixture(scope="module")
def params() -> Any:
    return init_qwen(TINY, jax.random.key(3), mesh=trained_on())


def decoded(
    mesh: Any, params: Any, *, sampling: SamplingParams, unrolled: bool, config: QwenConfig = TINY
) -> tuple[Any, str, Any]:
    """The rollout, the text of its decoding program and the weights that it took."""
    sampler = Sampler(config, sampling, slots=8, mesh=mesh, unrolled=unrolled)
    weights = sampler.ready(params)
    rollout = sampler.generate(weights, PROMPTS, group_size=3, seed=3)
    (program,) = [one for key, one in sampler.programs._compiled.items() if key[0] == "decode"]
    return rollout, program.as_text(), weights


@pytest.fixture(scope="module")
def as_trained(params: Any) -> tuple[Any, str, Any]:
    return decoded(trained_on(), params, sampling=GREEDY, unrolled=False)


def test_training_layout_sends_weights_in_the_loop(as_trained):
    """What the test below would miss if it read the program wrongly."""
    _, program, weights = as_trained
    sent = of_weights(loop_collectives(program), weights)
    assert {"all-gather"} <= {one.kind for one in sent}


@pytest.mark.parametrize(
    ("config", "unrolled"), [(RolloutMeshConfig(), False), (RolloutMeshConfig(tensor=2), True)], ids=["whole", "cut"]
)
def test_tokens_are_those_of_the_training_layout_and_no_weight_is_sent(config, unrolled, as_trained, params):
    mesh = rearranged(trained_on(), config)
    rollout, program, weights = decoded(mesh, params, sampling=GREEDY, unrolled=unrolled)
    np.testing.assert_array_equal(rollout.response_tokens, as_trained[0].response_tokens)
    np.testing.assert_allclose(rollout.sampler_logprobs, as_trained[0].sampler_logprobs, atol=2e-5)
    assert of_weights(loop_collectives(program), weights) == []


@pytest.mark.slow
@pytest.mark.parametrize("config", [RolloutMeshConfig(), RolloutMeshConfig(expert=2, tensor=2)], ids=["whole", "cut"])
def test_experts_stay_where_they_are(config):
    """Four of them, two a token: the rows go to where the experts are, and come back."""
    model = dataclasses.replace(TINY, num_experts=4, experts_per_token=2, expert_size=32)
    params = init_qwen(model, jax.random.key(2), mesh=trained_on())
    wanted, _, _ = decoded(trained_on(), params, sampling=GREEDY, unrolled=False, config=model)
    mesh = rearranged(trained_on(), config)
    rollout, program, weights = decoded(mesh, params, sampling=GREEDY, unrolled=False, config=model)
    np.testing.assert_array_equal(rollout.response_tokens, wanted.response_tokens)
    np.testing.assert_allclose(rollout.sampler_logprobs, wanted.sampler_logprobs, atol=2e-5)
    assert of_weights(loop_collectives(program), weights) == []


def test_adapters_are_folded_in_on_the_way(params):
    """The weights as they are handed over are those of the merged model, in the dtype of the computation."""
    lora, config = LoraConfig(rank=2), TINY.computed(dtype="bfloat16")
    adapters = init_lora(config, lora, jax.random.key(1), mesh=trained_on())
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    mesh = rearranged(trained_on(), RolloutMeshConfig(tensor=2))
    sampler = Sampler(config, GREEDY, mesh=mesh, unrolled=False)
    found = sampler.ready(with_lora(params, adapters, lora))
    wanted = jax.device_get(merge_lora(params, adapters, lora))
    assert found["blocks"]["gate"].sharding.shard_shape((2, 32, 64)) == (2, 32, 32)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(ours), np.float32(jnp.asarray(theirs, jnp.bfloat16)), rtol=2**-7)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_weights_are_laid_out_once_for_each_hand_over(params, as_trained, monkeypatch):
    mesh, calls = rearranged(trained_on(), RolloutMeshConfig()), []

    def laid_out(params: Any, *_: Any, **__: Any) -> Any:
        calls.append(1)
        return jax.device_put(params, replicated(mesh))

    monkeypatch.setattr("sspo_jax.sampler.sampler.hand_over", laid_out)
    monkeypatch.setattr(Sampler, "generate", lambda *_, **__: as_trained[0])
    engine = LocalEngine(TINY, mesh=mesh)
    engine.sync(params, 1)
    for sampling in (GREEDY, GREEDY, dataclasses.replace(GREEDY, temperature=1.0)):
        engine.generate(PROMPTS, sampling, seed=0)
    assert len(calls) == 1
    engine.sync(params, 2)
    engine.generate(PROMPTS, GREEDY, seed=0)
    assert len(calls) == 2


def test_fewest_devices_that_hold_the_weights():
    """1.5B: 2.9 GiB of weights; the cache of 384 slots takes 9.0 GiB of each of eight devices while it grows."""
    small = HUB_NAMES["Qwen/Qwen2.5-Math-1.5B"].computed(dtype="bfloat16")
    mesh, training = trained_on(), round(2.15 * GIB)
    whole = decoding_layout(None, small, mesh, DEMAND, training=training, memory=15.75 * GIB)
    assert (axes_of(whole.mesh), whole.weights) == ({"data": 8}, 2 * small.num_parameters)
    tokens = 2 * 28 * 2 * 128 * 2  # bytes of keys and values of a token
    assert whole.cache == 384 * (CPU_COLUMNS + 4096) * tokens // 8
    assert whole.fits
    cut = decoding_layout(None, small, mesh, DEMAND, training=training + 2 * GIB, memory=15.75 * GIB)
    assert axes_of(cut.mesh) == {"data": 4, "tensor": 2}
    assert list(cut.mesh.devices.flat) == list(mesh.devices.flat)
    assert "cut between 2 devices each" in cut.describe()
    none = decoding_layout(
        None, small, mesh, DEMAND, training=training, memory=8.0 * GIB
    )  # two key heads: no more cuts
    assert none.mesh is mesh
    assert "no other one fits" in none.describe()
    unknown = decoding_layout(None, TINY, mesh, DEMAND)
    assert axes_of(unknown.mesh) == {"data": 8}
    assert "counting 4 GiB a device" in unknown.describe()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (RolloutMeshConfig(data=3), r"rollout.mesh .*needs 3 devices, there are 8: change --rollout.mesh.data"),
        (RolloutMeshConfig(tensor=3), r"needs a multiple of 3 devices"),
        (RolloutMeshConfig(tensor=4), r"'key'.* has 2 along 'kv_heads'.*--rollout.mesh.tensor"),
        (RolloutMeshConfig(data=-1, fsdp=-1), r"-1 stands on one axis at most"),
    ],
    ids=["product", "divisor", "heads", "two"],
)
def test_a_layout_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        decoding_layout(given, TINY, trained_on(), DEMAND)


def test_what_is_given_is_taken():
    found = decoding_layout(RolloutMeshConfig(tensor=2), TINY, trained_on(), DEMAND)
    assert axes_of(found.mesh) == {"data": 4, "tensor": 2}
    gathered = decoding_layout(RolloutMeshConfig(data=1, fsdp=-1), TINY, trained_on(), DEMAND)
    assert gathered.mesh == trained_on()
    assert "gathered again at every step" in gathered.describe()


@pytest.mark.parametrize(
    ("kind", "allotted", "gib"),
    [("cpu", None, None), ("TPU v5 lite", None, 15.75), ("NVIDIA H100 80GB HBM3", 60, 60.0), ("another", 24, 24.0)],
)
def test_memory_is_what_a_program_may_use(kind, allotted, gib):
    stats = None if allotted is None else {"bytes_limit": allotted * GIB}
    device = types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)
    mesh: Any = types.SimpleNamespace(devices=np.array([device]), local_devices=[device])
    assert memory_of.__wrapped__(mesh) == (None if gib is None else gib * GIB)
