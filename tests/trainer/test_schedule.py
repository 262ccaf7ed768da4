"""A lag decides which weights sample for which step; a lagged run goes on after any end as if there had been none."""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from sspo_jax.config import (
    AdvantageConfig,
    CheckpointConfig,
    EvaluationConfig,
    PartialConfig,
    RolloutConfig,
    SegmenterConfig,
    ServerConfig,
    TrainConfig,
)
from sspo_jax.data.curriculum import CurriculumConfig
from sspo_jax.data.problems import Problem
from sspo_jax.distributed.interrupt import StopRequest
from sspo_jax.losses import Grpo, RolloutCorrection, Sspo
from sspo_jax.rewards import Length, RewardConfig
from sspo_jax.runs.checkpoint import steps_in
from sspo_jax.runs.display import Display
from sspo_jax.runs.policy import read_trained
from sspo_jax.sampler import SamplingParams
from sspo_jax.serving import ServerGoneError
from sspo_jax.sharding import make_mesh
from sspo_jax.trainer import setup
from sspo_jax.trainer.batch import NO_ROLLOUT
from sspo_jax.trainer.grading import Grader
from sspo_jax.trainer.loop import Trainer
from sspo_jax.trainer.partial import begun, go_on, is_complete
from sspo_jax.trainer.schedule import Draw, Queued, ages
from sspo_jax.trainer.setup import check
from sspo_jax.types import Rollout
from tests.trainer.conftest import SMALL, run_cli, run_directory, small
from tests.trainer.launch import Launch, environment
from tests.trainer.launch import metrics as rows_of
from tests.trainer.test_interrupt import StopIn, opened, started_again
from tests.trainer.test_resume import metrics, start, wait_for_step

MANY_ENDS = tuple(range(20, 120))
"""End tokens that random weights draw about every fifth time."""


def lagged(lag: int, **changes: object) -> TrainConfig:
    """Three steps that change the weights, with rewards that differ inside groups."""
    settings = {
        "warm_start": None, "mesh__fsdp": 1, "steps": 3, "rollout__lag": lag,
        "evaluation": EvaluationConfig(), "checkpoint": CheckpointConfig(every=10),
        "reward": RewardConfig(length=Length(scale_tokens=100, only_correct=False)),
        "rollout__stop_token_ids": tuple(range(20, 40)), "optimizer__learning_rate": 1e-2,
    }  # fmt: skip
    return small(**{**settings, **changes})


def assert_same_run(one: pathlib.Path, two: pathlib.Path) -> None:
    """Metrics, texts and weights, bit for bit."""
    assert metrics(one) == metrics(two)
    for file in sorted((two / "rollouts").iterdir()):
        assert (one / "rollouts" / file.name).read_text() == file.read_text(), file.name
    ours, theirs = read_trained(one), read_trained(two)
    assert ours[2] == theirs[2]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), ours[0], theirs[0])


@contextlib.contextmanager
def opened_apart(config: TrainConfig) -> Iterator[Trainer]:
    """A trainer on all devices that its configuration takes."""
    inputs = check(config)
    directory = run_directory(config, inputs)
    with Grader(config.reward, inputs.tokenizer) as grader:
        yield Trainer(config, inputs, directory, Display(quiet=True, silent=True), grader)
    directory.close()


def rollouts(run: pathlib.Path, step: int) -> list[str]:
    return (run / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()


def set_aside(run: pathlib.Path, copy: pathlib.Path) -> None:
    """Moves what a run has come to, so that it begins again."""
    copy.mkdir()
    shutil.copy(run / "config.json", copy)
    for name in ("checkpoints", "rollouts", "metrics.jsonl"):
        shutil.move(run / name, copy / name)


def test_each_step_is_trained_on_samples_of_the_weights_that_the_lag_says(cache, tmp_path, monkeypatch):
    calls = []
    with opened(lagged(2, steps=4, run_dir=str(tmp_path / "run"))) as trainer:
        generate = trainer.engine.generate

        def recorded(*arguments, step, **options):
            rollout = generate(*arguments, step=step, **options)
            calls.append((step, trainer.engine.version, [row.tolist() for row in rollout.responses]))
            return rollout

        monkeypatch.setattr(trainer.engine, "generate", recorded)
        assert trainer.run()
    assert [(step, version) for step, version, _ in calls] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 3)]
    rows = metrics(tmp_path / "run")
    assert [(row["rollout/age_mean"], row["rollout/age_max"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (2, 2)]
    gaps = [row["sampler/logprob_gap_mean"] for row in rows]
    assert gaps[0] < 1e-5 < gaps[1]  # the policy has moved on since they were sampled
    assert all(row["update/1/clip_fraction"] == 0 for row in rows)  # old log-probs are those of the step's own start
    assert rows[3]["optim/grad_norm"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"curriculum": CurriculumConfig(floor=0.2)}, id="curriculum"),
        pytest.param({"rollout__dynamic_sampling": 1}, id="dynamic", marks=pytest.mark.slow),
    ],
)
def test_a_lagged_run_interrupted_anywhere_is_the_uninterrupted_one(cache, tmp_path, changes):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    stages = [("_draw", 1), ("score", 1), ("_draw", 0), ("score", 0)]  # step 1, ahead; step 2; ...
    with opened(lagged(1, run_dir=str(folder), **changes)) as trainer:
        assert trainer.run()
        set_aside(folder, whole)
        for stage in stages:
            with started_again(trainer, StopIn(*stage)):
                assert not trainer.run(), stage
        assert steps_in(folder / "checkpoints") == [1]
        with started_again(trainer, StopRequest(print)):
            assert trainer.run()
    assert_same_run(folder, whole)


