"""Which engine samples for a run: the one of this process, or a server, asked before anything expensive starts."""

import dataclasses
import os
import pathlib
import urllib.error
import urllib.request

import numpy as np
from jax.sharding import Mesh

from sspo_jax.config import RolloutConfig, ServerConfig
from sspo_jax.models.configs import QwenConfig, QwenModel, architecture_differences
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.trainable import Trainable
from sspo_jax.optimizer import abstract_state
from sspo_jax.sampler import LocalEngine, RolloutEngine, SamplingParams
from sspo_jax.sampler.layout import DecodingLayout, Demand, decoding_layout
from sspo_jax.serving import VLLM_RELOAD, RemoteEngine, ServerError
from sspo_jax.serving.access import KEY_VARIABLE, check_key
from sspo_jax.serving.connection import Connection
from sspo_jax.serving.remote_engine import checked_choice, completion_request, served_models
from sspo_jax.sharding import bytes_per_device

_START_PATIENCE = 3.0
"""Seconds: a server is to be up before the run starts."""


def rollout_sampling(rollout: RolloutConfig, stop_token_ids: tuple[int, ...]) -> SamplingParams:
    """How the responses of a step are drawn."""
    return SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop_token_ids=stop_token_ids,
    )


def run_layout(
    rollout: RolloutConfig,
    model: QwenModel,
    mesh: Mesh,
    *,
    apart: Mesh | None = None,
    lora: LoraConfig | None,
    has_reference: bool,
    longest_response: int,
    memory: float | None,
) -> DecodingLayout:
    """How the devices of a run are laid out for its rollouts and evaluations.

    Args:
      mesh: of training; where a server samples, nothing else is chosen.
      apart: of the devices that only sample, where there are any.
      has_reference: whether the loss has a KL term.
      longest_response: in tokens, of rollouts and evaluations.
      memory: of a device, in bytes; None: not known.

    Raises:
      ValueError: the mesh that was asked for does not fit the devices or the model.
    """
    state, base = abstract_state(model, mesh, lora=lora), Trainable(model, lora).abstract_base(mesh)
    kept = bytes_per_device((state, base)) + (bytes_per_device(state["params"]) if has_reference else 0)
    demand = demand_of(rollout, longest_response)
    if apart is not None:
        return decoding_layout(rollout.mesh, model, apart, demand, training=0, memory=memory)
    return decoding_layout(rollout.mesh, model, mesh, demand, training=kept, memory=memory)


def demand_of(rollout: RolloutConfig, longest_response: int) -> Demand:
    """What a call of the sampler is to hold in a run.

    Args:
      longest_response: in tokens.
    """
    return Demand(
        samples=rollout.prompts * rollout.group_size,
        slots=rollout.slots,
        prompt_tokens=rollout.max_prompt_tokens,
        new_tokens=longest_response,
    )


def open_engine(rollout: RolloutConfig, model: QwenConfig, mesh: Mesh, run_directory: pathlib.Path) -> RolloutEngine:
    """The engine that the configuration chooses, without weights yet.

    Args:
      mesh: that this process samples on; the parameters lie on one of the same devices, or where
        `rollout.devices` is set, of other ones.
    """
    server = rollout.server
    if server is None:
        is_int8, is_apart = rollout.weights == "int8", rollout.devices > 0
        return LocalEngine(model, slots=rollout.slots, mesh=mesh, int8=is_int8, is_apart=is_apart)
    return RemoteEngine(
        server.urls,
        model,
        export_directory=server.export_directory or run_directory / "weights",
        export_dtype=model.compute.dtype,
        model=server.model,
        reload=VLLM_RELOAD if server.protocol == "vllm" else None,
        concurrency=server.concurrency,
        timeout_seconds=server.timeout_seconds,
        patience_seconds=server.patience_seconds,
        api_key=_api_key(server),
    )


def _api_key(server: ServerConfig) -> str | None:
    """The key in the environment, where there is one.

    Raises:
      ServerError: it is not one, or the variable that was asked for by name is not set.
    """
    name = server.api_key_variable
    key = os.environ.get(name)
    if key is None and name != KEY_VARIABLE:
        raise ServerError(f"--rollout.server.api-key-variable is {name}, which is not set: set it to the server's key")
    if key is not None:
        try:
            check_key(name, key)
        except ValueError as error:
            raise ServerError(str(error)) from None
    return key


