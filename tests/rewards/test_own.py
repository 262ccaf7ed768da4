"""Reward functions of one's own: what they may ask for, what they may return, when they run."""

import asyncio
import dataclasses
import pathlib
import time

import numpy as np
import pytest

from sspo_jax.checker import Verdict, Verifier
from sspo_jax.data.problems import Problem
from sspo_jax.rewards import Format, RewardConfig, RewardError, UserReward
from sspo_jax.rewards.calls import OF_A_GROUP, OF_A_PROBLEM, OF_A_RESPONSE, Wanted, describe, outcomes
from sspo_jax.rewards.hosts import AsyncHost
from sspo_jax.trainer.grading import Grader, Grades

FUNCTIONS = """
import asyncio, os, time
import numpy as np

def pair(text, answer): return float(text == answer)
def pair_by_name(response, gold, scale=2): return scale * (response == gold)
def everything(problem, gold, solution, id, set, level, subject, extra, step, response, tokens, finish, verdict,
               sample):
    return {"right": verdict.is_correct, "long": len(tokens), "cut": finish == "length", "extra": extra["bonus"],
            "step": np.int64(step), "sample": sample, "id": id == "p1", "none": (solution, level) == (None, None)}
def misspelled(response, probelm): return 0
def unknown(response, gold, mood): return 0
def with_argument(response, gold, mood): return mood
def only_keyword(*, gold): return len(gold)
def group(responses, gold, verdicts, tokens, finishes):
    best = max(map(len, responses))
    return [None if r == "skip" else {"longest": len(r) == best, "right": v.is_correct}
            for r, v in zip(responses, verdicts)]
def group_of_one_response(responses, finish): return [0]
def group_short(responses): return [1.0]
async def patient(response, seconds=0.5):
    await asyncio.sleep(seconds)
    return len(response)
async def patient_group(responses, extra):
    await asyncio.sleep(0.01)
    return np.arange(len(responses)) + extra["bonus"]
def slow(response):
    time.sleep(0.5)
    return 1
async def blocks(response):
    if response == "block":
        time.sleep(60)
    await asyncio.sleep(0.3)
    return 1
async def dies(response):
    os._exit(3)
def odd(response): return {"a": 1} if response == "x" else {"b": 2.0, "a": None} if response == "y" else {"b": 3}
def text(response): return np.str_("x")
"""
NAME = "own_reward_functions"


class Words:
    """A tokenizer whose tokens are characters; 0 ends a text."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in tokens if token)


@pytest.fixture(scope="module", autouse=True)
def functions(tmp_path_factory: pytest.TempPathFactory):
    """The functions above, importable here and in workers, which all tests share: they take long to start."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{NAME}.py").write_text(FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with Verifier(workers=2) as shared:
            close, shared.close = shared.close, lambda: None
            patch.setattr(RewardConfig, "verifier", lambda self: shared)
            yield
            shared.close = close


def own(function: str, **settings: object) -> UserReward:
    return UserReward(function=f"{NAME}:{function}", **settings)


def problems(count: int) -> list[Problem]:
    return [Problem(id=f"p{n}", problem="1 + 1?", answer="2", extra={"bonus": 10.0}) for n in range(count)]


def grade(users: tuple[UserReward, ...], texts: list[str], *, group_size: int = 1, pause: float = 0.0) -> Grades:
    """As a training step does it; the responses come first to last, and sampling goes on for `pause` seconds."""
    config = RewardConfig(user=users, workers=2)
    with Grader(config, Words(), stop_token_ids=(0,)) as grader:
        grading = grader.begin(problems(len(texts) // group_size), group_size, step=7)
        for row, text in enumerate(texts):
            grading.finished(row, [*map(ord, text), 0] if not text.endswith("...") else [*map(ord, text)])
        time.sleep(pause)
        return grading.result(np.array([len(text) + 1 for text in texts]))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("pair", Wanted(("response", "gold"), is_positional=True)),
        ("pair_by_name", Wanted(("response", "gold"))),
        ("everything", Wanted((*OF_A_PROBLEM, *OF_A_RESPONSE))),
        ("only_keyword", Wanted(("gold",))),
        ("group", Wanted(("responses", "gold", "verdicts", "tokens", "finishes"), is_group=True)),
        ("patient", Wanted(("response",), is_async=True)),
        ("patient_group", Wanted(("responses", "extra"), is_group=True, is_async=True)),
    ],
)
def test_parameters_say_what_is_wanted(function: str, wanted: Wanted):
    found = describe(f"{NAME}:{function}")
    assert dataclasses.replace(found, names=()) == dataclasses.replace(wanted, names=())
    assert set(found.names) == set(wanted.names)
    assert describe("operator:eq") == Wanted(("response", "gold"), is_positional=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("misspelled", "its parameter probelm is not known; a function of one response may ask for problem, gold"),
        ("unknown", "its parameter mood is not known"),
        ("group_of_one_response", "its parameter finish is not known; a function of a whole group .*, finishes"),
    ],
)
def test_an_unknown_parameter_is_refused_before_anything_starts(function: str, message: str):
    with pytest.raises(ValueError, match=message):
        describe(f"{NAME}:{function}")
    with pytest.raises(ValueError, match=f"--reward.user {NAME}:{function}: {message}"):
        RewardConfig(user=(own(function),)).check()
    assert describe(f"{NAME}:unknown", ["mood"]) == Wanted(("response", "gold"))


