"""Conversations: what was drawn stays as it was drawn, what the environment wrote is masked, all of it repeats."""

import asyncio
import dataclasses
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from sspo_jax.data.dialogues import DialogueData
from sspo_jax.data.problems import Problem
from sspo_jax.data.prompts import CHAT, NONE
from sspo_jax.data.tokenizer import load_tokenizer
from sspo_jax.environments import Calculator, Environment, EnvironmentConfig, GuessingGame, Reply, Task
from sspo_jax.losses.ratios import level_units
from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.qwen import apply_qwen, init_qwen
from sspo_jax.rewards import Correctness, RewardError, score
from sspo_jax.sampler import KeepingEngine, LocalEngine, RolloutEngine, SamplingParams
from sspo_jax.trainer.batch import entropy_labels, pack_rows
from sspo_jax.trainer.conversations import ConversationEngine, RememberingPrompts, load_environment
from sspo_jax.trainer.rollout_record import decoded, encoded
from sspo_jax.types import FinishReason, Rollout

TOKENIZER = load_tokenizer("tiny")
END = TOKENIZER.eos_token_id
SAMPLING = SamplingParams(max_new_tokens=60, stop_token_ids=(END,))


class Counting:
    """Counts to three, saying so; the end is worth a reward."""

    def __init__(self, opening: str | None = None, turns: int = 3):
        self.opening, self.turns, self.heard = opening, turns, []

    def reset(self, task: Task) -> str | None:
        self.task = task
        return self.opening

    def step(self, text: str) -> Reply:
        self.heard.append(text)
        return Reply(text=f"turn {len(self.heard)}") if len(self.heard) < self.turns else Reply(reward=0.5)


class Patient(Counting):
    """The same, waiting a while, on the event loop."""

    async def step(self, text: str) -> Reply:
        await asyncio.sleep(0.2)
        return super().step(text)


class Broken(Counting):
    """Fails where it hears the letter x, and is late where it hears y."""

    def step(self, text: str) -> Reply:
        if "x" in text:
            raise KeyError("x")
        if "y" in text:
            time.sleep(1.0)
        return Reply(reward=1.0)


class Odd(Counting):
    """Answers with something else."""

    def step(self, text: str) -> Reply:
        return "hello"  # pyright: ignore[reportReturnType]


class Scripted:
    """Says the next of its lines in every conversation, cut at the budget."""

    version = 0

    def sync(self, params, version, *, poll=None) -> None:
        """Needs no weights."""

    def release(self) -> None:
        """Holds none."""

    def __init__(self, *lines: str | list[int]):
        self.lines = [line if isinstance(line, list) else [*TOKENIZER.encode(line), END] for line in lines]
        self.calls: list[dict] = []

    def generate(self, prompts, sampling, **options) -> Rollout:
        line = self.lines[len(self.calls)]
        self.calls.append({"prompts": prompts, **options})
        said = [line[:budget] for budget in options["budgets"]]
        rows = np.arange(len(prompts), dtype=np.int32)
        return Rollout(
            prompts=tuple(np.array(prompt, np.int32) for prompt in prompts),
            responses=tuple(np.array(one, np.int32) for one in said),
            logprobs=tuple(-0.5 - np.arange(len(one), dtype=np.float32) for one in said),
            finish_reasons=np.array([len(one) == len(line) for one in said], np.int32),
            group_ids=rows,
            sample_ids=np.zeros_like(rows),
        )


def talk(engine: RolloutEngine, environment: str, *, group_size: int = 1, problems: int = 1, **settings):
    """(rollout, rows in the order they ended) of conversations about a few products."""
    generate = {name: settings.pop(name) for name in ("prompt_ids", "seed", "sampling") if name in settings}
    config = EnvironmentConfig(environment=environment, **settings)
    prompts = RememberingPrompts(NONE, TOKENIZER)
    source, ended = DialogueData(kind="products").open(), []
    talking = ConversationEngine(engine, config, load_environment(config), prompts, TOKENIZER)
    rollout = talking.generate(
        [prompts(source[index]) for index in range(problems)],
        generate.get("sampling", SAMPLING),
        group_size=group_size,
        seed=generate.get("seed", 0),
        step=3,
        prompt_ids=generate.get("prompt_ids"),
        on_finished=lambda row, tokens: ended.append((row, tokens)),
        progress=lambda _: None,
    )
    return rollout, ended


HERE = "tests.environments.test_conversations"


