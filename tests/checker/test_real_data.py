"""Every gold and every worked solution of the data folder."""

import collections
import json
import pathlib
import random
import re
import time

import pytest

from sspo_jax.checker import Verifier
from sspo_jax.data.audit import reformattings

UNREADABLE = {"dsr_sub-1187"}  # its braces do not balance
# The last box of these solutions is only one of the answers that their last sentence lists, and the gold is that box.
SEVERAL_ANSWERS = {
    "math-train-0334", "math-train-0504", "math-train-3997", "math-train-4253", "math-train-5419", "math-train-6843",
    "math-train-7414", "math-test-0414", "math-test-2703", "math-test-2716", "math-test-2912", "math-test-4860",
}  # fmt: skip


def rows_of(folder: pathlib.Path, *names: str) -> list[dict]:
    files = [folder / f"{name}.jsonl" for name in names] if names else sorted(folder.glob("*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.open(encoding="utf-8")]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(timeout_seconds=10.0) as verifier:
        yield verifier


@pytest.mark.slow
def test_every_gold_matches_itself_and_its_reformattings(real_data: pathlib.Path, verifier: Verifier):
    rows = rows_of(real_data)
    assert len(rows) > 48_000
    pairs = [
        (row["id"], form, row["answer"]) for row in rows for form in [row["answer"], *reformattings(row["answer"])]
    ]
    verdicts = verifier.verify_batch([f"\\boxed{{{form}}}" for _, form, _ in pairs], [gold for _, _, gold in pairs])
    missed = {name for (name, _, _), verdict in zip(pairs, verdicts, strict=True) if not verdict.is_correct}
    assert missed <= UNREADABLE | {"dsr_sub-0309", "olympiadbench-1965"}  # notes and prose, equal as texts only
    assert len(missed) < 0.001 * len(rows)


@pytest.mark.slow
def test_no_gold_matches_that_of_another_problem_unless_equal(real_data: pathlib.Path, verifier: Verifier):
    """Hits whose normal forms differ are rare, and every one is an equality by a rule that can be named."""
    golds = sorted({row["answer"] for row in rows_of(real_data)})
    reasons: collections.Counter[str] = collections.Counter()
    for seed in range(3):
        others = golds.copy()
        random.Random(seed).shuffle(others)
        verdicts = verifier.verify_batch([f"\\boxed{{{gold}}}" for gold in golds], others)
        for gold, other, verdict in zip(golds, others, verdicts, strict=True):
            if verdict.is_correct and gold != other:
                reasons[verdict.reason.split("; ")[-1]] += 1
    assert sum(reasons.values()) < 0.005 * 3 * len(golds), reasons
    assert not any("words" in reason or "text" in reason for reason in reasons), reasons


@pytest.mark.slow
def test_worked_solutions_arrive_at_their_gold(real_data: pathlib.Path, verifier: Verifier):
    rows = rows_of(real_data, "train/math", "train/math_extra4500", "eval/math500", "train/gsm8k", "eval/gsm8k")
    rows += rows_of(real_data, "eval/minerva", "eval/aime24")
    rows = [row for row in rows if row.get("solution")]
    started = time.process_time()
    verdicts = verifier.verify_batch([row["solution"] for row in rows], [row["answer"] for row in rows])
    assert len(rows) / (time.process_time() - started) > 1_000  # ten times that without the type checks of the tests
    missed = {row["id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.is_correct}
    assert missed == SEVERAL_ANSWERS


@pytest.mark.slow
def test_olympiad_solutions_are_read_where_they_state_an_answer(real_data: pathlib.Path, verifier: Verifier):
    """Many are proofs: nothing may be guessed from them, and where something is stated it is mostly the gold.

    docs/checker.md lists the classes of the rest.
    """
    rows = [row for row in rows_of(real_data, "eval/olympiadbench") if row.get("solution")]
    verdicts = verifier.verify_batch([row["solution"] for row in rows], [row["answer"] for row in rows])
    counts = collections.Counter(verdict.status for verdict in verdicts)
    assert counts["timeout"] == 0
    assert counts["correct"] >= 437
    assert counts["wrong"] <= 29


def rewritten(gold: str) -> list[str]:
    """A gold as others would write it; forms that are no change are left out."""
    is_plain = re.fullmatch(r"-?[\d.,/]+", gold) is not None
    forms = [f"\\displaystyle {gold}", f"{{{gold}}}", f"\\boldsymbol{{{gold}}}", f"\\({gold}\\)", gold + "\\,"]
    forms.append(gold.replace("\\text{", "\\mathrm{").replace("\\frac", "\\tfrac"))
    forms.append(re.sub(r"\\(?:text|mbox|textbf)\s*\{([^{}]*)\}", r" \1", gold))
    if "text" not in gold and "begin" not in gold:
        for command, sign in UNICODE.items():
            gold_in_unicode = gold.replace(command, sign) if command in gold else ""
            forms += [gold_in_unicode] if gold_in_unicode else []
    if is_plain:
        forms += [f"x = {gold}", f"\\text{{Answer: }}{gold}", f"{gold}\\text{{ units}}"]
    return [form for form in forms if form != gold]


UNICODE = {
    "\\pi": "π",
    "\\infty": "∞",
    "\\cup": "∪",
    "-": "−",
    "^\\circ": "°",
    "\\pm": "±",
    "\\theta": "θ",
    "\\cdot": "·",
}


@pytest.mark.slow
def test_every_gold_matches_what_others_would_write(real_data: pathlib.Path, verifier: Verifier):
    golds = sorted({row["answer"] for row in rows_of(real_data)})
    pairs = [(form, gold) for gold in golds for form in rewritten(gold)]
    verdicts = verifier.verify_batch([f"\\boxed{{{form}}}" for form, _ in pairs], [gold for _, gold in pairs])
    missed = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if not verdict.is_correct]
    assert len(missed) < 0.001 * len(pairs), missed[:20]


def changed(gold: str, generator: random.Random) -> list[str]:
    """A gold with one digit, sign or bracket exchanged, or one entry of a list left out."""
    forms = []
    digits = [index for index, character in enumerate(gold) if character.isdigit()]
    if digits:
        index = generator.choice(digits)
        digit = (int(gold[index]) + generator.randint(1, 9)) % 10
        forms.append(gold[:index] + str(digit) + gold[index + 1 :])
    if "," in gold:
        forms.append(gold.rpartition(",")[0])
    exchanges = [("\\sin", "\\cos"), ("\\cup", "\\cap"), ("\\sqrt", ""), ("\\pi", ""), ("+", "-")]
    forms += [gold.replace(old, new, 1) for old, new in exchanges if old in gold]
    return [form for form in forms if form.strip()]


@pytest.mark.slow
def test_no_gold_matches_itself_with_one_thing_changed(real_data: pathlib.Path, verifier: Verifier):
    """The hits that remain are equal: `(-1)^{n+1}` and `(-1)^{n-1}`, powers of "units", a comma that ends an answer."""
    golds = sorted({row["answer"] for row in rows_of(real_data)})
    generator = random.Random(1)
    pairs = [(form, gold) for gold in golds for form in changed(gold, generator)]
    verdicts = verifier.verify_batch([f"\\boxed{{{form}}}" for form, _ in pairs], [gold for _, gold in pairs])
    believed = [(*pair, v.reason) for pair, v in zip(pairs, verdicts, strict=True) if v.is_correct]
    assert len(believed) <= 6, believed
