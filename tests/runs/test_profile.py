"""What a profile says of a step, by hand; and that a trace is written, whatever happens around it."""

import dataclasses
import logging
import pathlib

import jax
import numpy as np
import pytest

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.lora import LoraConfig
from sspo_jax.runs.profile import Profiler, read_roofline
from sspo_jax.runs.roofline import (
    CHIPS,
    Counts,
    Peak,
    Work,
    model_flops,
    peak_of,
    shares,
    stage_works,
    weight_bytes,
)
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.trainer.profiling import step_counts
from sspo_jax.types import Rollout

# Of tests/planning: 368 FLOPs a token and 8 for each token of context; 204 weights that multiply, float32.
MODEL = QwenConfig(
    vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2,
    tie_embeddings=False,
).computed(dtype="float32")  # fmt: skip
TRAINED = 204 + 40  # with the embedding
COUNTS = Counts(prompts=(3,), sampled=((3, 2), (3, 4)), trained=(5, 7), micro_batches=2, updates=2, slots=2)
PEAK = Peak(flops=1e3, bandwidth=1e6, source="made up")


def works(counts: Counts, **settings: object) -> dict[str, tuple[Work, ...]]:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return stage_works(counts, MODEL, mesh, **{"epochs": 1, "has_reference": False, "lora": None, **settings})  # type: ignore


def test_the_work_of_a_step_by_hand():
    """One problem of 3 tokens, responses of 2 and 4, two micro-batches, two updates.

    Forward: a token of a sequence of n has 368 + 8 n FLOPs, 5 * 408 + 7 * 424 = 5,008 in all; a backward pass is two.
    Prompt: 3 * 392, less the unembedding (2 * 4 * 10) of two tokens: 1,016. Responses: 5,008 - 2 * 3 * 392 = 2,656.
    Decoding: 4 steps (the longest) read 816 bytes of weights each; the cache (keys and values of 2, 16 bytes a token)
    holds 4 + 5 and 4 + 5 + 6 + 7 tokens when they are read: 31 * 16 = 496 bytes.
    Update: each micro-batch reads the weights twice and adds to a gradient; each update moves 7 numbers a parameter.
    """
    assert MODEL.num_parameters == TRAINED
    assert (model_flops(MODEL, 5), weight_bytes(MODEL)) == (408, 816)
    found = works(COUNTS)
    assert found["rollout"] == (Work(flops=1016, bytes=816), Work(flops=2656, bytes=4 * 816 + 496))
    assert found["score"] == (Work(flops=5008, bytes=2 * 816),)
    assert found["update"] == (Work(flops=3 * 5008, bytes=2 * (2 * 816 + 8 * TRAINED) + 2 * 28 * TRAINED),)
    assert works(COUNTS, has_reference=True)["score"][0].flops == 2 * 5008
    window = dataclasses.replace(MODEL, sliding_window=4, sliding_layers=(0,))  # reads 4 + 4 and 4 + 4 + 4 + 4 columns
    decoding = stage_works(
        COUNTS, window, make_mesh(MeshConfig(), jax.devices()[:1]), epochs=1, has_reference=False, lora=None
    )["rollout"][1]
    assert decoding.bytes == 4 * 816 + 24 * 16
    assert works(COUNTS, epochs=2)["update"][0].flops == 6 * 5008
    half = works(dataclasses.replace(COUNTS, backward=0.5))["update"][0]  # one of the two micro-batches goes back
    assert half == Work(flops=2 * 5008, bytes=3 * 816 + 8 * TRAINED + 2 * 28 * TRAINED)
    # Adapters of rank 1: 5 matrices; no gradients of the weights, but forward and backward through the adapters.
    adapters = (4 + 4) * 2 + (4 + 2) * 2 + (4 + 8) * 3
    assert works(COUNTS, lora=LoraConfig(rank=1))["update"][0].flops == 2 * 5008 + 3 * 2 * 12 * adapters


