"""Stories: right answers, two splits that share nothing, the same problems everywhere."""

import dataclasses
import re

import pytest

from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.sources import data_from_record
from sspo_jax.data.stories import ONE_STEP, TWO_STEPS, StoryData, split_of


def test_known_problems():
    """Problems are a function of (seed, index): a change to them raises `_VERSION`."""
    source = StoryData(most_steps=2).open()
    assert source[0] == source[0]
    assert source[0] != StoryData(seed=1, most_steps=2).open()[0]
    assert {source[i].level for i in range(50)} == {1, 2}
    assert {StoryData(most_steps=1).open()[i].level for i in range(50)} == {1}
    assert {StoryData(least_steps=2, most_steps=2).open()[i].level for i in range(50)} == {2}
    assert StoryData(most_steps=2).open().digest != StoryData(most_steps=1).open().digest
    with pytest.raises(IndexError, match="expected 0 to 999999"):
        source[1_000_000]


def by_hand(problem: str) -> int:
    """What the sentence says, read from its verbs."""
    a, b, *more = map(int, re.findall(r"\d+", problem))
    c = more[0] if more else 0
    if "gives" in problem:
        return a + b - c
    if "gave" in problem:
        return a - b
    if "mice" in problem:
        return a * b - c
    is_product = "in each" in problem or " of " in problem.partition(".")[0]
    return a * b + c if is_product else a + b + c


def test_answers():
    source = StoryData(most_steps=2).open()
    for index in range(500):
        problem = source[index]
        assert int(problem.answer) == by_hand(problem.problem) > 0, problem
        assert "{" not in problem.problem
        assert problem.problem.endswith("?")


def test_the_splits_share_no_numbers():
    """Every (kind, numbers) belongs to one split, about one in eight to the held-out one."""
    shares = []
    for kind in (*ONE_STEP, *TWO_STEPS):
        largest = [range(2, most + 1) if most else (0,) for most in kind.largest]
        splits = [split_of(kind, (a, b, c)) for a in largest[0] for b in largest[1] for c in largest[2]]
        shares.append(splits.count("held_out") / len(splits))
    assert 0.08 < sum(shares) / len(shares) < 0.17
    train = {re.sub(r"[A-Z][a-z]+|[a-z]+", "", StoryData(most_steps=2).open()[i].problem) for i in range(300)}
    assert len(train) > 200


@pytest.mark.parametrize("steps", [(0, 1), (1, 3), (2, 1)])
def test_steps_are_one_or_two(steps):
    with pytest.raises(ValueError, match="expected 1 <= least_steps <= most_steps <= 2"):
        StoryData(least_steps=steps[0], most_steps=steps[1])


def test_the_experiment_has_room_for_its_prompts():
    """By the words of the longest prompt, which no tokenizer that knows English cuts in more than two on average."""
    from sspo_jax.commands.experiments import load_experiment
    from sspo_jax.data.prompts import load_template

    config = load_experiment("smollm2_135m_sspo")
    template = load_template(config.prompt)
    source = config.data.open()
    assert max(len(template.fill(source[i].problem).split()) for i in range(200)) < config.rollout.max_prompt_tokens
    rollout = config.rollout  # a row has room for a prompt and all of its responses, each with the prompt's last token
    assert config.update.row_tokens > rollout.max_prompt_tokens - 1 + rollout.group_size * (rollout.max_new_tokens + 1)


def test_a_record_of_stories_is_read_as_stories():
    """What a run's config.json holds; a record of arithmetic that says little stays arithmetic."""
    for data in (StoryData(split="held_out", size=64, most_steps=1), ArithmeticData(split="held_out", size=64)):
        assert data_from_record(dataclasses.asdict(data)) == data
    assert data_from_record({"split": "held_out", "size": 2}) == ArithmeticData(split="held_out", size=2)
