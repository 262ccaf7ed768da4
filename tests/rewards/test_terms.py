"""Rewards: each term by hand, their sum, user functions in the workers."""

import dataclasses

import numpy as np
import pytest

from sspo_jax.checker import Verdict, Verifier
from sspo_jax.commands.options import parse, with_reward_options, without_reward_options
from sspo_jax.ranges import check
from sspo_jax.rewards import (
    Correctness,
    Format,
    Length,
    Overlong,
    RewardConfig,
    RewardError,
    Scored,
    UserReward,
    reward_metrics,
    score,
)


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1) as verifier:
        yield verifier


def verdict(status: str) -> Verdict:
    return Verdict(status, "1", "1", "", 0.0)


def metrics_of(scored: Scored) -> dict[str, float]:
    terms = {name: np.array(values) for name, values in scored.terms.items()}
    return reward_metrics(np.array(scored.rewards), np.array(scored.is_excluded), terms)


def test_metrics_of_nothing_are_zero():
    nothing = reward_metrics(np.zeros(1), np.ones(1, bool), {"format": np.ones(1)})
    assert nothing == {
        "reward/mean": 0.0, "reward/std": 0.0, "reward/excluded_fraction": 1.0, "reward/format_mean": 0.0
    }  # fmt: skip


def test_correctness_by_status():
    reward = Correctness(correct=2.0, wrong=-1.0, unparsed=-0.5)
    values = [reward.value(verdict(status)) for status in ("correct", "wrong", "unparsed", "timeout", "error")]
    assert values == [2.0, -1.0, -0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="expected 'exclude' or 'zero'"):
        Correctness(undecided="ignore")


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (r"It is \boxed{2}.", 1.0),
        (r"It is \boxed{\frac{1}{2}}.", 1.0),
        (r"It is \boxed 2", 1.0),
        (r"<think>\boxed{1}</think> It is \boxed{2}.", 1.0),
        ("It is 2.", 0.0),
        (r"\boxed{1} \boxed{2}", 0.0),
        (r"\boxed{", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{\frac{1}{2}", 0.0),
        (r"<think>\boxed{1}</think> It is 1.", 0.0),
    ],
)
def test_format(response: str, value: float):
    assert Format().value(response) == value


def test_format_with_thinking():
    reward = Format(require_think=True)
    assert reward.value(r"so 2.</think>\boxed{2}") == 1.0
    assert reward.value(r"\boxed{2}") == 0.0
    assert reward.value(r"a</think>b</think>\boxed{2}") == 0.0