def test_what_waits_is_saved_bit_for_bit():
    rollout = Rollout(
        prompts=(np.array([5], np.int32), np.array([6, 7], np.int32)),
        responses=(np.array([1, 2, 3], np.int32), np.array([], np.int32)),
        logprobs=(np.array([-0.1, -np.float32(1) / 3, -7e-9], np.float32), np.array([], np.float32)),
        finish_reasons=np.array([1, 0], np.int32),
        group_ids=np.array([4, 9], np.int32),
        sample_ids=np.array([0, 3], np.int32),
        versions=(np.array([2, 2, 3], np.int32), np.array([], np.int32)),
        said=(np.array([True, False, True]), np.array([], bool)),
        rewards=(1 / 3, math.nan),
    )
    problem = Problem(id="a", problem="1 + 1", answer="2", level=3, set="mine", extra={"unit": "km", "parts": [1, 2]})
    draw = Draw(problems=(problem, problem), step=4, rollout=rollout, grading=None)
    record = Queued(step=7, seconds=0.5, draws=[draw], rows=np.array([1])).to_json()
    back = Queued.from_json(record)
    assert (back.step, back.seconds, back.rows.tolist(), back.to_json()) == (7, 0.5, [1], record)
    assert [(one.set, one) for one in back.draws[0].problems] == [("mine", problem)] * 2
    for field in dataclasses.fields(Rollout):
        for ours, theirs in zip(getattr(back.draws[0].rollout, field.name), getattr(rollout, field.name), strict=True):
            assert np.asarray(ours).dtype == np.asarray(theirs).dtype
            np.testing.assert_array_equal(ours, theirs)
    alone = dataclasses.replace(rollout, said=(), rewards=(), versions=())
    back = Draw.from_json(Draw(problems=(problem, problem), step=4, rollout=alone).to_json()).rollout
    assert (back.said, back.rewards, back.versions) == ((), (), ())
    assert ages(rollout, 5) == {"rollout/age_mean": pytest.approx((2 + 2 + 1) / 3), "rollout/age_max": 2.0}


