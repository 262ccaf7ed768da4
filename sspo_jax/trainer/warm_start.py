"""The supervised warm start: from random weights or a checkpoint to a model that answers in the right form.

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

from sspo_jax.config import OptimizerConfig, WarmStartConfig
from sspo_jax.data.problems import ProblemSource
from sspo_jax.distributed.processes import gather
from sspo_jax.files import cache_directory
from sspo_jax.models.configs import HYBRID_FIELDS, LAYER_FIELDS
from sspo_jax.models.hf.load import load_qwen
from sspo_jax.models.hf.save import save_qwen
from sspo_jax.models.qwen import Params, init_qwen, qwen_shardings
from sspo_jax.optimizer import make_optimizer, optimizer_shardings
from sspo_jax.runs.display import Display
from sspo_jax.sharding import named_sharding, put, replicated
from sspo_jax.trainer.batch import pack_rows
from sspo_jax.trainer.setup import RunInputs
from sspo_jax.trainer.shipped import shipped_folder
from sspo_jax.trainer.step import sequence_logprobs
from sspo_jax.types import FinishReason, Rollout, TrainBatch

_MOST_TOO_LONG = 1000
_VERSION = 1  # part of the key, kept and shipped: raise it when the same configuration would give other weights


def warm_start(
    settings: WarmStartConfig,
    inputs: RunInputs,
    display: Display,
    *,
    poll: Callable[[], None] = lambda: None,
) -> Params:
    """Parameters after supervised training: those shipped with the package if `settings` say so, else from the cache.

    Args:
      settings: how long and how fast.
      inputs: shape of the model, problems, prompts, tokenizer and mesh.
      poll: called between updates; what it raises ends the training, and nothing is kept.

    Raises:
      ValueError: the data has no demonstrations, one is longer than a training row, a number is not finite, or the
        shipped weights are damaged.
    """
    key = warm_start_key(settings, inputs)
    shipped = shipped_folder(key) if settings.shipped else None
    if all(gather(shipped is not None)):
        assert shipped is not None
        params, _ = load_qwen(shipped, mesh=inputs.mesh)
        display.say(f"warm start: {settings.updates} updates that come with the package, {key}")
        return params
    directory = cache_directory("warm_start") / key
    if all(gather((directory / "config.json").is_file())):
        params, _ = load_qwen(directory, mesh=inputs.mesh)
        display.say(f"warm start: reusing {directory}")
        return params
    start = time.monotonic()
    with jax.set_mesh(inputs.mesh):
        params = _train(settings, inputs, display, poll)
    _keep(directory, params, inputs)
    seconds = time.monotonic() - start
    display.say(f"warm start: {settings.updates} updates in {seconds:.0f} s, kept in {directory}")
    return params


def starting_weights(inputs: RunInputs, seed: int) -> Params:
    """What training begins with where nothing was trained before: a checkpoint's weights in float32, or random ones."""
    if inputs.model_path is None:
        return init_qwen(inputs.model, jax.random.key(seed), mesh=inputs.mesh)
    params, _ = load_qwen(inputs.model_path, mesh=inputs.mesh, param_dtype="float32")
    return params