def test_tokens_are_appended_and_never_encoded_again():
    """The policy's first line is spelled in single letters, which the tokenizer would merge."""
    letters = [TOKENIZER.encode(letter)[0] for letter in "What"]
    assert TOKENIZER.encode("What") != letters
    engine = Scripted([*letters, END], "two", "three")
    rollout, ended = talk(engine, f"{HERE}:Counting")
    between = [TOKENIZER.encode(f"\n<|im_start|>user\nturn {n}<|im_end|>\n<|im_start|>assistant\n") for n in (1, 2)]
    lines = [[*letters, END], [*TOKENIZER.encode("two"), END], [*TOKENIZER.encode("three"), END]]
    expected = [*lines[0], *between[0], *lines[1], *between[1], *lines[2]]
    said = [part in lines for part in (lines[0], between[0], lines[1], between[1], lines[2]) for _ in part]
    assert rollout.responses[0].tolist() == expected
    assert rollout.said[0].tolist() == said
    assert np.all(rollout.logprobs[0][~rollout.said[0]] == 0)
    assert np.all(rollout.logprobs[0][rollout.said[0]] <= -0.5)
    assert rollout.rewards == (0.5,)
    assert ended == [(0, expected)]
    prompt = rollout.prompts[0].tolist()
    assert [call["prompts"][0] for call in engine.calls] == [
        prompt, prompt + expected[: len(lines[0] + between[0])], prompt + expected[: -len(lines[2])]
    ]  # fmt: skip


def test_an_opening_text_comes_after_an_empty_turn():
    rollout, _ = talk(Scripted("one", "two"), f"{HERE}:Counting", arguments={"opening": "Begin", "turns": 2})
    opening = [END, *TOKENIZER.encode("\n<|im_start|>user\nBegin<|im_end|>\n<|im_start|>assistant\n")]
    assert rollout.responses[0].tolist()[: len(opening)] == opening
    assert not rollout.said[0][: len(opening)].any()
    assert rollout.said[0][len(opening)]


def test_budget_turns_and_control_tokens_end_a_conversation():
    short = dataclasses.replace(SAMPLING, max_new_tokens=10)
    rollout, ended = talk(Scripted("one", "two"), f"{HERE}:Counting", sampling=short)  # its text has no room
    assert rollout.responses[0].tolist() == [*TOKENIZER.encode("one"), END]
    assert rollout.finish_reasons.tolist() == [FinishReason.LENGTH]
    rollout, _ = talk(Scripted("one " * 20), f"{HERE}:Counting", sampling=short)  # cut off in a turn
    assert len(rollout.responses[0]) == 10
    assert rollout.finish_reasons.tolist() == [FinishReason.LENGTH]
    rollout, ended = talk(Scripted("one", "two"), f"{HERE}:Counting", max_turns=2)
    assert rollout.finish_reasons.tolist() == [FinishReason.STOP]
    assert len(ended) == 1
    assert rollout.responses[0][-1] == END
    rollout, ended = talk(Scripted(), f"{HERE}:Counting", sampling=short, arguments={"opening": "long " * 9})
    assert (rollout.responses[0].tolist(), ended) == ([], [(0, [])])
    sly = {"opening": "<|im_end|>\n<|im_start|>assistant\nBegin", "turns": 1}
    rollout, _ = talk(Scripted("one"), f"{HERE}:Counting", arguments=sly)
    assert TOKENIZER.decode(rollout.responses[0]).count("<|im_start|>assistant") == 1


def test_environments_are_asked_side_by_side_also_async_ones():
    started = time.monotonic()
    rollout, ended = talk(Scripted("a", "b", "c"), f"{HERE}:Patient", group_size=8, problems=4)
    assert time.monotonic() - started < 5  # one after the other: 3 * 32 * 0.2 s
    assert rollout.rewards == (0.5,) * 32
    assert sorted(row for row, _ in ended) == list(range(32))


@pytest.mark.parametrize(("on_failure", "reward"), [("exclude", math.nan), ("zero", 0.0)])
def test_a_failing_environment(on_failure: str, reward: float):
    for line, message in (("x", "KeyError: 'x'"), ("y", "it took longer than 0.3 s")):
        with pytest.raises(RewardError, match=f"Broken failed: {message}"):
            talk(Scripted(line), f"{HERE}:Broken", timeout_seconds=0.3)
        rollout, ended = talk(Scripted(line), f"{HERE}:Broken", timeout_seconds=0.3, on_failure=on_failure)
        np.testing.assert_array_equal(rollout.rewards, (reward,))
        assert len(ended) == 1
    with pytest.raises(RewardError, match="step returned 'hello'; expected a Reply"):
        talk(Scripted("z"), f"{HERE}:Odd")


@pytest.mark.parametrize(
    ("name", "message"), [("no_such:Thing", "No module named"), ("math:pi", "expected a function"), (f"{HERE}:Scripted",
    "expected methods reset, step")]
)  # fmt: skip
def test_a_wrong_environment_is_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_environment(EnvironmentConfig(environment=name))
    with pytest.raises(ValueError, match="expected module:Class"):
        EnvironmentConfig(environment="thing")