def test_shares_by_hand():
    """At 1,000 FLOP/s and 1e6 bytes/s all is bound by compute: 3.672, 5.008 and 15.024 s."""
    rows = shares([(COUNTS, {"rollout": 10.0, "verify": 1.0, "score": 5.008, "update": 30.048})], PEAK, works)
    assert [(row["stage"], row.get("share")) for row in rows] == [
        ("rollout", pytest.approx(0.3672)), ("verify", None), ("score", pytest.approx(1.0)),
        ("update", pytest.approx(0.5)),
    ]  # fmt: skip
    slow = Peak(flops=1e9, bandwidth=1.0, source="made up")
    rollout = shares([(COUNTS, {"rollout": 1.0})] * 2, slow, works)[0]
    assert (rollout["bound_by"], rollout["bound_seconds"]) == ("memory", 2 * (816 + 4 * 816 + 496))
    elsewhere = Counts(prompts=(), sampled=(), trained=(5,), micro_batches=1, updates=1, slots=1)
    assert "share" not in shares([(elsewhere, {"rollout": 1.0})], PEAK, works)[0]  # a server's


def test_published_figures_and_measured_ones(monkeypatch: pytest.MonkeyPatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    measured = peak_of(mesh, "float32")
    assert 1e8 < measured.flops < 1e15
    assert 1e7 < measured.bandwidth < 1e14
    assert "1 x cpu: no published figures are known here; measured" in measured.source
    monkeypatch.setattr("sspo_jax.runs.roofline.DEVICES", {mesh.devices.flat[0].device_kind: CHIPS["v5e"]})
    published = peak_of(make_mesh(MeshConfig(), jax.devices()[:2]), "float32")
    assert (published.flops, published.bandwidth) == (2 * 197e12, 2 * 819e9)
    assert "as published" in published.source


def test_what_a_step_consisted_of():
    lengths, tokens = (2, 4, 1), np.zeros(4, np.int32)
    rollout = Rollout(
        prompts=(tokens[:3], tokens[:3], tokens[:2]),
        responses=tuple(tokens[:length] for length in lengths),
        logprobs=tuple(np.zeros(length, np.float32) for length in lengths),
        finish_reasons=np.ones(3, np.int32),
        group_ids=np.array([0, 0, 1]),
        sample_ids=np.array([0, 1, 0]),
    )
    found = step_counts(rollout, rollout.take([0, 1]), [[1], [2, 3]], epochs=2, slots=4)
    assert found.prompts == [3, 2]  # a group's prompt is computed once
    assert found.sampled == [(3, 2), (3, 4), (2, 1)]
    assert (found.trained, found.micro_batches, found.updates, found.slots) == ([5, 7], 3, 4, 4)
    elsewhere = step_counts(rollout, rollout.take([0, 1]), [[1], [2, 3]], epochs=2, slots=None)
    assert elsewhere == dataclasses.replace(found, prompts=[], sampled=[], slots=1)


def profiled(path: pathlib.Path, steps: range, said: list[str]) -> Profiler:
    path.mkdir(exist_ok=True)
    return Profiler(path, steps, peak=lambda: PEAK, works=works, say=said.append)


def test_a_trace_of_two_steps(tmp_path: pathlib.Path):
    said: list[str] = []
    profiler, twice = profiled(tmp_path / "run", range(2, 4), said), jax.jit(lambda x: 2 * x)
    for step in (1, 2, 3, 4):
        watch = Stopwatch()
        with profiler(step):
            with watch("rollout"):
                twice(np.ones(3)).block_until_ready()
            profiler.add(step, lambda: COUNTS, watch.seconds)
    profiler.close()
    assert said == [f"profile of steps 2 to 3 in {tmp_path / 'run' / 'profile'}"]
    assert list((tmp_path / "run").glob("profile/plugins/profile/*/*.xplane.pb"))
    found = read_roofline(tmp_path / "run")
    assert found is not None
    assert (found["steps"], found["device"], found["stages"][0]["stage"]) == ([2, 3], "made up", "rollout")
    (tmp_path / "run" / "profile" / "roofline.json").write_text("{}")
    with pytest.raises(ValueError, match=r"roofline\.json is not the record of a profile"):
        read_roofline(tmp_path / "run")


def test_a_profile_that_fails_or_is_interrupted_ends_nothing(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    with profiled(tmp_path / "none", range(0), said)(1):
        pass
    profiler = profiled(tmp_path / "run", range(1, 3), said)
    with pytest.raises(KeyboardInterrupt), profiler(1):
        raise KeyboardInterrupt
    profiler.close()  # as the run does
    assert said == [f"profile of no whole step in {tmp_path / 'run' / 'profile'}"]
    assert read_roofline(tmp_path / "run") is None

    def refuses(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", refuses)
    with caplog.at_level(logging.WARNING), profiled(tmp_path / "full", range(1, 2), said)(1):
        pass
    assert "no profile: OSError: [Errno 28] No space left" in caplog.text
