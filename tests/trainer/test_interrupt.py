"""Ctrl-C in the middle of a step: the run ends soon, keeps the last finished step, and can go on exactly."""

import contextlib
import dataclasses
import errno
import inspect
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest

from sspo_jax.config import CheckpointConfig, EvaluationConfig, TrainConfig
from sspo_jax.data.curriculum import CurriculumConfig
from sspo_jax.distributed import interrupt
from sspo_jax.distributed.interrupt import Interrupted, StopRequest
from sspo_jax.files import DiskFullError
from sspo_jax.rewards import Length, RewardConfig, RewardError
from sspo_jax.runs.checkpoint import steps_in
from sspo_jax.runs.display import Display
from sspo_jax.runs.policy import read_trained
from sspo_jax.runs.threads import ThreadDiedError
from sspo_jax.trainer.grading import Grader
from sspo_jax.trainer.loop import Trainer, train
from sspo_jax.trainer.setup import check
from sspo_jax.trainer.stream import open_stream
from tests.trainer.conftest import SMALL, one_device, run_cli, run_directory, small
from tests.trainer.test_resume import metrics, wait_for_step


class StopIn(StopRequest):
    """Asked to stop at the second poll of the n-th occurrence (from 0) of a stage, named by the function it is in."""

    def __init__(self, stage: str, occurrence: int):
        super().__init__(print)
        self._stage, self._left = stage, occurrence

    def polls(self) -> Callable[[], None]:
        is_the_stage = inspect.stack()[1].function == self._stage
        self._left -= is_the_stage
        if not is_the_stage or self._left != -1:
            return super().polls()
        looked = []

        def poll() -> None:
            looked.append(None)
            if len(looked) == 2:
                self.name = "SIGINT"
                raise Interrupted

        return poll


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[Trainer]:
    """A trainer on one device."""
    with one_device():
        inputs = check(config)
    directory = run_directory(config, inputs)
    with Grader(config.reward, inputs.tokenizer) as judge:
        yield Trainer(config, inputs, directory, Display(quiet=True, silent=True), judge)
    directory.close()


@contextlib.contextmanager
def started_again(trainer: Trainer, stop: StopRequest) -> Iterator[None]:
    """What a new process would have: no memory of the steps before, though the compiled programs."""
    trainer.stop = stop
    trainer.stream = open_stream(
        trainer.inputs.data,
        trainer.config.curriculum,
        batch_size=trainer.config.rollout.prompts,
        seed=trainer.config.seed,
    )
    with Grader(trainer.config.reward, trainer.inputs.tokenizer) as judge:
        trainer.grader = judge
        yield


def test_a_run_interrupted_in_every_stage_is_the_uninterrupted_one(cache: pathlib.Path, tmp_path: pathlib.Path):
    """A curriculum and dynamic sampling, so that a dropped rollout has changed the data cursor in two ways."""
    config = small(
        warm_start=None, mesh__fsdp=1, steps=3, curriculum=CurriculumConfig(floor=0.2), rollout__dynamic_sampling=1,
        evaluation__every=2, evaluation__samples=0, update__micro_rows=1, checkpoint=CheckpointConfig(every=10),
        reward=RewardConfig(length=Length(scale_tokens=100, only_correct=False)),
        rollout__stop_token_ids=tuple(range(20, 22)), optimizer__learning_rate=1e-4,
    )  # fmt: skip
    whole, folder = tmp_path / "whole", tmp_path / "run"
    stages = [  # (where, its number among those of this start), steps recorded, checkpoints
        (("evaluate", 0), [], []),
        (("_draw", 0), [0], []),
        (("_draw", 3), [0, 1], [1]),  # the second draw of the second step
        (("score", 0), [0, 1], [1]),
        (("evaluate", 0), [0, 1], [1, 2]),  # trained, but not evaluated
        (("score", 0), [0, 1, 2], [1, 2]),
    ]
    with opened(dataclasses.replace(config, run_dir=str(folder))) as trainer:
        assert trainer.run()
        shutil.copytree(folder, whole)
        for name in ("checkpoints", "rollouts", "evaluations"):
            shutil.rmtree(folder / name)
        (folder / "metrics.jsonl").unlink()
        for stage, recorded, saved in stages:
            with started_again(trainer, StopIn(*stage)):
                assert not trainer.run(), stage
            assert [row["step"] for row in metrics(folder)] == recorded, stage
            assert steps_in(folder / "checkpoints") == saved, stage
        with started_again(trainer, StopRequest(print)):
            assert trainer.run()
        assert trainer.state.ahead is None  # nothing is sampled ahead without a lag
    assert metrics(folder) == metrics(whole)
    assert not [name for row in metrics(folder) for name in row if name.startswith("rollout/age")]
    assert [row["step"] for row in metrics(folder)] == [0, 1, 2, 3]
    assert metrics(folder)[2]["optim/grad_norm"] > 0
    for step in (1, 2, 3):
        file = f"rollouts/step_{step:06d}.jsonl"
        assert (folder / file).read_text() == (whole / file).read_text()
    ours, theirs = read_trained(folder), read_trained(whole)
    assert ours[2] == theirs[2] == 3
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), ours[0], theirs[0])