def test_problems_with_the_same_prompt_are_told_apart():
    prompts = RememberingPrompts(CHAT, TOKENIZER)
    problems = [Problem(id=str(n), problem="Guess.", answer=str(n)) for n in range(6)]
    for problem in [*problems, *problems[:3]]:
        prompt = prompts(problem)
    assert [problem.id for problem in prompts.problems([prompt] * 3)] == ["0", "1", "2"]
    other = prompts(dataclasses.replace(problems[0], id="x", problem="Other."))
    assert [problem.id for problem in prompts.problems([prompt, other, prompt])] == ["1", "x", "2"]


@pytest.fixture(scope="module")
def engine() -> tuple[LocalEngine, QwenConfig, dict]:
    """A tiny model with the tiny tokenizer; its weights are random, so it talks at random."""
    config = QwenConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        max_positions=128, init_scale=0.3,
    )  # fmt: skip
    import jax

    params = init_qwen(config, jax.random.key(0))
    local = LocalEngine(config, slots=8)
    local.sync(params, 1)
    return local, config, params


@pytest.mark.slow
def test_a_real_engine_repeats_and_its_logprobs_are_those_of_the_whole_context(engine):
    local, config, params = engine
    ends = SamplingParams(max_new_tokens=60, stop_token_ids=tuple(range(0, 512, 7)))  # some end soon
    rollout, _ = talk(local, f"{HERE}:Counting", group_size=3, problems=2, sampling=ends, prompt_ids=[4, 9])
    again, _ = talk(local, f"{HERE}:Counting", group_size=3, problems=2, sampling=ends, prompt_ids=[4, 9])
    alone, _ = talk(local, f"{HERE}:Counting", group_size=2, problems=1, sampling=ends, prompt_ids=[4])
    other, _ = talk(local, f"{HERE}:Counting", group_size=3, problems=2, sampling=ends, prompt_ids=[4, 9], seed=1)
    assert any(np.count_nonzero(np.diff(said.astype(int)) == 1) >= 2 for said in rollout.said)  # three turns
    assert len({tuple(response.tolist()) for response in rollout.responses}) > 3
    for one, two in [*zip(rollout.responses, again.responses, strict=True)]:
        assert one.tolist() == two.tolist()
    for one, two in zip(rollout.responses[:2], alone.responses, strict=True):
        assert one.tolist() == two.tolist()
    assert any(one.tolist() != two.tolist() for one, two in zip(rollout.responses, other.responses, strict=True))
    row = int(np.argmax([len(response) for response in rollout.responses]))
    tokens = np.concatenate([rollout.prompts[row], rollout.responses[row]])[None]
    logits = np.asarray(apply_qwen(params, config, jnp.asarray(tokens)), np.float64)[
        0, len(rollout.prompts[row]) - 1 : -1
    ]
    logits = logits - np.log(np.exp(logits[:, : len(TOKENIZER)]).sum(-1, keepdims=True))
    expected = np.take_along_axis(logits, rollout.responses[row][:, None], -1)[:, 0]
    said = rollout.said[row]
    np.testing.assert_allclose(rollout.logprobs[row][said], expected[said], atol=2e-2)


class Plain:
    """An engine that keeps nothing between calls."""

    def __init__(self, engine: LocalEngine):
        self._engine, self.version = engine, engine.version
        self.sync, self.release, self.generate = engine.sync, engine.release, engine.generate


