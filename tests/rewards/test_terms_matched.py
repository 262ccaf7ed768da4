"""Letters, patterns and schemas."""

import pytest

from sspo_jax.checker import Verifier
from sspo_jax.commands.options import parse
from sspo_jax.rewards import Choice, CodeTests, JsonSchema, Regex, RewardConfig, RewardError, UserReward, score
from sspo_jax.rewards.matching import chosen, is_found, is_valid


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"So it is \boxed{B}.", "B"),
        (r"\boxed{\text{(b) seven}}", "B"),
        ("The answer is (C).", "C"),
        ("**Answer:** **D**", "D"),
        ("A is wrong, the answer is B. Option C is not it. My choice: D", "D"),
        ("I think it must be\n(A)", "A"),
        ("C.", "C"),
        ("<think>The answer is A.</think> The answer is B", "B"),
        ("A long day it was", None),
        ("The answer is unclear", None),
        ("Answer: K", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(response: str, letter: str | None):
    for gold in "ABCD":
        assert chosen(response, gold, letters="ABCD") == float(gold == letter)


def test_golds_of_choices():
    assert chosen("B", "(B)", letters="ABCD") == chosen("B", r"\boxed{B}", letters="ABCD") == 1.0
    with pytest.raises(ValueError, match="the gold answer is 'seven'; expected one of the letters ABCD"):
        chosen("B", "seven", letters="ABCD")


def test_patterns():
    assert is_found("It is 2.5, yes", "2.5", pattern=r"\b{gold}\b", whole=False)
    assert not is_found("It is 235", "2.5", pattern="{gold}", whole=False)
    assert is_found(" yes ", "", pattern="yes|no", whole=True)
    assert not is_found("yes and no", "", pattern="yes|no", whole=True)
    with pytest.raises(ValueError, match="expected a regular expression: "):
        Regex(pattern="(")
    with pytest.raises(ValueError, match="pattern is empty"):
        Regex()


def test_a_pattern_that_takes_for_ever_is_ended():
    with Verifier(workers=1) as verifier:
        slow = Regex(pattern="(a+)+b", timeout_seconds=1.0, on_failure="zero")
        assert score([slow], ["a" * 40], ["b"], [1], verifier=verifier).terms == {"regex": [0.0]}
        plain = Regex(pattern="a", timeout_seconds=30.0)
        assert score([plain], ["a" * 40], ["b"], [1], verifier=verifier).terms == {"regex": [1.0]}


SCHEMA = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": 0}}}


def test_schemas():
    pytest.importorskip("jsonschema")
    for response, expected in [
        ('{"age": 3}', True),
        ('Here:\n```json\n{"age": 3}\n```', True),
        ('<think>{"age": -1}</think>{"age": 3}', True),
        ('{"age": "3"}', False),
        ("{}", False),
        ("no JSON", False),
        ("[" * 100_000, False),
    ]:
        assert is_valid(response, {}, schema=SCHEMA, field="schema") is expected
    assert is_valid("3", {"schema": '{"type": "integer"}'}, schema=SCHEMA, field="schema")
    RewardConfig(user=(JsonSchema(schema=SCHEMA),)).check()
    with pytest.raises(RewardError, match="schema of JsonSchema: 'no' is not valid"):
        RewardConfig(user=(JsonSchema(schema={"type": "no"}),)).check()


def test_without_the_package_a_schema_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"pip install 'sspo-jax\[rewards\]'"):
        RewardConfig(user=(JsonSchema(schema=SCHEMA),)).check()


def test_built_in_rewards_are_named_on_the_command_line():
    parsed = parse(RewardConfig, ["--user", "choice", "code_tests", "a:b"], prog="x", default=RewardConfig())
    assert parsed.user == (Choice(), CodeTests(), UserReward(function="a:b"))
    with pytest.raises((ValueError, SystemExit)):
        parse(RewardConfig, ["--user", "nothing"], prog="x", default=RewardConfig())