def test_the_summary_of_a_run_that_was_asked_to_stop_says_so(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(self: Trainer, step: int) -> dict[str, float]:
        raise Interrupted

    monkeypatch.setattr(Trainer, "step", interrupted)
    config = small(warm_start=None, mesh__fsdp=1, evaluation=EvaluationConfig(), run_dir=str(tmp_path / "run"))
    with one_device():
        summary = train(config)
    assert (summary.is_complete, summary.steps) == (False, 0)
    assert not (tmp_path / "run" / "summary.json").exists()


def dying_thread() -> None:
    def fail() -> None:
        raise KeyError("lost")

    thread = threading.Thread(target=fail, name="writer")
    thread.start()
    thread.join()


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def failing_reward() -> None:
    raise RewardError("my_reward:brevity failed in its worker: KeyError")


@pytest.mark.parametrize(
    ("happens", "error", "said", "done"),
    [
        (dying_thread, ThreadDiedError, "the thread writer ended with KeyError", 2),
        (full_disk, DiskFullError, "no space is left in", 1),
        (failing_reward, RewardError, "my_reward:brevity failed in its worker: KeyError", 1),
    ],
)
def test_what_ends_a_run_in_its_second_step_is_said_with_what_is_saved(
    cache: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[], None],
    error: type[Exception],
    said: str,
    done: int,
):
    """A thread beside the run lets the step end; a disk that refuses and a reward that fails do not."""

    def step(self: Trainer, step: int) -> dict[str, float]:
        if step == 2:
            happens()
        self.state.step, self.state.data = step, self.stream.state()
        shown = ("reward/mean", "response/length_mean", "throughput/rollout_tokens_per_second")
        times = (f"time/{stage}_seconds" for stage in ("rollout", "verify", "score", "update"))
        return dict.fromkeys((*shown, *times), 1.0)

    monkeypatch.setattr(Trainer, "step", step)
    config = small(
        warm_start=None, mesh__fsdp=1, evaluation=EvaluationConfig(), checkpoint=CheckpointConfig(every=10),
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with one_device(), pytest.raises(error, match=f"(?s){said}.*stopped after step {done}, saved in"):
        train(config)
    assert steps_in(tmp_path / "run" / "checkpoints") == [done]


def test_several_processes_ask_each_other_about_once_a_second(monkeypatch: pytest.MonkeyPatch):
    """A call takes 1/8 s here and 1/4 s there: both ask after 1, 2 and then every 4 calls, and stop together."""
    clock, exchanges, calls = [0.0], [], 0
    monkeypatch.setattr(interrupt.jax, "process_count", lambda: 2)
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: clock[0])

    def gather(vote: list) -> list:
        exchanges.append(calls)
        return [vote, [clock[0] > 2.0, 2 * vote[1]]]

    monkeypatch.setattr(interrupt, "gather", gather)
    stop = StopRequest(print)
    poll = stop.polls()
    with contextlib.suppress(Interrupted):
        while clock[0] < 10.0:
            calls += 1
            clock[0] += 0.125
            poll()
    assert exchanges == [1, 3, 7, 11, 15, 19]
    assert not stop  # another process was asked


LONG = ("--rollout.prompts", "64", "--rollout.group-size", "16", "--rollout.slots", "1", "--evaluation.samples", "0")


@pytest.mark.slow
def test_ctrl_c_in_a_rollout_of_the_real_program(cache: pathlib.Path, tmp_path: pathlib.Path):
    """SIGINT to the whole group, as a terminal does it, in a rollout of 1,024 responses in one slot."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "sspo_jax", "train", str(SMALL), "--run-dir", str(run), "--log.quiet", *LONG]
    process = subprocess.Popen(
        [*command, "--checkpoint.every", "10"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_step(run, 1, process)
    time.sleep(0.3)  # into the next step's rollout
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    output, _ = process.communicate(timeout=120)
    took = time.monotonic() - asked
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    print(f"ended {took:.2f} s after SIGINT; the rollout before took {row['time/rollout_seconds']:.2f} s")
    assert process.returncode == 0, output
    assert "stopped after step 1," in output
    assert row["step"] == 1
    assert steps_in(run / "checkpoints") == [1]
    assert not (run / "rollouts" / "step_000002.jsonl").exists()


@pytest.mark.slow
def test_ctrl_c_in_the_warm_start_leaves_nothing(tmp_path: pathlib.Path):
    arguments = ["train", str(SMALL), "--run-dir", "run", "--log.quiet", "--warm-start.updates"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sspo_jax", *arguments, "100000"],
        cwd=tmp_path,
        env={**os.environ, "SSPO_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    while "loss" not in (line := process.stdout.readline()):
        assert process.poll() is None, line
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "begins again" in output
    assert not list((tmp_path / "cache" / "warm_start").glob("*"))
    again = run_cli(*arguments, "30", "--seed", "1", cwd=tmp_path)  # nothing was done: another run may take its place
    assert again.returncode == 0, again.stdout + again.stderr
