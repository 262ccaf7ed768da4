"""The engine of this process behind the interface: several ways of sampling, over weights that it lets go."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from sspo_jax.models.qwen import init_qwen
from sspo_jax.sampler import NO_WEIGHTS, LocalEngine, RolloutEngine, Sampler, SamplingParams
from sspo_jax.serving import RemoteEngine

SAMPLING = SamplingParams(max_new_tokens=8, stop_token_ids=(5, 6))


def test_each_way_of_sampling_is_that_of_its_own_sampler(tiny, prompts):
    config, params = tiny
    engine = LocalEngine(config, slots=8)
    engine.sync(params, 3)
    for sampling in (SAMPLING, dataclasses.replace(SAMPLING, temperature=0.0), SAMPLING):
        arguments = {"group_size": 2, "seed": 4, "step": 1, "prompt_ids": [9, 8, 7, 6, 5, 4]}
        counts: list[int] = []
        got = engine.generate(prompts, sampling, progress=counts.append, **arguments)
        want = Sampler(config, sampling, slots=8).generate(params, prompts, **arguments)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert counts
        assert engine.sampler(sampling).stats.tokens == got.response_mask.sum()


def test_samplers_are_kept_up_to_a_number(tiny):
    engine = LocalEngine(tiny[0], most_samplers=2)
    ways = [dataclasses.replace(SAMPLING, max_new_tokens=length) for length in (8, 9, 10)]
    first, second = engine.sampler(ways[0]), engine.sampler(ways[1])
    assert engine.sampler(ways[0]) is first
    engine.sampler(ways[2])
    assert engine.sampler(ways[0]) is first
    assert engine.sampler(ways[1]) is not second


def test_weights_are_asked_for_and_let_go(tiny):
    config, _ = tiny
    engine = LocalEngine(config, slots=8)
    with pytest.raises(ValueError, match="call sync"):
        engine.generate([[4]], SAMPLING, seed=0)
    params = init_qwen(config, jax.random.key(1))
    watched = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    engine.sync(params, 7)
    engine.generate([[4]], SAMPLING, seed=0)
    assert engine.version == 7
    del params
    engine.release()
    gc.collect()
    assert all(leaf() is None for leaf in watched)
    assert engine.version == NO_WEIGHTS
    with pytest.raises(ValueError, match="call sync"):
        engine.generate([[4]], SAMPLING, seed=0)


def test_both_engines_are_engines(tiny, tmp_path):
    remote = RemoteEngine("http://localhost:1", tiny[0], export_directory=tmp_path)
    assert isinstance(remote, RolloutEngine)
    assert isinstance(LocalEngine(tiny[0]), RolloutEngine)
    with pytest.raises(ValueError, match="entropies"):
        remote.generate([[4]], dataclasses.replace(SAMPLING, entropies=True), seed=0)


def test_how_deep_a_model_may_be_to_be_unrolled(tiny, monkeypatch):
    config = dataclasses.replace(tiny[0], num_layers=28)
    deeper = dataclasses.replace(tiny[0], num_layers=36)
    for platform, is_unrolled, if_deeper in (
        ("cpu", True, False), ("tpu", False, False), ("gpu", True, True), ("cuda", True, True),
    ):  # fmt: skip
        monkeypatch.setattr("sspo_jax.sampler.sampler.platform", lambda platform=platform: platform)
        assert Sampler(config, SAMPLING).unrolled is is_unrolled
        assert Sampler(deeper, SAMPLING).unrolled is if_deeper
    assert not Sampler(config, SAMPLING, unrolled=False).unrolled
