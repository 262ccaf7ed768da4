"""LoRA in the trainer: adapters alone are trained, on any mesh and with any loss, and a killed run goes on exactly."""

import dataclasses
import json
import pathlib
import signal
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.config import OptimizerConfig
from sspo_jax.losses import Cispo, Gmpo, Grpo, Gspo, Sapo, Sspo
from sspo_jax.models import apply_qwen, init_qwen, load_qwen
from sspo_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from sspo_jax.models.trainable import count
from sspo_jax.runs.checkpoint import steps_in
from sspo_jax.runs.display import Display
from sspo_jax.runs.policy import read_policy, read_trained
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.trainer.grading import GradedRollout, Grader
from sspo_jax.trainer.loop import Trainer
from sspo_jax.trainer.setup import check
from sspo_jax.trainer.step import TrainPrograms
from sspo_jax.types import TrainBatch
from tests.trainer.conftest import SMALL, one_device, run_cli, run_directory, small
from tests.trainer.test_resume import metrics, start, wait_for_step

LORA = LoraConfig(rank=3, alpha=6.0)


def programs(objective, lora: LoraConfig | None, mesh) -> TrainPrograms:
    inputs = check(small(warm_start=None))
    model = dataclasses.replace(inputs.model, num_kv_heads=2)  # heads that a tensor axis of two divides
    return TrainPrograms(
        config=model,
        objective=objective,
        optimizer_config=OptimizerConfig(),
        segmenter=inputs.segmenter,
        mesh=mesh,
        temperature=1.0,
        lora=lora,
    )


def rows() -> TrainBatch:
    """Eight rows of two packed responses each, with advantages of both signs."""
    rng = np.random.default_rng(0)
    shape = (8, 24)
    segment_ids = np.repeat([[1, 2]], 12, axis=1).repeat(8, axis=0).astype(np.int32)
    mask = np.tile(np.arange(24) % 12 >= 4, (8, 1))
    return TrainBatch(
        tokens=rng.integers(5, 500, shape).astype(np.int32),
        positions=np.tile(np.arange(24) % 12, (8, 1)).astype(np.int32),
        segment_ids=segment_ids,
        mask=mask,
        advantages=np.where(mask, rng.choice([-1.0, 1.0], (8, 2)).repeat(12, axis=1), 0).astype(np.float32),
        sampler_logprobs=np.zeros(shape, np.float32),
        old_logprobs=np.zeros(shape, np.float32),
        entropies=np.zeros(shape, np.float32),
        subsentence_ids=np.full(shape, -1, np.int32),
    )


def gradients(train: TrainPrograms, params, base):
    """Of one micro-batch that is a little off-policy."""
    with jax.set_mesh(train.mesh):
        batch = train.place(rows())
        segments = train.segment(batch, train.scalar(0.0))
        _, (logprobs, entropies, _), _ = train.micro_batch(params, train.zero_gradients(), batch, False, base)
        noise = 0.1 * jnp.cos(jnp.arange(24.0))[None]
        batch = dataclasses.replace(batch, old_logprobs=logprobs + noise, entropies=entropies, subsentence_ids=segments)
        batch = dataclasses.replace(batch, denominator=train.denominator([batch]))
        result, _, _ = train.micro_batch(params, train.zero_gradients(), batch, True, base)
    return jax.device_get(result)


def weights(train: TrainPrograms, mesh):
    base = init_qwen(train.config, jax.random.key(0), mesh=mesh)
    adapters = init_lora(train.config, LORA, jax.random.key(1), mesh=mesh)
    return base, jax.tree.map(lambda x: x + 0.02, adapters)


OTHERS = (Grpo(), Grpo.dr_grpo(norm_length=16), Grpo.dapo(), Gspo(), Gmpo(), Cispo(), Sapo())


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [Sspo.paper_like(), *OTHERS],
    ids=lambda objective: type(objective).__name__,
)
def test_gradients_are_those_of_the_merged_weights(objective):
    """With W + s A B in place of W: dA = s dW B^T and dB = s A^T dW, dW the gradient of training all weights there."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    lora, full = programs(objective, LORA, mesh), programs(objective, None, mesh)
    base, adapters = weights(lora, mesh)
    ours = gradients(lora, adapters, base)
    theirs = gradients(full, merge_lora(base, adapters, LORA), None)["blocks"]
    scale = LORA.alpha / LORA.rank
    for target, pair in adapters.items():
        a, b = (np.asarray(pair[name], np.float64) for name in ("a", "b"))
        layers, rank = a.shape[0], a.shape[-1]
        flat_a, flat_b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        weight = np.asarray(theirs[target], np.float64).reshape(layers, flat_a.shape[1], flat_b.shape[2])
        wanted_a = scale * np.einsum("lio,lro->lir", weight, flat_b)
        wanted_b = scale * np.einsum("lir,lio->lro", flat_a, weight)
        assert np.abs(wanted_b).max() > 1e-5
        np.testing.assert_allclose(ours[target]["a"].reshape(wanted_a.shape), wanted_a, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours[target]["b"].reshape(wanted_b.shape), wanted_b, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{"data": 2, "fsdp": 2}, pytest.param({"fsdp": 1, "context": 4}, marks=pytest.mark.slow)],
    ids=["rows", "time"],
)
def test_a_mesh_gives_the_same_gradients(sizes: dict[str, int]):
    """Eight devices, rows over four, or each row over four, and heads over two, against one."""
    one = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    many = make_mesh(MeshConfig(tensor=2, **sizes))
    results = []
    for mesh in (one, many):
        train = programs(Sspo.paper_like(), LORA, mesh)
        base, adapters = weights(train, mesh)
        results.append(gradients(train, adapters, base))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), *results)


@pytest.fixture(scope="module")
def adapted(cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A trainer of adapters from random weights, with a KL term, before its first step."""
    run = tmp_path_factory.mktemp("run") / "run"
    loss = dataclasses.replace(Sspo.paper_like(), kl_coefficient=0.1)
    config = small(warm_start=None, mesh__fsdp=1, run_dir=str(run), loss=loss, model__lora=LORA)
    with one_device():
        inputs = check(config)
        directory = run_directory(config, inputs)
        with Grader(config.reward, inputs.tokenizer) as judge, jax.set_mesh(inputs.mesh):
            built = Trainer(config, inputs, directory, Display(quiet=True), judge)
            built.manager.open()
            built.start()
            built.manager.close()
            yield built
        directory.close()