def check_server(
    rollout: RolloutConfig, model: QwenConfig, stop_token_ids: tuple[int, ...], *, longest_response: int
) -> None:
    """Asks each server what it serves, and for one token; does nothing where no server is chosen.

    Args:
      longest_response: in tokens, of the rollouts and the evaluations.

    Raises:
      ServerGoneError: it does not answer.
      ServerError: it is not one that this run can use: what it says, what is wanted and what to do.
    """
    if rollout.server is not None:
        for url in rollout.server.urls:
            _check_one(url, rollout, rollout.server, model, stop_token_ids, longest_response)


def _check_one(
    url: str,
    rollout: RolloutConfig,
    server: ServerConfig,
    model: QwenConfig,
    stop_token_ids: tuple[int, ...],
    longest_response: int,
) -> None:
    connection = Connection(
        url,
        timeout_seconds=server.timeout_seconds,
        patience_seconds=min(_START_PATIENCE, server.patience_seconds),
        api_key=_api_key(server),
    )
    try:
        _check_routes(connection, server)
        longest = rollout.max_prompt_tokens + longest_response
        name = _check_model(connection, server, model, longest=longest, longest_response=longest_response)
        sampling = dataclasses.replace(rollout_sampling(rollout, stop_token_ids), max_new_tokens=1)
        request = completion_request(name, [0], sampling, np.zeros(2, np.uint32))
        checked_choice(connection.call("/v1/completions", request), connection.url)
    except ConnectionError as error:
        raise type(error)(
            f"{error} Start it (`sspo serve --model DIR`, DIR a checkpoint of this model's shape), or correct "
            "--rollout.server.url"
        ) from None


def _check_routes(connection: Connection, server: ServerConfig) -> None:
    """Whether it can be told to load weights."""
    if server.protocol == "sspo":
        health = connection.call("/health")
        if "weights_version" not in health:
            raise ServerError(
                f"{connection.url}/health names no weights_version, so it is not `sspo serve`: for vLLM set "
                "--rollout.server.protocol vllm"
            )
        if health.get("reload_directory", "") is None:
            raise ServerError(
                f"{connection.url} loads no weights: start it with --reload-directory DIR, where DIR holds the run "
                "directory (or --rollout.server.export-directory)"
            )
        return
    served_models(connection)  # it is up
    for route in (VLLM_RELOAD.route, *VLLM_RELOAD.then):
        if _status(connection, route) == 404:
            raise ServerError(
                f"{connection.url} has no route {route}, which loads new weights: start vLLM with "
                "VLLM_SERVER_DEV_MODE=1 in its environment, or for `sspo serve` set --rollout.server.protocol sspo"
            )


def _status(connection: Connection, route: str) -> int:
    """Status of a GET: 404 where there is no such route, 405 where it takes a POST."""
    try:
        with urllib.request.urlopen(connection.request(route), timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def _check_model(
    connection: Connection, server: ServerConfig, model: QwenConfig, *, longest: int, longest_response: int
) -> str:
    """The name of the model to ask for, whose card does not contradict what the run needs."""
    cards = {str(card.get("id")): card for card in served_models(connection)}
    name = server.model or next(iter(cards))
    if name not in cards:
        raise ServerError(
            f"{connection.url} serves {', '.join(cards)}, not {name!r}: set --rollout.server.model to one of them"
        )
    card = cards[name]
    if card.get("max_model_len", longest) < longest:
        raise ServerError(
            f"{connection.url} serves {name!r} with {card['max_model_len']} positions, expected {longest} for the "
            "longest prompt and response: start it with more (vLLM: --max-model-len), or lower --rollout.max-new-tokens"
        )
    if card.get("max_tokens", longest_response) < longest_response:
        raise ServerError(
            f"{connection.url} gives at most {card['max_tokens']} tokens, expected {longest_response}: start it with "
            f"--max-tokens {longest_response}"
        )
    differing = architecture_differences(card.get("architecture", {}), model, whose="expected")
    if differing:
        raise ServerError(
            f"{connection.url} serves a model of another shape: {'; '.join(differing)}. Start it with a checkpoint of "
            "this run's model; the weights in it do not matter"
        )
    return name
