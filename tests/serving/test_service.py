"""Requests with different settings are decoded together, in one program, and give what the sampler gives."""

import threading
import time

import jax.numpy as jnp
import numpy as np

from sspo_jax.models.qwen import apply_qwen
from sspo_jax.sampler import SamplingParams
from sspo_jax.sampler.sampler import Sampler
from sspo_jax.serving.service import CompletionService, Job
from sspo_jax.types import FinishReason

PROMPT = [4, 9, 8, 20, 7]
SETTINGS = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"top_k": 5, "min_p": 0.01},
    {"stop_token_ids": (11, 12, 13), "min_new_tokens": 4},
)


def run(service: CompletionService, bodies: list[dict], *, echo: bool = False) -> list[Job]:
    """The jobs of these requests, which wait together."""
    over = threading.Semaphore(0)
    jobs: list[Job] = []
    for body in bodies:
        generation = service.reader.completion({"prompt": PROMPT, "max_tokens": 10, "ignore_eos": True, **body})
        jobs += service.submit(generation, ("here", 0), over.release)
    for _ in jobs:
        assert over.acquire(timeout=500)
    assert [job.error for job in jobs] == [None] * len(jobs)
    return jobs


def body(settings: dict, seed: int) -> dict:
    names = {"min_new_tokens": "min_tokens"}
    return {"seed": seed} | {
        names.get(name, name): list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }


def test_settings_of_each_request_in_one_program(tiny):
    config, params = tiny
    service = CompletionService(params, config, slots=8, gather_seconds=0.5)
    jobs = run(service, [body(settings, seed) for seed, settings in enumerate(SETTINGS)])
    decoding = [name for name in service.programs if name.startswith("decode")]
    assert len(decoding) == 1
    others = [{"temperature": 0.31}, {"temperature": 0.9, "top_p": 0.77, "top_k": 3}, {"min_tokens": 2}, {}, {}]
    run(service, others)
    assert [name for name in service.programs if name.startswith("decode")] == decoding
    service.close()
    for seed, (settings, job) in enumerate(zip(SETTINGS, jobs, strict=True)):
        sampler = Sampler(config, SamplingParams(max_new_tokens=10, **settings))
        want = sampler.generate(params, [PROMPT], seed=0, keys=np.array([[0, seed]], np.uint32))
        count = int(want.response_mask.sum())
        assert job.tokens == want.response_tokens[0, :count].tolist(), settings
        np.testing.assert_allclose(job.logprobs, want.sampler_logprobs[0, :count], atol=2e-5)
        assert job.finish_reason == ("stop" if want.finish_reasons[0] == FinishReason.STOP else "length")


def test_log_probabilities_of_prompts_and_alternatives(tiny):
    config, params = tiny
    service = CompletionService(params, config, slots=8)
    bodies = [{"echo": True, "logprobs": 3, "max_tokens": tokens, "temperature": 0} for tokens in (0, 2)]
    scored, longer = run(service, bodies)
    service.close()
    logits = np.asarray(apply_qwen(params, config, jnp.array([PROMPT + longer.tokens])), np.float64)[0, :-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = logprobs[np.arange(len(logprobs)), (PROMPT + longer.tokens)[1:]]
    for job in (scored, longer):
        assert job.prompt_scores is not None
        np.testing.assert_allclose(job.prompt_scores["logprobs"], want[: len(PROMPT) - 1], atol=1e-4)
    np.testing.assert_allclose(longer.logprobs, want[len(PROMPT) - 1 :], atol=1e-4)
    assert scored.tokens == []
    for row, (tokens, values) in zip(logprobs[len(PROMPT) - 1 :], longer.tops, strict=True):
        assert list(tokens) == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose(values, np.sort(row)[::-1][:3], atol=1e-4)
    assert [top[1][0] for top in longer.tops] == longer.logprobs  # greedy: the first alternative is the token


def test_what_nobody_waits_for_gives_its_slot_away(tiny):
    """One slot; a long response is left while it is decoded, and while it waits."""
    config, params = tiny
    service = CompletionService(params, config, slots=1)
    long = service.reader.completion({"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True, "n": 3})
    begun = threading.Event()
    jobs = service.submit(long, ("hog", 0), begun.set)
    assert begun.wait(timeout=500)
    service.leave(long, ("hog", 0), jobs)
    (short,) = run(service, [{"max_tokens": 3}])
    deadline = time.monotonic() + 60  # those that wait are dropped when it is their turn
    while service.health()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    waiting = service.health()["waiting"]
    service.close()
    assert len(short.tokens) == 3
    assert sum(len(job.tokens) for job in jobs) < 200
    assert waiting == 0


def test_a_batch_that_cannot_be_decoded_is_answered_and_the_service_lives_on(tiny, monkeypatch):
    config, params = tiny
    service = CompletionService(params, config, slots=4)
    with monkeypatch.context() as patch:
        patch.setattr("sspo_jax.serving.service.Stream.run", lambda stream: stream._join() or 1 / 0)
        generation = service.reader.completion({"prompt": PROMPT})
        over = threading.Event()
        (job,) = service.submit(generation, ("here", 0), over.set)
        assert over.wait(timeout=100)
        assert isinstance(job.error, ZeroDivisionError)
    assert len(run(service, [{"max_tokens": 2}])[0].tokens) == 2
    service.close()
