"""A rollout as text, bit for bit: for checkpoints, and between processes."""

import base64
import dataclasses
import io
import json
from typing import Any

import numpy as np

from sspo_jax.data.problems import Problem
from sspo_jax.types import Rollout

_PER_TOKEN = {"responses": np.int32, "logprobs": np.float32, "versions": np.int32, "said": np.bool_}
_PER_RESPONSE = ("finish_reasons", "group_ids", "sample_ids")
_OPTIONAL = ("versions", "said")  # per token, or empty


def encoded(rollout: Rollout) -> str:
    """A rollout as text, bit for bit: base64 of an .npz file."""
    arrays = {name: getattr(rollout, name) for name in _PER_RESPONSE}
    for name in ("prompts", *_PER_TOKEN):
        rows = getattr(rollout, name)
        arrays[name] = np.concatenate([np.zeros(0, _PER_TOKEN.get(name, np.int32)), *rows])
    arrays["prompt_lengths"] = np.array([len(prompt) for prompt in rollout.prompts], np.int64)
    arrays["lengths"] = rollout.lengths
    arrays["rewards"] = np.array(rollout.rewards, np.float64)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return base64.b64encode(file.getvalue()).decode("ascii")


def decoded(text: str) -> Rollout:
    """What `encoded` made a text of."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as file:
        arrays = dict(file)

    def rows(name: str, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
        if name in _OPTIONAL and not len(arrays[name]):
            return ()
        return tuple(np.split(arrays[name], np.cumsum(lengths)[:-1])) if len(lengths) else ()

    per_token = {name: rows(name, arrays["lengths"]) for name in _PER_TOKEN}
    return Rollout(
        prompts=rows("prompts", arrays["prompt_lengths"]),
        **per_token,
        **{name: arrays[name] for name in _PER_RESPONSE},
        rewards=tuple(arrays["rewards"].tolist()),
    )


def problem_record(problem: Problem) -> dict[str, Any]:
    """The fields of a problem, as JSON holds them."""
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    return json.loads(json.dumps(fields | {"extra": dict(problem.extra)}))