@pytest.mark.parametrize(("length", "value"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_overlong_is_dapos_formula(length: int, value: float):
    """L_max 100, L_cache 20: nothing up to 80 tokens, then linear to -1 at 100."""
    assert Overlong(max_tokens=100, buffer_tokens=20).value(length) == value


def test_overlong_refuses_a_buffer_larger_than_the_budget():
    with pytest.raises(ValueError, match="buffer_tokens is 200"):
        Overlong(max_tokens=100, buffer_tokens=200)


def test_what_a_term_leaves_open_is_set_by_the_budget():
    config = RewardConfig(overlong=Overlong(weight=0.5), length=Length()).within(100)
    assert config.overlong == Overlong(max_tokens=100, buffer_tokens=20, weight=0.5)
    assert config.length == Length(scale_tokens=100)
    assert RewardConfig().within(100) == RewardConfig()
    given = RewardConfig(overlong=Overlong(max_tokens=50, buffer_tokens=10), length=Length(scale_tokens=7))
    assert given.within(100) == given
    with pytest.raises(ValueError, match="buffer_tokens is 200; expected 1 to max_tokens"):
        Overlong(buffer_tokens=200).within(100)
    for value in (lambda: Overlong().value(1), lambda: Length(only_correct=False).value(1, verdict("wrong"))):
        with pytest.raises(ValueError, match="is not set"):
            value()


def test_length_prices_correct_answers_only():
    reward = Length(scale_tokens=100)
    assert reward.value(25, verdict("correct")) == -0.25
    assert reward.value(1000, verdict("correct")) == -1.0
    assert reward.value(25, verdict("wrong")) == 0.0
    assert dataclasses.replace(reward, only_correct=False).value(25, verdict("wrong")) == -0.25


def test_the_sum_is_weighted(verifier: Verifier):
    """Correct and boxed: 1 + 0.5 - 0.25 * 0.5; wrong and boxed: 0.5; no answer: 0."""
    terms = [Correctness(), Format(weight=0.5), Overlong(max_tokens=100, buffer_tokens=20, weight=0.25)]
    scored = score(terms, [r"\boxed{2}", r"\boxed{3}", "no idea"], ["2", "2", "2"], [90, 10, 10], verifier=verifier)
    assert scored.rewards == [1.375, 0.5, 0.0]
    assert scored.is_excluded == [False, False, False]
    assert scored.terms == {"correctness": [1.0, 0.0, 0.0], "format": [1.0, 1.0, 0.0], "overlong": [-0.5, 0.0, 0.0]}
    metrics = metrics_of(scored)
    assert metrics["reward/mean"] == pytest.approx(0.625)
    assert metrics["reward/overlong_mean"] == pytest.approx(-0.5 / 3)


def test_undecided_samples_are_excluded_or_zero_as_asked(verifier: Verifier):
    verdicts = [verdict("correct"), verdict("timeout"), verdict("error")]
    responses, golds, lengths = [r"\boxed{1}"] * 3, ["1"] * 3, [1] * 3
    out = score([Correctness(), Format()], responses, golds, lengths, verifier=verifier, verdicts=verdicts)
    assert out.is_excluded == [False, True, True]
    assert out.rewards == [2.0, 0.0, 0.0]
    metrics = metrics_of(out)
    assert metrics["reward/mean"] == metrics["reward/correctness_mean"] + metrics["reward/format_mean"] == 2.0
    assert metrics["reward/excluded_fraction"] == pytest.approx(2 / 3)
    zero = Correctness(undecided="zero")
    kept = score([zero, Format()], responses, golds, lengths, verifier=verifier, verdicts=verdicts)
    assert kept.is_excluded == [False, False, False]
    assert kept.rewards == [2.0, 1.0, 1.0]


def test_a_user_function_runs_in_the_workers(verifier: Verifier):
    terms = [UserReward(function="difflib:get_close_matches", on_failure="exclude"), UserReward(function="operator:eq")]
    scored = score(terms, ["2", "3"], ["2", "2"], [1, 1], verifier=verifier)
    assert scored.terms["operator:eq"] == [1.0, 0.0]
    assert scored.is_excluded == [True, True]  # get_close_matches returns a list


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("operator:truediv", "failed in its worker: TypeError"),
        ("no_such_module:function", "No module named 'no_such_module'"),
        ("math:no_such_function", "math has no no_such_function"),
        ("difflib:ndiff", "expected a finite number|failed in its worker"),
    ],
)
def test_a_user_function_that_fails_stops_the_run_with_its_reason(function: str, message: str, verifier: Verifier):
    with pytest.raises(RewardError, match=message):
        score([UserReward(function=function)], ["2"], ["2"], [1], verifier=verifier)


FUNCTIONS = """
import numpy as np

def numpy_number(response, gold):
    return np.float32(0.25) if response == gold else np.array(0.5)

def unknown(response, gold):
    return None if response != gold else 1

def fails(response, gold):
    raise RuntimeError

constant = 3
"""


