"""A run with an environment: several terms, GDPO, turns as units; stopped and gone on with it is the same run."""

import pathlib

import jax
import pytest

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.files import read_json_lines
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import init_qwen
from tests.serving.server_process import ServerProcess
from tests.trainer.conftest import SMALL, run_cli
from tests.trainer.launch import Launch, environment, run_alone

pytestmark = pytest.mark.slow

EXPERIMENT = """
import dataclasses
from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import AdvantageConfig
from sspo_jax.data.dialogues import DialogueData
from sspo_jax.environments import EnvironmentConfig
from sspo_jax.rewards import Format, RewardConfig, UserReward

def config():
    base = load_experiment({small!r})
    environment = EnvironmentConfig(environment="talker:Talker", max_turns=3)
    return dataclasses.replace(
        base,
        data=DialogueData(kind="products"),
        warm_start=None,
        rollout=dataclasses.replace(base.rollout, max_new_tokens=60, environment=environment, stop_token_ids={ends}),
        update=dataclasses.replace(base.update, row_tokens=128),
        loss=dataclasses.replace(base.loss, ratio_level="turn"),
        advantage=AdvantageConfig(estimator="gdpo"),
        reward=RewardConfig(format=Format(weight=0.1), user=(UserReward(function="talker:spread"),), workers=1),
        evaluation=dataclasses.replace(base.evaluation, data=(DialogueData(kind="products", seed=1, size=4),)),
    )
"""
TALKER = """
from sspo_jax.environments import Reply

class Talker:
    def reset(self, task):
        self.heard = 0
    async def step(self, text):
        self.heard += 1
        return Reply(text="go on", reward=0.25 * self.heard) if self.heard < 3 else Reply(reward=len(text) / 100)

async def spread(responses, step):
    return [{"long": len(response), "step": step} for response in responses]
"""


def test_a_run_that_is_resumed_is_the_same_run(tmp_path: pathlib.Path):
    (tmp_path / "talker.py").write_text(TALKER)
    ends = tuple(range(3, 512, 5))  # weights are random, and some turns end soon
    (tmp_path / "mine.py").write_text(EXPERIMENT.format(small=str(SMALL), ends=ends))
    rows = {}
    for name, lengths in (("whole", ["3"]), ("parts", ["1", "3"])):
        for steps in lengths:
            ran = run_cli("train", "mine.py", "--run-dir", name, "--steps", steps, "--log.quiet", cwd=tmp_path)
            assert ran.returncode == 0, ran.stdout + ran.stderr
        rows[name] = [
            {key: value for key, value in row.items() if not key.startswith(("time/", "throughput/", "verify/seconds"))}
            for _, row in read_json_lines(tmp_path / name / "metrics.jsonl")
        ]
    assert [row["step"] for row in rows["parts"]] == [0, 1, 2, 3]
    for whole, part in zip(rows["whole"][2:], rows["parts"][2:], strict=True):
        assert {**whole, **part} == whole
        assert whole["reward/environment_mean"] > 0
        assert whole["reward/long_mean"] > whole["reward/step_mean"] == whole["step"]
    texts = [row["response"] for _, row in read_json_lines(tmp_path / "parts" / "rollouts" / "step_000003.jsonl")]
    again = [row["response"] for _, row in read_json_lines(tmp_path / "whole" / "rollouts" / "step_000003.jsonl")]
    assert texts == again
    assert any(text.count("go on") == 2 for text in texts)


def test_from_a_server_and_on_two_processes_it_is_the_same_run(tmp_path: pathlib.Path):
    """Texts and rewards are those of one process; also where two processes train with a lag from a server."""
    (tmp_path / "talker.py").write_text(TALKER)
    ends = tuple(range(3, 512, 9))  # a server takes 64
    (tmp_path / "mine.py").write_text(EXPERIMENT.format(small=str(SMALL), ends=ends))
    shape = load_experiment(str(SMALL)).model.shape
    assert shape is not None
    save_qwen(tmp_path / "start", init_qwen(shape, jax.random.key(1)), shape, tokenizer=load_tokenizer("tiny"))
    variables = environment(tmp_path)
    both = ("--steps", "2", "--distributed.heartbeat-seconds", "150")
    run_alone(tmp_path / "alone", tmp_path / "mine.py", variables, "--steps", "2")
    launch = Launch(tmp_path / "both", tmp_path / "mine.py", variables, per_process=both)
    assert launch.wait() == [0, 0], launch.text(0) + launch.text(1)
    run_alone(tmp_path / "lagging", tmp_path / "mine.py", variables, "--steps", "2", "--rollout.lag", "1")
    server = ServerProcess(str(tmp_path / "start"), options=("--slots", "8", "--gather-seconds", "0.05"))
    try:
        through = ("--rollout.server.url", server.url)
        run_alone(tmp_path / "served", tmp_path / "mine.py", variables, "--steps", "2", *through)
        options = (*both, *through, "--rollout.lag", "1")
        ahead = Launch(tmp_path / "ahead", tmp_path / "mine.py", variables, per_process=options)
        assert ahead.wait() == [0, 0], ahead.text(0) + ahead.text(1)
    finally:
        server.kill()
    for name, like in (("both", "alone"), ("served", "alone"), ("ahead", "lagging")):
        for step in (1, 2):
            one, two = (
                [(row["response"], row["reward"]) for _, row in read_json_lines(tmp_path / run / file)]
                for run, file in ((name, f"rollouts/step_{step:06d}.jsonl"), (like, f"rollouts/step_{step:06d}.jsonl"))
            )
            assert one == two, (name, step)
            assert any("go on" in text for text, _ in one)
