"""Random responses and golds: `verify` never raises and is never late. Ten minutes under `make test-all`."""

import os
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sspo_jax.checker import STATUSES, Verifier

from .corpus import read_corpus

LIMIT_SECONDS = 2.0
FUZZ_SECONDS = float(os.environ.get("SSPO_FUZZ_SECONDS", "600"))
PIECES = sorted({piece for pair in read_corpus() for text in (pair.answer, pair.gold) for piece in text.split()})
COMMANDS = [
    r"\frac",
    r"\sqrt",
    r"\boxed{",
    r"{",
    r"}",
    r"(",
    r")",
    r"[",
    r"]",
    r"\{",
    r"\}",
    r"^",
    r"_",
    r",",
    r";",
    r"=",
    r"<",
    r">",
    r"\le",
    r"\pm",
    r"\text{",
    r"\sum",
    r"\int",
    r"\lim",
    r"|",
    r"!",
    r"%",
    r"$",
    r"$$",
    r"&",
    r"\\",
    r"\cup",
]


def mutated(generator: random.Random) -> str:
    """An answer of the corpus, or several, with pieces taken out, put in, repeated and exchanged."""
    parts = [generator.choice(PIECES) for _ in range(generator.randint(1, 4))]
    text = generator.choice(["", " ", "+", ",", "^", r"\cdot "]).join(parts)
    for _ in range(generator.randint(0, 6)):
        position = generator.randint(0, len(text))
        action = generator.randint(0, 3)
        if action == 0:
            text = text[:position] + generator.choice(COMMANDS) + text[position:]
        elif action == 1:
            text = text[:position] + text[position + generator.randint(1, 3) :]
        elif action == 2:
            text = text[:position] + text[position : position + 4] * generator.randint(2, 40) + text[position:]
        else:
            text = (
                text[:position]
                + chr(generator.choice([0, 9, 0x200B, 0x2212, 0xFF10, 0xD800, 0x1F600]))
                + text[position:]
            )
    return text


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, timeout_seconds=LIMIT_SECONDS, cache_size=0) as verifier:
        verifier.call("math:sqrt", 2.0, timeout_seconds=60.0).result()
        yield verifier


def check(verifier: Verifier, response: str, gold: str) -> None:
    for _ in range(3):  # late once may be the other jobs of the machine, late each time is the checker
        started = time.monotonic()
        verdict = verifier.verify(response, gold)
        seconds = time.monotonic() - started
        if seconds < LIMIT_SECONDS + 1:
            break
    else:
        pytest.fail(f"late three times: {response!r} against {gold!r}")
    assert verdict.status in STATUSES
    # A defect of the checker shows as an error that names an exception; a gold that cannot be read is an error too.
    assert verdict.status != "error" or "gold" in verdict.reason, (response, gold, verdict.reason)


@settings(max_examples=120, deadline=None)
@given(response=st.text(max_size=200), gold=st.text(max_size=40))
def test_any_text(verifier: Verifier, response: str, gold: str):
    check(verifier, response, gold)
    check(verifier, f"\\boxed{{{response}}}", gold)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mutated_answers(verifier: Verifier, seed: int):
    generator = random.Random(seed)
    check(verifier, f"\\boxed{{{mutated(generator)}}}", mutated(generator))


@pytest.mark.slow
def test_mutated_answers_for_minutes(verifier: Verifier):
    deadline = time.monotonic() + FUZZ_SECONDS
    seed = 0
    while time.monotonic() < deadline:
        seed += 1
        generator = random.Random(f"slow {seed}")
        check(verifier, f"\\boxed{{{mutated(generator)}}}", mutated(generator))
