"""The curriculum in a run: rates of what was judged, dropped groups included; a killed run goes on exactly."""

import dataclasses
import json
import pathlib
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sspo_jax.checker import Verdict
from sspo_jax.data.curriculum import CurriculumConfig, CurriculumStream
from sspo_jax.runs.checkpoint import steps_in
from sspo_jax.runs.policy import read_policy
from sspo_jax.runs.stopwatch import Stopwatch
from sspo_jax.trainer import stream as curriculum
from sspo_jax.trainer.grading import GradedRollout
from sspo_jax.trainer.loop import Trainer
from tests.trainer.conftest import SMALL, run_cli, small
from tests.trainer.test_resume import metrics, start, wait_for_step


def judged(groups: GradedRollout, statuses: str) -> GradedRollout:
    """The groups with other verdicts: c correct, w wrong, t none (and then left out)."""
    names = {"c": "correct", "w": "wrong", "t": "timeout"}
    verdicts = tuple(Verdict(names[letter], None, "", "", 0.0) for letter in statuses)
    return dataclasses.replace(groups, verdicts=verdicts, is_judged=np.array([letter != "t" for letter in statuses]))


def test_rates_are_of_judged_responses(groups: GradedRollout):
    """Four groups of four: 2 of 4; 1 of 2 judged; none judged; 0 of 4."""
    rates = curriculum.solve_rates(judged(groups, "cwcw" + "ctwt" + "tttt" + "wwww"))
    problems = [groups.problems[row].id for row in (0, 4, 12)]
    assert [(problem.id, rate) for problem, rate in rates] == list(zip(problems, (0.5, 0.5, 0.0), strict=True))


@pytest.fixture
def curious(trainer: Trainer) -> Iterator[Trainer]:
    """The trainer with a curriculum and one more draw; its random weights answer nothing right."""
    before, stream = trainer.config, trainer.stream
    rollout = dataclasses.replace(before.rollout, dynamic_sampling=1)
    trainer.config = dataclasses.replace(before, rollout=rollout, curriculum=CurriculumConfig(floor=0.2))
    trainer.stream = curriculum.open_stream(
        trainer.inputs.data, trainer.config.curriculum, batch_size=rollout.prompts, seed=trainer.config.seed
    )
    trainer.schedule = trainer.open_schedule()
    yield trainer
    trainer.config, trainer.stream = before, stream
    trainer.schedule = trainer.open_schedule()


def test_dropped_groups_count_too(curious: Trainer):
    """Nothing is solved, so dynamic sampling drops every group of both draws: eight problems with a rate of 0."""
    sampled, groups = curious.schedule.take(1, Stopwatch())
    assert len(groups) == 0
    stream = curious.stream
    assert isinstance(stream, CurriculumStream)
    assert list(stream.rates.values()) == [0.0] * 8
    assert {problem.id for problem in sampled.problems} == set(stream.rates)
    assert curriculum.metrics(stream) == {
        "curriculum/problems_seen": 8.0,
        "curriculum/solve_rate_mean": 0.0,
        "curriculum/weight_mean": 0.2,
        "curriculum/passed_over": 0.0,
    }


def test_without_one_nothing_is_logged(trainer: Trainer):
    assert small().curriculum is None
    assert curriculum.metrics(trainer.stream) == {}


OPTIONS = (
    *("--curriculum.floor", "0.2", "--curriculum.memory", "0", "--rollout.dynamic-sampling", "1"),
    *("--data.size", "6", "--evaluation.every", "1", "--evaluation.samples", "0", "--checkpoint.keep", "1"),
)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(cache: pathlib.Path, tmp_path: pathlib.Path):
    """With a curriculum over six problems, dynamic sampling and a best policy; killed without warning."""
    done = run_cli("train", str(SMALL), "--run-dir", "whole", *OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
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
    rows = metrics(tmp_path / "run")
    assert rows == metrics(tmp_path / "whole")
    assert rows[-1]["curriculum/problems_seen"] <= 6
    assert rows[-1]["curriculum/passed_over"] > 0  # memory 0: a rate of 0 or 1 makes the next candidate doubtful
    for step in (None, "best"):
        ours, _, number = read_policy(tmp_path / "run", step=step)
        theirs, _, expected = read_policy(tmp_path / "whole", step=step)
        assert number == expected
        assert np.array_equal(np.asarray(ours["embedding"]), np.asarray(theirs["embedding"]))
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole")]
    scores = [row["eval/arithmetic_held_out/accuracy"] for row in rows]
    best = {"step": int(np.argmax(scores)), "metric": "greedy", "score": max(scores)}
    assert [summary["best"] for summary in summaries] == [best, best]
    assert f"of step {best['step']}, greedy" in again.stdout
