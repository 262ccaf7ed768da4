"""The supervised warm start: from random weights to a model that answers in the right form.

Demonstrations are packed into rows one after the other, as in pre-training, and the mean negative log-likelihood of
the response tokens is minimised. The result is a Hugging Face checkpoint in the cache, under the hash of everything
that decides it, so that a second run (or the same experiment with another objective) starts from the same weights.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from sspo_jax.config import OptimizerConfig, TrainConfig, WarmStartConfig
from sspo_jax.data.problems import ProblemSource
from sspo_jax.distributed.processes import gather
from sspo_jax.files import cache_directory
from sspo_jax.models.hf.weights import load_qwen, save_qwen
from sspo_jax.models.qwen import Params, init_qwen, qwen_shardings
from sspo_jax.optimizer import make_optimizer, optimizer_shardings
from sspo_jax.runs.display import Display
from sspo_jax.sharding import named_sharding, put, replicated
from sspo_jax.trainer.batch import Rows
from sspo_jax.trainer.setup import Parts
from sspo_jax.trainer.step import sequence_logprobs
from sspo_jax.types import TrainBatch

_VERSION = 1  # part of the cache key: raise it when the same configuration would give other weights


def warm_start(
    config: TrainConfig, parts: Parts, display: Display, *, look: Callable[[], None] = lambda: None
) -> tuple[Params, dict[str, float]]:
    """Parameters after supervised training, from the cache if they are there, and what it took.

    Args:
      look: called between updates; what it raises ends the training, and nothing is kept.

    Raises:
      ValueError: the data has no demonstrations, or one is longer than a training row.
    """
    assert config.warm_start is not None
    directory = cache_directory("warm_start") / _key(config, parts)
    if all(gather((directory / "config.json").is_file())):
        params, _ = load_qwen(directory, mesh=parts.mesh)
        display.say(f"warm start: reusing {directory}")
        return params, {"reused": 1.0, "seconds": 0.0}
    start = time.monotonic()
    with jax.set_mesh(parts.mesh):
        params, loss = _train(config, config.warm_start, parts, display, look)
    _keep(directory, params, parts)
    seconds = time.monotonic() - start
    display.say(f"warm start: {config.warm_start.updates} updates in {seconds:.0f} s, kept in {directory}")
    return params, {"reused": 0.0, "seconds": seconds, "loss": loss}


def _key(config: TrainConfig, parts: Parts) -> str:
    """Names the experiment's data first, so that a person finds it, then the hash."""
    content = {
        "version": _VERSION,
        "shape": dataclasses.asdict(parts.model) | {"remat": None},
        "warm_start": dataclasses.asdict(config.warm_start) if config.warm_start else None,
        "provenance": {name: parts.provenance[name] for name in ("data", "prompt", "tokenizer")},
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{parts.data.name}-{digest}"


def _keep(directory: pathlib.Path, params: Params, parts: Parts) -> None:
    """Into the cache; of two runs that finish together the first one stays."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_qwen(directory, params, parts.model, dtype="float32", tokenizer=parts.tokenizer)
    except FileExistsError:
        if not (directory / "config.json").is_file():
            raise


def _train(
    config: TrainConfig, settings: WarmStartConfig, parts: Parts, display: Display, look: Callable[[], None]
) -> tuple[Params, float]:
    mesh = parts.mesh
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=settings.weight_decay, b2=0.99),
        optax.warmup_cosine_decay_schedule(
            0.0,
            settings.learning_rate,
            max(1, settings.updates // 20),
            settings.updates,
            end_value=settings.learning_rate / 10,
        ),
    )
    shardings = qwen_shardings(parts.model, mesh)
    state_shardings = optimizer_shardings(optimizer, parts.model, mesh)
    rows_sharding = named_sharding(mesh, ("batch", "time"))

    def update(params: Params, state: Any, batch: TrainBatch) -> tuple[Params, Any, Array]:
        def loss(params: Params) -> Array:
            logprobs, _ = sequence_logprobs(params, parts.model, batch, temperature=1.0)
            return -jnp.sum(jnp.where(batch.mask, logprobs, 0.0)) / jnp.sum(batch.mask)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    update = jax.jit(update, donate_argnums=(0, 1), out_shardings=(shardings, state_shardings, replicated(mesh)))
    params = init_qwen(parts.model, jax.random.key(config.seed), mesh=mesh)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
    on_mesh = functools.partial(put, sharding=rows_sharding)
    stream = demonstration_rows(parts, settings, seed=config.seed)
    value = jnp.float32(0.0)
    with display.bars("warm start", settings.updates):
        for number in range(1, settings.updates + 1):
            look()
            rows = next(stream)
            zeros = on_mesh(np.zeros(rows.tokens.shape, np.float32))
            batch = TrainBatch(
                **{field.name: on_mesh(getattr(rows, field.name)) for field in dataclasses.fields(rows)},
                old_logprobs=zeros,
                entropies=zeros,
                subsentence_ids=on_mesh(np.full(rows.tokens.shape, -1, np.int32)),
            )
            params, state, value = update(params, state, batch)
            if number % 10 == 0 or number == settings.updates:
                display.step_done(number, settings.updates, f"loss {float(value):.3f}", every_seconds=15)
    return params, float(value)


def demonstration_rows(parts: Parts, settings: WarmStartConfig, *, seed: int) -> Iterator[Rows]:
    """Endless training rows of packed demonstrations, in a seeded order of the problems.

    A demonstration that does not fit into the rest of a row starts the next one.
    """
    shape = (settings.rows, settings.row_tokens)
    order = np.random.default_rng(seed)
    pending = _demonstrations(parts, settings, order)
    prompt, response = next(pending)
    while True:
        tokens, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(3))
        mask = np.zeros(shape, bool)
        zeros = np.zeros(shape, np.float32)
        for row in range(settings.rows):
            start, segment = 0, 1
            while start + len(prompt) + len(response) <= settings.row_tokens:
                middle, end = start + len(prompt), start + len(prompt) + len(response)
                tokens[row, start:end] = prompt + response
                positions[row, start:end] = np.arange(end - start)
                segment_ids[row, start:end] = segment
                mask[row, middle:end] = True
                start, segment = end, segment + 1
                prompt, response = next(pending)
        yield Rows(
            tokens=tokens,
            positions=positions,
            segment_ids=segment_ids,
            mask=mask,
            advantages=zeros,
            sampler_logprobs=zeros,
        )


def _demonstrations(
    parts: Parts, settings: WarmStartConfig, order: np.random.Generator
) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, response with its end token) of problems drawn at random."""
    while True:
        index = int(order.integers(len(parts.data)))
        problem = parts.data[index]
        prompt = parts.prompts(problem)
        text = demonstration(parts.data, index)
        response = [*parts.tokenizer.encode(text, add_special_tokens=False), parts.tokenizer.eos_token_id]
        if len(prompt) + len(response) > settings.row_tokens:
            raise ValueError(
                f"the demonstration of problem {problem.id!r} has {len(prompt) + len(response)} tokens with its "
                f"prompt, a row {settings.row_tokens}: raise --warm-start.row-tokens"
            )
        yield prompt, response


def demonstration(source: ProblemSource, index: int) -> str:
    """A response to imitate: what a generated source offers as such, else the worked solution.

    Raises:
      ValueError: the data has neither.
    """
    if hasattr(source, "demonstration"):
        return source.demonstration(index)  # type: ignore[attr-defined]
    problem = source[index]
    if problem.solution is None:
        raise ValueError(f"problem {problem.id!r} of {source.name} has no solution to imitate: warm_start needs one")
    return problem.solution