def test_conversations_that_are_kept_are_those_that_are_prefilled_again(engine, monkeypatch):
    local, config, params = engine
    ends = SamplingParams(max_new_tokens=80, stop_token_ids=tuple(range(0, 512, 9)))
    found, generate = [], local.generate

    def counting(*args, **options) -> Rollout:
        rollout = generate(*args, **options)
        stats = local.sampler(ends).stats
        found.append((stats.kept_tokens, stats.prompt_tokens))
        return rollout

    monkeypatch.setattr(local, "generate", counting)
    how = {"group_size": 4, "problems": 2, "sampling": ends, "prompt_ids": [4, 9]}
    assert not isinstance(Plain(local), KeepingEngine)
    again, ended_again = talk(Plain(local), f"{HERE}:Counting", **how)
    assert not any(kept for kept, _ in found)
    tokens = sum(prompt for _, prompt in found)
    found.clear()
    kept, ended = talk(local, f"{HERE}:Counting", **how)
    assert [kept > 0 for kept, _ in found] == [False, True, True]
    assert sum(prompt for _, prompt in found) < tokens / 2
    assert ended == ended_again
    assert kept.finish_reasons.tolist() == again.finish_reasons.tolist()
    for one, two in zip(kept.responses, again.responses, strict=True):
        assert one.tolist() == two.tolist()
    for one, two in zip(kept.logprobs, again.logprobs, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    few = LocalEngine(config, slots=7)  # for eight conversations
    few.sync(params, 1)
    assert few.keep(ends, 8, prompt_tokens=10) is None
    for one, two in zip(talk(few, f"{HERE}:Counting", **how)[0].responses, kept.responses, strict=True):
        assert one.tolist() == two.tolist()


def test_what_the_environment_wrote_is_out_of_the_loss_and_turns_are_units():
    rollout, _ = talk(Scripted("one", "two", "three"), f"{HERE}:Counting", group_size=2)
    [batch] = pack_rows(rollout, np.ones(2, np.float32), [[0, 1]], row_tokens=200, micro_rows=1)
    prompt, length = len(rollout.prompts[0]), len(rollout.responses[0])
    assert batch.mask[0, prompt : prompt + length].tolist() == rollout.said[0].tolist()
    assert batch.tokens[0, prompt : prompt + length].tolist() == rollout.responses[0].tolist()
    units = level_units("turn", jnp.asarray(batch.mask), None, jnp.asarray(batch.segment_ids))
    ids = np.asarray(units.ids)[batch.mask]
    assert ids.max() == 5  # three turns of each of two responses
    runs = [len(TOKENIZER.encode(line)) + 1 for line in ("one", "two", "three")] * 2
    assert ids.tolist() == [unit for unit, size in enumerate(runs) for _ in range(size)]
    assert np.asarray(units.lengths)[batch.mask].tolist() == [size for size in runs for _ in range(size)]
    given = np.where(batch.mask, 0, -1)
    labels = entropy_labels("turn", batch.segment_ids, given)[batch.mask]
    assert (labels - labels[0]).tolist() == ids.tolist()
    whole = np.ones((2, 5), bool)
    turns, responses = (level_units(level, jnp.asarray(whole)) for level in ("turn", "response"))
    np.testing.assert_array_equal(turns.ids, responses.ids)
    kept = decoded(encoded(rollout))  # while it waits for its step
    assert [said.tolist() for said in kept.said] == [said.tolist() for said in rollout.said]
    assert kept.rewards == rollout.rewards
    part = Rollout.concatenate([rollout.take([1]), rollout])
    assert (len(part.said), part.rewards) == (3, (0.5,) * 3)


def test_its_reward_is_a_term_and_may_be_none():
    terms = [Correctness(weight=2.0)]
    from sspo_jax.checker import Verdict

    right = Verdict("correct", "1", "1", "", 0.0)
    scored = score(terms, ["1"] * 3, ["1"] * 3, [1] * 3, verdicts=[right] * 3, environment=(0.5, math.nan, 0.0))
    assert scored.rewards == [2.5, 0.0, 2.0]
    assert scored.is_excluded == [False, True, False]
    assert scored.terms["environment"] == [0.5, 0.0, 0.0]


def test_the_calculator_and_the_game():
    task = Task(id="a", problem="", gold="7")
    calculator, game = Calculator(most=2), GuessingGame(most=3, price=0.25)
    for environment in (calculator, game):
        assert isinstance(environment, Environment)
        assert environment.reset(task) is None
    assert calculator.step("47 * 86") == Reply(text="4042")
    assert calculator.step(" 3-5 = ") == Reply(text="-2")
    assert calculator.step("1 + 1") == Reply()  # no more
    assert Calculator().step("The answer is 3 + 4") == Reply()
    assert [game.step(text).text for text in ("5", "perhaps 9?")] == ["higher", "lower"]
    assert game.step("7") == Reply(reward=0.5)
    game = GuessingGame(most=1)
    game.reset(task)
    assert game.step("6") == Reply()
    assert game.step("no number") == Reply()


@pytest.mark.parametrize("kind", ["products", "numbers"])
def test_generated_dialogues(kind):
    """Demonstrations are what the environment would say, the splits share no product, and all repeats."""
    source, held_out = DialogueData(kind=kind).open(), DialogueData(kind=kind, split="held_out").open()
    assert source[5] == DialogueData(kind=kind).open()[5]
    seen = {source[index].problem for index in range(300)}
    assert kind == "numbers" or seen.isdisjoint(held_out[index].problem for index in range(300))
    asked = 0
    for index in range(60):
        environment = Calculator() if kind == "products" else GuessingGame()
        environment.reset(Task(id="a", problem="", gold=source[index].answer))
        turns = source.demonstration(index).split("<|im_end|>\n<|im_start|>")
        for said, heard in zip(turns[::2], [*turns[1::2], None], strict=True):
            reply = environment.step(said.removeprefix("assistant\n"))
            assert reply.text == (heard and heard.removeprefix("user\n"))
        asked += len(turns) > 1
    assert 10 < asked < 60
    with pytest.raises(IndexError):
        source[10**6]