def warm_start_key(settings: WarmStartConfig, inputs: RunInputs) -> str:
    """Names the experiment's data first, so that a person finds it, then the hash."""
    kept = dataclasses.asdict(settings)
    seed = kept.pop("seed")
    del kept["shipped"]  # not how it is made, but where it may come from
    if not settings.drop_long:
        del kept["drop_long"]  # an option that earlier keys do not know
    sources = ("data", "prompt", "tokenizer", *(("model",) if inputs.model_path is not None else ()))
    shape = inputs.model.record() | {"remat": None}
    # Fields that earlier keys do not know.
    later = () if inputs.model.is_hybrid else HYBRID_FIELDS
    later += tuple(name for name in LAYER_FIELDS if not shape[name])
    shape = {name: value for name, value in shape.items() if name not in later}
    content = {
        "version": _VERSION,
        "shape": shape,
        "warm_start": kept,
        "provenance": {name: inputs.provenance[name] for name in sources},
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{inputs.data.name}-{digest}"


def _keep(directory: pathlib.Path, params: Params, inputs: RunInputs) -> None:
    """Into the cache; of two runs that finish together the first one stays."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_qwen(directory, params, inputs.model, dtype="float32", tokenizer=inputs.tokenizer)
    except FileExistsError:
        if not (directory / "config.json").is_file():
            raise


def _train(settings: WarmStartConfig, inputs: RunInputs, display: Display, poll: Callable[[], None]) -> Params:
    mesh = inputs.mesh
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
    shardings = qwen_shardings(inputs.model, mesh)
    state_shardings = optimizer_shardings(optimizer, inputs.model, mesh)
    rows_sharding = named_sharding(mesh, ("batch", None))

    def update(params: Params, state: Any, batch: TrainBatch) -> tuple[Params, Any, Array]:
        def loss(params: Params) -> Array:
            logprobs = sequence_logprobs(params, inputs.model, batch, temperature=1.0).logprobs
            return -jnp.sum(jnp.where(batch.mask, logprobs, 0.0)) / jnp.sum(batch.mask)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    update = jax.jit(update, donate_argnums=(0, 1), out_shardings=(shardings, state_shardings, replicated(mesh)))
    params = starting_weights(inputs, settings.seed)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
    on_mesh = functools.partial(put, sharding=rows_sharding)
    stream = demonstration_rows(inputs, settings)
    value = jnp.float32(0.0)
    with display.bars("warm start", settings.updates):
        for number in range(1, settings.updates + 1):
            poll()
            params, state, value = update(params, state, jax.tree.map(on_mesh, next(stream)))
            if number % 10 == 0 or number == settings.updates:
                _check_finite("loss", value, settings, number)
                display.step_done(number, settings.updates, f"loss {float(value):.3f}", every_seconds=15.0)
    # The loss is of the parameters before the last update.
    norm = jax.jit(optax.global_norm, out_shardings=replicated(mesh))(params)
    _check_finite("norm of the weights", norm, settings, settings.updates)
    return params


def _check_finite(name: str, value: Array, settings: WarmStartConfig, updates: int) -> None:
    if not np.isfinite(float(value)):
        raise ValueError(
            f"the {name} of the warm start is {float(value)} after {updates} updates: lower "
            f"--warm-start.learning-rate, which is {settings.learning_rate}; nothing was kept"
        )


def demonstration_rows(inputs: RunInputs, settings: WarmStartConfig) -> Iterator[TrainBatch]:
    """Endless training rows of packed demonstrations, in a seeded order of the problems.

    A demonstration that does not fit into the rest of a row starts the next one.
    """
    pending = _demonstrations(inputs, settings, np.random.default_rng(settings.seed))
    prompt, response = next(pending)
    while True:
        members: list[list[int]] = []
        pairs: list[tuple[list[int], list[int]]] = []
        for _ in range(settings.rows):
            members.append([])
            room = settings.row_tokens
            while len(prompt) + len(response) <= room:
                room -= len(prompt) + len(response)
                members[-1].append(len(pairs))
                pairs.append((prompt, response))
                prompt, response = next(pending)
        advantages = np.zeros(len(pairs), np.float32)
        yield from pack_rows(
            _as_rollout(pairs), advantages, members, row_tokens=settings.row_tokens, micro_rows=settings.rows
        )


def _as_rollout(pairs: list[tuple[list[int], list[int]]]) -> Rollout:
    """Demonstrations as if they had been sampled, one a group."""
    rows = np.arange(len(pairs), dtype=np.int32)
    return Rollout(
        prompts=tuple(np.asarray(prompt, np.int32) for prompt, _ in pairs),
        responses=tuple(np.asarray(response, np.int32) for _, response in pairs),
        logprobs=tuple(np.zeros(len(response), np.float32) for _, response in pairs),
        finish_reasons=np.full(len(pairs), FinishReason.STOP, np.int32),
        group_ids=rows,
        sample_ids=np.zeros_like(rows),
    )


def _demonstrations(
    inputs: RunInputs, settings: WarmStartConfig, order: np.random.Generator
) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, response with its end token) of problems drawn at random."""
    too_long = 0  # one after the other
    while True:
        index = int(order.integers(len(inputs.data)))
        problem = inputs.data[index]
        prompt = inputs.prompts(problem)
        text = demonstration(inputs.data, index)
        response = [*inputs.tokenizer.encode(text, add_special_tokens=False), inputs.tokenizer.eos_token_id]
        if len(prompt) + len(response) > settings.row_tokens:
            too_long += 1
            if not settings.drop_long or too_long > _MOST_TOO_LONG:
                raise ValueError(
                    f"the demonstration of problem {problem.id!r} has {len(prompt) + len(response)} tokens with its "
                    f"prompt, a row {settings.row_tokens}: raise --warm-start.row-tokens, or leave out such ones with "
                    "warm_start.drop_long in the experiment file"
                    + (f", which has found {too_long} one after the other" if settings.drop_long else "")
                )
            continue
        too_long = 0
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