def test_what_functions_are_given_and_what_becomes_of_it():
    """One rollout with functions of all kinds: terms, weights, exclusion and the sum."""
    users = (
        own("everything", weight=2.0, weights={"long": 0.1, "step": 0.0}),
        own("group", weights={"right": 0.5}),
        own("patient_group"),
        own("pair", on_failure="raise"),
        own("with_argument", arguments={"mood": 0.25}, concurrency=2),
    )
    texts = [r"\boxed{2}", "no...", "skip", r"\boxed{3} at length"]
    grades = grade(users, texts, group_size=2)
    terms = {name: values.tolist() for name, values in grades.terms.items()}
    assert terms == {
        "correctness": [1, 0, 0, 0],
        "right": [1, 0, 0, 0],
        "long": [10, 5, 5, 20],
        "cut": [0, 1, 0, 0],
        "extra": [10, 10, 10, 10],
        "step": [7, 7, 7, 7],
        "sample": [0, 1, 0, 1],
        "id": [0, 0, 1, 1],
        "none": [1, 1, 1, 1],
        "longest": [1, 0, 0, 1],
        "right_2": [1, 0, 0, 0],
        f"{NAME}:patient_group": [10, 11, 10, 11],
        f"{NAME}:pair": [0, 0, 0, 0],
        f"{NAME}:with_argument": [0.25] * 4,
    }
    assert grades.is_judged.tolist() == [True, True, False, True]
    assert grades.weights["long"] == pytest.approx(0.2)
    assert grades.weights["right_2"] == 0.5
    expected = sum(grades.weights[name] * np.array(values) for name, values in terms.items())
    np.testing.assert_allclose(grades.rewards, np.where(grades.is_judged, expected, 0))


def test_terms_that_differ_between_responses():
    """A term that a response lacks is 0 there, and None in a dict takes it out."""
    grades = grade((own("odd"),), ["x", "y", "z"])
    assert {name: values.tolist() for name, values in grades.terms.items()} == {
        "correctness": [0, 0, 0], "a": [1, 0, 0], "b": [0, 0, 3]
    }  # fmt: skip
    assert grades.is_judged.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("group_short", "expected a list with one entry for"),
        ("text", "expected a finite number, None, or a dict"),
        ("dies", "its process ended during the call, twice"),
    ],
)
def test_a_failure_stops_the_run_or_not(function: str, message: str):
    with pytest.raises(RewardError, match=message):
        grade((own(function),), ["a", "b"], group_size=2)
    kept = grade((own(function, on_failure="zero"), own(function, on_failure="exclude")), ["a", "b"], group_size=2)
    assert kept.is_judged.tolist() == [False, False]