@pytest.mark.slow
def test_a_lagged_run_that_is_killed_or_asked_to_stop_is_the_uninterrupted_one(cache, tmp_path):
    options = ("--rollout.lag", "2")
    done = run_cli("train", str(SMALL), "--run-dir", "whole", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in (signal.SIGKILL, signal.SIGTERM):
        run = tmp_path / number.name
        process = start(run, tmp_path, *options)
        wait_for_step(run, 2, process)
        process.send_signal(number)
        process.communicate(timeout=120)
        again = run_cli("train", str(SMALL), "--run-dir", str(run), *options, cwd=tmp_path)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "resuming after step" in again.stdout
        assert_same_run(run, tmp_path / "whole")
    refused = run_cli("train", str(SMALL), "--run-dir", "whole", "--rollout.lag", "1", cwd=tmp_path)
    assert "rollout.lag: 2 there, 1 here" in refused.stderr


@pytest.mark.slow
def test_two_processes_with_a_lag(tmp_path):
    """A kill costs nothing: both find in the checkpoint what was sampled ahead."""
    variables = environment(tmp_path)
    options = ("--rollout.lag", "1", "--warm-start.updates", "2", "--evaluation.sets", "none")
    whole = Launch(tmp_path / "whole", SMALL, variables, per_process=options)
    assert whole.wait() == [0, 0], whole.text(0) + whole.text(1)
    killed = Launch(tmp_path / "killed", SMALL, variables, per_process=options)
    killed.reach(step=2)
    killed.processes[1].send_signal(signal.SIGKILL)
    killed.wait()
    again = Launch(tmp_path / "killed", SMALL, variables, per_process=options)
    assert again.wait() == [0, 0], again.text(0) + again.text(1)
    assert rows_of(again.run_dir) == rows_of(whole.run_dir)
    assert rows_of(again.run_dir)[-1]["rollout/age_mean"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [pytest.param({}, id="plain"), pytest.param({"rollout__dynamic_sampling": 1}, id="dynamic")]
)
def test_other_devices_sample_beside_the_updates_what_they_sample_in_turn(cache, tmp_path, monkeypatch, changes):
    """One device trains and one samples; the schedule decides, so both ways are one run, bit for bit."""
    monkeypatch.setattr(setup, "make_mesh", lambda config, devices: make_mesh(config, devices[:1]))
    config = lagged(1, rollout__devices=1, **changes)
    beside = []
    for name in ("beside", "turn"):
        with opened_apart(dataclasses.replace(config, run_dir=str(tmp_path / name))) as trainer:
            assert trainer.inputs.decoding.mesh.devices.flat[0] != trainer.inputs.mesh.devices.flat[0]
            if name == "turn":
                monkeypatch.setattr(RolloutConfig, "is_elsewhere", False)
            update = trainer.update

            def updates(minibatches, update=update, trainer=trainer):
                beside.append(trainer.schedule.is_sampling)
                return update(minibatches)

            monkeypatch.setattr(trainer, "update", updates)
            assert trainer.run()
    assert beside == [True] * 3 + [False] * 3
    assert_same_run(tmp_path / "beside", tmp_path / "turn")
    with open(tmp_path / "beside" / "metrics.jsonl") as rows:
        assert all(json.loads(row)["time/wait_seconds"] > 0 for row in rows)


def test_what_ends_the_thread_that_samples_ends_the_run(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", lambda config, devices: make_mesh(config, devices[:1]))
    with opened_apart(lagged(1, rollout__devices=1, run_dir=str(tmp_path / "run"))) as trainer:
        generate = trainer.engine.generate

        def broken(*arguments, step, **options):
            if step == 3:
                raise ServerGoneError("http://away has not answered for 1 seconds")
            return generate(*arguments, step=step, **options)

        monkeypatch.setattr(trainer.engine, "generate", broken)
        assert not trainer.run()
        assert isinstance(trainer.failure, ServerGoneError)
        assert trainer.state.step == 1  # what step 3 needs is missing after the second
        assert not trainer.schedule.is_sampling
    assert not [thread for thread in threading.enumerate() if thread.name == "rollout"]


def test_devices_that_cannot_be_set_apart(cache):
    with pytest.raises(ValueError, match=r"rollout.devices is 8; expected less than the 8 devices"):
        check(lagged(1, rollout__devices=8))
    both = lagged(1, rollout__devices=1, rollout__server=ServerConfig())
    with pytest.raises(ValueError, match="expected one of them"):
        both.check()


@pytest.mark.slow
def test_whole_responses_in_rounds_are_the_responses_of_one_round(cache, tmp_path, monkeypatch):
    """With the same weights throughout a response that is broken off and goes on is the one that is not."""
    config = lagged(0, optimizer__learning_rate=0.0, rollout__stop_token_ids=MANY_ENDS)
    texts = {}
    for name, partial in (("whole", None), ("rounds", PartialConfig(tokens=6))):
        rollout = dataclasses.replace(config.rollout, partial=partial)
        with opened(dataclasses.replace(config, rollout=rollout, run_dir=str(tmp_path / name))) as trainer:
            assert trainer.run()
        lines = [(step, json.loads(line)) for step in (1, 2, 3) for line in rollouts(tmp_path / name, step)]
        texts[name] = {(row["id"], row["sample"]): (row["response"], row["tokens"], row["finish"]) for _, row in lines}
        assert len(texts[name]) == len(lines)  # each is trained on once
    assert {len(text) for text in texts["whole"].values()} == {3}
    assert 12 <= len(texts["rounds"]) < len(texts["whole"]) == 48
    assert texts["rounds"].items() <= texts["whole"].items()
    assert max(row["rollout/age_max"] for row in metrics(tmp_path / "rounds")) in (1, 2)  # 16 tokens are three rounds


@pytest.mark.slow
def test_partial_rollouts_interrupted_anywhere_are_the_uninterrupted_ones(cache, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    partial = {"rollout__partial": PartialConfig(tokens=4, groups=0.3), "rollout__stop_token_ids": MANY_ENDS}
    with opened(lagged(1, **partial, run_dir=str(folder))) as trainer:
        assert trainer.run()
        set_aside(folder, whole)
        for stage in (("score", 1), ("_draw", 0), ("score", 0)):
            with started_again(trainer, StopIn(*stage)):
                assert not trainer.run(), stage
        with started_again(trainer, StopRequest(print)):
            assert trainer.run()
    assert_same_run(folder, whole)
    seen = [row["versions"] for step in (1, 2, 3) for row in map(json.loads, rollouts(folder, step))]
    assert any(first < last for first, last in seen)  # begun under other weights than ended
    assert all(row["rollout/age_max"] >= row["rollout/age_mean"] for row in metrics(folder))


def test_partial_rollouts_end_after_the_round_that_completes_enough_groups():
    """Three groups of two; each round adds two tokens, a response ends at its own length or at six."""
    ends = {0: 1, 1: 2, 2: 3, 3: 8, 4: 2, 5: 2}
    asked = []

    class Engine:
        version = 4

        def sync(self, params, version, *, poll=None): ...

        def release(self): ...

        def generate(self, prompts, sampling, *, keys, places, budgets, **options):
            asked.append(list(zip([prompt[0] for prompt in prompts], places, budgets, strict=True)))
            rows = zip(prompts, places, budgets, strict=True)
            tokens = [list(range(p, min(p + b, ends[prompt[0]]))) for prompt, p, b in rows]
            stops = [p + len(own) == ends[prompt[0]] for prompt, p, own in zip(prompts, places, tokens, strict=True)]
            return dataclasses.replace(
                NO_ROLLOUT,
                responses=tuple(np.array(own, np.int32) for own in tokens),
                logprobs=tuple(np.array(own, np.float32) for own in tokens),
                finish_reasons=np.array(stops, np.int32),
                group_ids=np.arange(len(tokens), dtype=np.int32),
                sample_ids=np.zeros(len(tokens), np.int32),
            )

    rows = begun([[0], [0], [0]], step=2, group_size=2)
    rollout = dataclasses.replace(rows, prompts=tuple(np.array([row], np.int32) for row in range(6)))
    assert rollout.group_ids.tolist() == [3, 3, 4, 4, 5, 5]
    sampling = SamplingParams(max_new_tokens=6)
    options = {"seed": 0, "prompts": 3, "progress": print}
    once = go_on(Engine(), rollout, sampling, PartialConfig(tokens=2), **options)
    assert asked == [[(row, 0, 2) for row in range(6)]]
    assert is_complete(once).tolist() == [True, True, False, False, True, True]
    asked.clear()
    every = go_on(Engine(), once, sampling, PartialConfig(tokens=2, groups=1.0), **options)
    assert asked == [[(2, 2, 2), (3, 2, 2)], [(3, 4, 2)]]
    assert [row.tolist() for row in every.responses] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1], [0, 1]]
    assert every.finish_reasons.tolist() == [1, 1, 1, 0, 1, 1]
    assert [row.tolist() for row in every.versions] == [[4] * len(row) for row in every.responses]
    again = go_on(Engine(), every, sampling, PartialConfig(tokens=2, groups=1.0), **options)
    assert again.finish_reasons.tolist() == every.finish_reasons.tolist()
    assert len(asked) == 2


def test_the_log_probs_of_the_sampler_save_the_scoring_pass(cache, tmp_path, monkeypatch):
    config = lagged(1, loss=Grpo(), update__old_logprobs="sampler", run_dir=str(tmp_path / "run"))
    with opened(config) as trainer:
        calls, micro_batch = [], trainer.programs.micro_batch

        def counted(params, gradients, batch, is_update, base):
            calls.append(is_update)
            return micro_batch(params, gradients, batch, is_update, base)

        monkeypatch.setattr(trainer.programs, "micro_batch", counted)
        assert trainer.run()
    assert calls
    assert all(calls)
    rows = metrics(tmp_path / "run")
    assert rows[0]["ratio/mean"] == pytest.approx(1.0, abs=0.05)
    assert abs(rows[2]["update/1/kl_old"]) > 1e-6  # the first update is off policy already
    absent = ("policy/entropy", "sampler/logprob_gap_mean", "counterfactual/sspo_clip_fraction")
    assert not [name for name in absent if name in rows[0]]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loss": Sspo()}, "loss.adapt-entropy is on"),
        ({"loss": Grpo(), "advantage": AdvantageConfig(clip_b=2.5)}, "clip-b is 2.5"),
        ({"loss": Grpo(correction=RolloutCorrection(mode="truncate"))}, "correction.mode is truncate"),
        ({"loss": Grpo(), "segmenter": SegmenterConfig(rule="entropy")}, "rule is entropy"),
        (
            {"loss": Grpo(), "rollout__partial": PartialConfig(), "rollout__dynamic_sampling": 1},
            "dynamic-sampling is 1 with --rollout.partial",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes, match):
    with pytest.raises(ValueError, match=match):
        lagged(1, update__old_logprobs="sampler", **changes).check()