def test_what_a_user_function_may_return(verifier: Verifier, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A NumPy number counts as a number, None takes the sample out, and a failure may count as 0."""
    (tmp_path / "kinds_of_reward.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    kinds = {name: UserReward(function=f"kinds_of_reward:{name}") for name in ("numpy_number", "unknown", "fails")}
    kinds["fails"] = dataclasses.replace(kinds["fails"], on_failure="zero")
    scored = score(list(kinds.values()), ["2", "3"], ["2", "2"], [1, 1], verifier=verifier)
    assert scored.terms["kinds_of_reward:numpy_number"] == [0.25, 0.5]
    assert scored.terms["kinds_of_reward:unknown"] == [1.0, 0.0]
    assert scored.terms["kinds_of_reward:fails"] == [0.0, 0.0]
    assert scored.is_excluded == [False, True]
    assert scored.rewards == [1.25, 0.0]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("kinds_of_reward:absent", "kinds_of_reward has no absent"),
        ("kinds_of_reward:constant", "is a int; expected a function"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_starts(function, reason, tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "kinds_of_reward.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)  # which the `sspo` script does not have on its path
    with pytest.raises(ValueError, match=f"--reward.user {function} cannot be imported: .*{reason}.*working directory"):
        RewardConfig(user=(UserReward(function=function),)).check()
    RewardConfig(user=(UserReward(function="kinds_of_reward:fails"),)).check()


def test_functions_are_named_on_the_command_line():
    parsed = parse(RewardConfig, ["--user", "a.b:c", "d:e"], prog="x", default=RewardConfig())
    assert parsed.user == (UserReward(function="a.b:c"), UserReward(function="d:e"))
    ours = RewardConfig(user=(UserReward(function="a:b", weight=0.5),))
    assert parse(RewardConfig, [], prog="x", default=ours) == ours


def test_each_function_has_options_of_its_own():
    given = [
        "--steps",
        "3",
        "--reward.judge.concurrency",
        "32",
        "--reward.d.e:brief.on-failure=zero",
        "--reward.workers=1",
    ]
    given += ["--reward.length.weight", "2", "--reward.judge.timeout_seconds", "60", "--reward.judge.weight=-0.5"]
    others, found = without_reward_options(given)
    assert others == ["--steps", "3", "--reward.workers=1", "--reward.length.weight", "2"]
    config = RewardConfig(user=(UserReward(function="a.b:judge"), UserReward(function="d.e:brief")))
    assert with_reward_options(config, found).user == (
        UserReward(function="a.b:judge", concurrency=32, timeout_seconds=60.0, weight=-0.5),
        UserReward(function="d.e:brief", on_failure="zero"),
    )
    for options, message in [
        ({"mine": {"weight": "1"}}, "--reward.mine: no rewards of that name; there are judge, brief"),
        ({"judge": {"weight": "x"}}, "--reward.judge.weight is 'x'; expected a number"),
        ({"judge": {"concurrency": "0"}}, "--reward.judge.concurrency is 0; expected a whole number at least 1"),
        ({"judge": {"on-failure": "ignore"}}, "on_failure is 'ignore'; expected 'stop', 'exclude' or 'zero'"),
    ]:
        with pytest.raises(ValueError, match=message):
            with_reward_options(config, options)
    with pytest.raises(ValueError, match=r"--reward\.judge\.weight has no value; expected one of type float"):
        without_reward_options(["--reward.judge.weight"])


def test_a_user_function_that_overruns_is_killed(verifier: Verifier, tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "slow_reward.py").write_text(
        "import time\n\ndef wait(response, gold, seconds):\n    time.sleep(seconds)\n    return 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    slow = UserReward(function="slow_reward:wait", timeout_seconds=0.5, arguments={"seconds": 30})
    with pytest.raises(RewardError, match=r"took longer than 0\.5 s"):
        score([slow], ["2"], ["2"], [1], verifier=verifier)
    quick = dataclasses.replace(slow, arguments={"seconds": 0}, timeout_seconds=20.0)
    assert score([quick], ["2"], ["2"], [1], verifier=verifier).rewards == [1.0]


def test_sequences_of_other_lengths_are_refused(verifier: Verifier):
    with pytest.raises(ValueError, match="'golds': 2"):
        score([Correctness()], ["1"], ["1", "2"], [1], verifier=verifier)


def test_two_terms_of_a_kind_keep_their_names_apart(verifier: Verifier):
    scored = score([Format(), Format(require_think=True)], [r"\boxed{1}"], ["1"], [1], verifier=verifier)
    assert scored.terms == {"format": [1.0], "format_2": [0.0]}


def test_the_config_lists_its_terms():
    config = RewardConfig(format=Format(weight=0.1), overlong=Overlong(max_tokens=10, buffer_tokens=5))
    assert [type(term).__name__ for term in config.terms] == ["Correctness", "Format", "Overlong"]
    with pytest.raises(ValueError, match=r"--reward.memory-limit-gib is 0.1; expected a finite number at least 0.5"):
        check(RewardConfig(memory_limit_gib=0.1), "--reward.")
    with pytest.raises(ValueError, match="expected module:function"):
        UserReward(function="nothing")
