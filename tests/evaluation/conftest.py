"""A checker and a sampler small enough to foresee their answers, and made-up evaluations."""

import concurrent.futures
import pathlib
import re
import types

import numpy as np
import pytest
from transformers import AutoTokenizer

from sspo_jax import data
from sspo_jax.checker import Verdict, Verifier
from sspo_jax.data.problems import ListSource, Problem
from sspo_jax.evaluation.judging import Judge
from sspo_jax.evaluation.results import Evaluation
from sspo_jax.evaluation.scoring import SampleRow, score_set
from sspo_jax.types import FinishReason, Rollout


class FakeVerifier(Verifier):
    """Correct: the box holds the gold's text."""

    def __init__(self):
        pass

    def submit(self, response, gold, **options):
        box = re.search(r"\\boxed\{(.*?)\}", response)
        status = "unparsed" if box is None else "correct" if box.group(1) == gold else "wrong"
        future = concurrent.futures.Future()
        future.set_result(Verdict(status, box and box.group(1), gold, "fake", 0.0))
        return future


class FakeSampler:
    """The response to a prompt is a function of (seed, prompt, sample): right where `is_right` says so."""

    def __init__(self, tokenizer, is_right):
        self.tokenizer, self.is_right = tokenizer, is_right
        self.calls: list[tuple[int, int]] = []  # (seed, prompts)

    def __call__(self, prompts, *, group_size, sampling, seed):
        self.calls.append((seed, len(prompts)))
        texts, groups, samples = [], [], []
        for group, prompt in enumerate(prompts):
            number = int(re.search(r"number (\d+)", self.tokenizer.decode(prompt)).group(1))
            for sample in range(group_size):
                answer = number if self.is_right(number, sample) else (seed + sample) % 1000 + 1000
                texts.append(f"It is \\boxed{{{answer}}}.")
                groups.append(group)
                samples.append(sample)
        order = np.random.default_rng(0).permutation(len(texts))  # a sampler may return rows in any order
        tokens = [self.tokenizer.encode(texts[row]) for row in order]
        return Rollout(
            prompts=(np.zeros(1, np.int32),) * len(order),
            responses=tuple(np.array(line, np.int32) for line in tokens),
            logprobs=tuple(np.zeros(len(line), np.float32) for line in tokens),
            finish_reasons=np.array([FinishReason.LENGTH if samples[row] == 1 else FinishReason.STOP for row in order]),
            group_ids=np.array(groups)[order],
            sample_ids=np.array(samples)[order],
        )


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(pathlib.Path(data.__file__).parent / "tiny_tokenizer")


@pytest.fixture
def judge():
    return Judge(FakeVerifier())


@pytest.fixture
def make_sampler(tokenizer):
    return lambda is_right: FakeSampler(tokenizer, is_right)


@pytest.fixture
def source():
    return ListSource(
        [
            Problem(
                id=f"n{index}", problem=f"Which number is number {index}?", answer=str(index),
                level=1 + index % 2, subject="Odd" if index % 2 else "Even",
            )
            for index in range(10)
        ],
        name="numbers",
    )  # fmt: skip


PROTOCOL = {
    "model": "m", "prompt": "chat", "prompt_digest": "0", "preset": "avg@k", "temperature": 0.6, "top_p": 0.95,
    "max_new_tokens": 3000, "seed": 0,
}  # fmt: skip


def problems_of(name: str, count: int) -> list[Problem]:
    return [
        Problem(id=f"{name}-{index}", problem=f"<b>{index}</b> & so on", answer="1", subject="AB"[index % 2], level=1)
        for index in range(count)
    ]


def rows_of(name: str, problems: list[Problem], correct: np.ndarray) -> list[SampleRow]:
    return [
        SampleRow(
            set=name, id=problem.id, sample=sample, response="So\u2028 <script>alert(1)</script>\r\n\\boxed{1}",
            tokens=10 + sample, truncated=False, status="correct" if verdict else "wrong", extracted="1", gold="1",
            reason="r",
        )
        for problem, line in zip(problems, correct, strict=True) for sample, verdict in enumerate(line)
    ]  # fmt: skip


def evaluation_of(sets: dict[str, np.ndarray], **changes) -> tuple[Evaluation, list[SampleRow], dict]:
    scores, rows, problems = [], [], {}
    for name, correct in sets.items():
        problems[name] = problems_of(name, len(correct))
        rows += rows_of(name, problems[name], correct)
        scores.append(
            score_set(name, f"digest of {name}", problems[name], [row for row in rows if row.set == name],
                      equivalent=str.__eq__)
        )  # fmt: skip
    return Evaluation(protocol={**PROTOCOL, **changes}, about={"seconds": 1.0}, sets=tuple(scores)), rows, problems


def draw(seed, problems, samples=2, share=0.5):
    return np.random.default_rng(seed).random((problems, samples)) < share


@pytest.fixture
def made_up():
    """Functions that make evaluations of drawn verdicts."""
    return types.SimpleNamespace(
        PROTOCOL=PROTOCOL, draw=draw, evaluation_of=evaluation_of, problems_of=problems_of, rows_of=rows_of
    )
