"""Rollouts and evaluations of a run as they are read again: what was damaged is named, not met in the middle.

A file of a run may be cut, edited by hand, or written by something else. Each reader here says which file and line it
is, and that the run can do without it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from sspo_jax.files import read_json, read_json_lines

_NUMBER = (int, float)
_ROLLOUT = {
    "id": str, "sample": int, "problem": str, "response": str, "gold": str, "status": str, "reward": _NUMBER,
    "tokens": int, "finish": str,
}  # fmt: skip
_RESPONSE = {"set": str, "id": str, "sample": int, "status": str}
_SCORE = {"problems": int, "length_mean": _NUMBER}
_ESTIMATE = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}


def read_rollout(file: pathlib.Path) -> list[dict[str, Any]]:
    """The sampled texts of a step, one row a response.

    Raises:
      ValueError: a line is damaged; names it.
    """
    return [_checked(row, _ROLLOUT, where) for where, row in read_json_lines(file)]


def read_responses(file: pathlib.Path) -> list[dict[str, Any]]:
    """The responses of an evaluation inside a run.

    Raises:
      ValueError: a line is damaged; names it.
    """
    return [_checked(row, _RESPONSE, where) for where, row in read_json_lines(file)]


def read_scores(file: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The scores of an evaluation inside a run, by set.

    Raises:
      ValueError: the file is damaged; names it.
    """
    advice = "Remove it: the scores stay in metrics.jsonl"
    scores = read_json(file, advice=advice)
    if not isinstance(scores, dict):
        raise ValueError(f"{file}: a {type(scores).__name__}; expected an object with the scores of each set. {advice}")
    for name, score in scores.items():
        checked = _checked(score, _SCORE, f"{file}, {name}")
        if "greedy" in checked:
            _checked(checked["greedy"], _ESTIMATE, f"{file}, {name}, greedy")
        if "avg" in checked:
            _checked(checked["avg"], _ESTIMATE, f"{file}, {name}, avg")
            _checked(checked, {"samples": int}, f"{file}, {name}")
    return scores


def _checked(row: Any, kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row, where it is an object with these fields."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}; expected an object. Remove it: the run does not need it")
    for name, kind in kinds.items():
        if name not in row or not isinstance(row[name], kind):
            came = f"{name} is {row[name]!r:.80}" if name in row else f"no {name}"
            raise ValueError(f"{where}: {came}; it is not what a run writes. Remove it: the run does not need it")
    return row