@pytest.fixture
def groups(adapted: Trainer) -> GradedRollout:
    from sspo_jax.runs.stopwatch import Stopwatch

    _, sampled = adapted.schedule.take(1, Stopwatch())
    return dataclasses.replace(sampled, rewards=(sampled.rollout.sample_ids % 2).astype(float))


def test_adapters_learn_and_nothing_else(adapted: Trainer, groups: GradedRollout):
    """The rewarded half of the responses becomes more probable; KL to the base grows from exactly 0."""
    before = jax.device_get(adapted.base)
    size = count(adapted.state.params)
    assert size == count(adapted.programs.zero_gradients()) < 0.4 * count(before)
    moments = [leaf for leaf in jax.tree.leaves(adapted.state.optimizer) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * size
    advantages = adapted.advantages(groups)
    seen = []
    for _ in range(8):
        minibatches, gaps = adapted.score(groups, advantages)
        batches = [batch for minibatch in minibatches for batch in minibatch]
        good, bad = (
            sum(float(jnp.sum(jnp.where(batch.mask & (sign * batch.advantages > 0), batch.old_logprobs, 0)))
                for batch in batches)
            for sign in (1, -1)
        )  # fmt: skip
        seen.append((good - bad, gaps["sampler/logprob_gap_max"], adapted.update(minibatches)["loss/kl"]))
    margins, sampler_gaps, divergences = zip(*seen, strict=True)
    assert sampler_gaps[0] < 1e-4  # the sampler and the training program are one policy
    assert margins[-1] > margins[0] + 1.0
    assert divergences[-1] > divergences[0] >= 0.0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(adapted.base), strict=True):
        assert np.array_equal(old, np.asarray(new))


def test_the_reference_is_the_base(adapted: Trainer):
    """Adapters of zeros: the same program gives the log-probs of the weights without adapters."""
    assert adapted.reference is not None
    assert adapted.base is not None
    reference = adapted.trainable.policy(adapted.reference, adapted.base)
    tokens = jnp.arange(8, 24)[None]
    plain = apply_qwen(adapted.base, adapted.inputs.model, tokens)
    np.testing.assert_array_equal(apply_qwen(reference, adapted.inputs.model, tokens), plain)


def test_what_the_model_does_not_have_is_refused_at_the_start():
    shape = small().model.shape
    assert shape is not None
    model = dataclasses.replace(shape, num_experts=8, experts_per_token=2, expert_size=8)
    config = small(warm_start=None, model__shape=model, model__lora=LoraConfig(targets=("query", "gate")))
    with pytest.raises(ValueError, match=r"targets \['gate'\] are not weights"):
        check(config)


OPTIONS = ("--model.lora.rank", "4", "--loss.kl-coefficient", "0.01", "--checkpoint.keep", "1")


@pytest.mark.slow
def test_killed_resumed_exported_and_evaluated(cache: pathlib.Path, tmp_path: pathlib.Path):
    done = run_cli("train", str(SMALL), "--run-dir", "whole", *OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LoRA of rank 4" in done.stdout
    process = start(tmp_path / "run", tmp_path, *OPTIONS)
    wait_for_step(tmp_path / "run", 2, process)
    while not steps_in(tmp_path / "run" / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    again = run_cli("train", str(SMALL), "--run-dir", "run", *OPTIONS, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after step" in again.stdout
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    ours, _, step = read_trained(tmp_path / "run")
    theirs, _, last = read_trained(tmp_path / "whole")
    assert step == last == 4
    assert set(ours) == set(LORA.targets)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), ours, theirs)

    exported = run_cli("export", "whole", "merged", "--dtype", "float32", "--step", "best", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    params, model = load_qwen(tmp_path / "merged")
    policy, _, best = read_policy(tmp_path / "whole", step="best")
    assert f"after step {best}" in exported.stdout
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), params, policy)
    base, _ = load_qwen(tmp_path / "whole" / "base")
    adapters, _, _ = read_trained(tmp_path / "whole")
    lora = LoraConfig(rank=4)
    merged, _, _ = read_policy(tmp_path / "whole")
    tokens = jnp.arange(8, 24)[None]
    applied = apply_qwen(with_lora(base, adapters, lora), model, tokens)
    np.testing.assert_allclose(apply_qwen(merged, model, tokens), applied, rtol=0, atol=2e-5)
    assert jnp.abs(applied - apply_qwen(base, model, tokens)).max() > 1e-3

    saved = run_cli("export", "whole", "peft", "--adapters", cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    record = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (record["r"], record["lora_alpha"]) == (4, 32.0)
    assert pathlib.Path(record["base_model_name_or_path"]) == (tmp_path / "whole" / "base").absolute()
    shown = run_cli("inspect", "whole", cwd=tmp_path)
    assert "LoRA of rank 4" in shown.stdout
