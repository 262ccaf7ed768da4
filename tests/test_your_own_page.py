"""docs/your_own.md and docs/environments.md: every file of theirs is run as it stands."""

import asyncio
import importlib
import pathlib
import re
import sys

import pytest

from sspo_jax.environments import Environment, Reply, Task
from sspo_jax.files import read_json_lines
from tests.trainer.conftest import run_cli

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
FILES = dict(
    re.findall(r"^`(\w+\.py)`\..*?```python\n(.*?)```", (DOCS / "your_own.md").read_text("utf-8"), re.S | re.M)
)
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "environments.md").read_text("utf-8"), re.DOTALL)


def test_each_file_is_short():
    assert list(FILES) == ["my_rewards.py", "my_environments.py", "my_objective.py", "my_tracker.py", "mine.py"]
    for name, text in FILES.items():
        assert len(text.splitlines()) < 30, name
    assert len(BLOCKS[-1].splitlines()) < 40  # the adapter


@pytest.mark.slow
def test_all_of_them_in_one_run(tmp_path: pathlib.Path):
    """As a user does it, in a folder with nothing else; small enough to take seconds."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    small = ("--rollout.prompts", "4", "--rollout.group-size", "4", "--update.per-rollout", "2", "--steps", "2")
    own = ("--loss.most", "3", "--reward.brief.weight", "0.2", "--reward.distinct.concurrency", "8")
    elsewhere = tmp_path / "elsewhere"  # the folder of the experiment is found from another one too
    elsewhere.mkdir()
    options = ("--run-dir", "run", "--evaluation.sets", "none", "--log.quiet")
    trackers = ("--log.trackers", "tensorboard")  # a tracker is looked up from the working directory alone
    ran = run_cli("train", "../mine.py", *options, *small, *own, *trackers, cwd=elsewhere)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran = run_cli("train", "mine.py", *options, *small, *own, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = [row for _, row in read_json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert [line.split()[0] for line in (tmp_path / "run" / "lines.txt").read_text().splitlines()][-2:] == ["1", "2"]
    for term in ("correctness", "brief", "right_and_short", "my_rewards:distinct", "environment"):
        assert f"reward/{term}_mean" in rows[-1], term
    texts = [row["response"] for _, row in read_json_lines(tmp_path / "run" / "rollouts" / "step_000002.jsonl")]
    assert any("Sure?" in text for text in texts)


@pytest.fixture
def page(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """The modules of docs/environments.md."""
    (tmp_path / "backwards_page.py").write_text(BLOCKS[0])
    (tmp_path / "adapted_page.py").write_text(BLOCKS[-1])
    (tmp_path / "their_environment.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: importlib.import_module(name)
    for name in ("backwards_page", "adapted_page", "their_environment"):
        sys.modules.pop(name, None)


THEIRS = """
class Rubric:
    async def score_rollout(self, messages, state):
        state["reward"] = float(state["answer"] in messages[-1]["content"]) - 0.1 * state["turn"]

class Theirs:
    rubric = Rubric()
    async def is_completed(self, messages, state):
        return state["turn"] >= 2 or state["answer"] in messages[-1]["content"]
    async def env_response(self, messages, state):
        return [{"role": "user", "content": f"not {messages[-1]['content']}"}]

def load_environment():
    return Theirs()
"""


def test_the_environments_of_the_page(page):
    backwards = page("backwards_page").Backwards(tries=2)
    assert isinstance(backwards, Environment)
    backwards.reset(Task(id="a", problem="Spell backwards: abc", gold=""))
    assert backwards.step("cxa") == Reply(text="2 letters are right. Try again.")
    assert backwards.step("cba ") == Reply(reward=1.0)


def test_the_adapter_of_the_page(page):
    adapted = page("adapted_page").Adapted

    async def play(*lines: str) -> list[Reply]:
        environment = adapted(make="their_environment:load_environment")
        await environment.reset(Task(id="a", problem="Which?", gold="7"))
        return [await environment.step(line) for line in lines]

    assert asyncio.run(play("3", "it is 7")) == [Reply(text="not 3"), Reply(reward=1.0 - 0.2)]
    assert asyncio.run(play("3", "4")) == [Reply(text="not 3"), Reply(reward=-0.2)]
    assert len(adapted.shared) == 1