@pytest.mark.parametrize(("function", "concurrency"), [("patient", None), ("patient", 32), ("slow", 32)])
def test_slow_functions_run_side_by_side_while_others_are_sampled(function: str, concurrency: int | None):
    """32 responses, half a second each: at once once the processes are up, or hidden behind the sampling."""
    user = own(function, concurrency=concurrency, timeout_seconds=60.0)  # 32 processes that start share two cores
    with Grader(RewardConfig(user=(user,), workers=2), Words()) as grader:
        for pause, most in ((0.0, 60.0), (0.0, 3.0), (3.0, 1.0)):  # processes start in the first
            grading = grader.begin(problems(32), 1)
            for row in range(32):
                grading.finished(row, [65, 0])
            time.sleep(pause)
            started = time.monotonic()
            grades = grading.result(np.full(32, 2))
            assert time.monotonic() - started < most  # one after the other on two workers it were 8
            assert np.all(grades.rewards == 1)


def test_an_async_function_that_overruns_is_cancelled_and_one_that_blocks_is_ended():
    with pytest.raises(RewardError, match=r"patient took longer than 0\.2 s"):
        grade((own("patient", timeout_seconds=0.2),), ["a"])
    blocked = grade((own("blocks", timeout_seconds=1.0, on_failure="exclude"),), ["a", "block", "b"])
    assert blocked.is_judged.tolist()[1:] == [False, True]  # what was under way beside it may have overrun too
    assert blocked.rewards.tolist()[1:] == [0, 1]


def test_a_host_takes_calls_from_any_thread_and_refuses_them_once_closed():
    host = AsyncHost(4)

    async def many() -> list[object]:
        calls = [host.submit(f"{NAME}:patient", ("a" * n, 0.01), {}, seconds=60) for n in range(20)]
        return await asyncio.gather(*map(asyncio.wrap_future, calls))

    assert asyncio.run(many()) == list(range(20))
    waiting = host.submit(f"{NAME}:patient", ("a", 30), {}, seconds=60)
    host.close()
    with pytest.raises(RuntimeError, match="was closed"):
        waiting.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        host.submit(f"{NAME}:patient", ("a",), {}, seconds=1)


def test_groups_that_differ_in_one_term_alone_have_something_to_learn_for_gdpo(tmp_path: pathlib.Path):
    from sspo_jax.trainer.grading import GradedRollout
    from tests.evaluation.test_judging import rollout_of  # the same rollout of texts

    class Letters(Words):
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

    grades = grade((own("odd", weights={"b": 1 / 3}),), ["x", "z", "x", "x"], group_size=2)
    rollout = dataclasses.replace(rollout_of(["x", "z", "x", "x"], Letters()), group_ids=np.array([0, 0, 1, 1]))
    groups = GradedRollout(rollout=rollout, **vars(grades))
    assert groups.informative().tolist() == []
    assert groups.informative(each_term=True).tolist() == [0, 1]
    other = dataclasses.replace(groups, terms={"correctness": np.ones(4)}, weights={"correctness": 1.0})
    both = GradedRollout.concatenate([groups, other])
    assert both.terms["b"].tolist() == [0, 3, 0, 0, 0, 0, 0, 0]
    assert both.take(np.array([1])).columns()[0].tolist() == [[0], [0], [3]]


def test_outcomes_by_hand():
    assert outcomes(np.float32(0.5), Wanted(()), 1, "f") == [({"": 0.5}, False)]
    assert outcomes([1, None], Wanted((), is_group=True), 2, "f") == [({"": 1.0}, False), ({}, True)]
    for bad in (float("nan"), "1", 1j, {}, {1: 2}, {"a": "b"}, np.ones(2), Verdict):
        with pytest.raises(RewardError, match="f returned"):
            outcomes(bad, Wanted(()), 1, "f")


def test_the_older_word_for_stopping_is_known():
    assert own("pair", on_failure="raise") == own("pair")
    with pytest.raises(ValueError, match="expected 'stop', 'exclude' or 'zero'"):
        own("pair", on_failure="ignore")
    assert [term.weight for term in RewardConfig(format=Format(weight=3)).named_terms().values()] == [1.0, 3]
    assert set(OF_A_GROUP) & set(OF_A_RESPONSE) == {"tokens"}
