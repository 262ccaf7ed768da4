"""The clause inspector's data: subsentences of the logged responses, within a budget of bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sspo_jax.files import to_json
from sspo_jax.report.curves import rounded
from sspo_jax.report.reader import RunData
from sspo_jax.runs.token_log import LoggedResponse, Subsentence, TokenLog

BUDGET_BYTES = 2_000_000


def logged_steps(
    run: RunData, budget: int = BUDGET_BYTES, wanted: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Steps with their responses, in order, as many as fit: the last one first, then the first, then those between.

    Args:
      run: whose logs are shown.
      budget: bytes.
      wanted: the `step` and `response` of a clause that must be there, whatever else fits.
    """
    chosen: dict[int, dict[str, Any]] = {}
    left = budget
    steps = _spread(list(run.tokens))
    if wanted is not None:
        steps = [wanted["step"], *(step for step in steps if step != wanted["step"])]
    for step in steps:
        first = wanted["response"] if wanted is not None and step == wanted["step"] else 0
        record = _step(run.tokens[step], left, first)
        size = len(to_json(record))
        if not record["responses"] or (size > left and chosen):
            continue
        chosen[step] = record
        left -= size
        if left <= 0:
            break
    return [chosen[step] for step in sorted(chosen)]


def _spread(steps: Sequence[int]) -> list[int]:
    """The last, the first, then halves of what is between."""
    if len(steps) < 3:
        return list(reversed(steps))
    order, gaps = [len(steps) - 1, 0], [(0, len(steps) - 1)]
    while gaps:
        first, last = gaps.pop(0)
        middle = (first + last) // 2
        if first < middle < last:
            order.append(middle)
            gaps += [(first, middle), (middle, last)]
    return [steps[place] for place in order]


def _step(log: TokenLog, budget: int, first: int) -> dict[str, Any]:
    """The responses of a step that fit, in order; `first` is the number of the one that is there in any case."""
    responses: dict[int, dict[str, Any]] = {}
    left = budget
    for number in sorted(range(len(log.responses)), key=lambda number: number != first):
        record = _response(log.responses[number]) | {"number": number}
        left -= len(to_json(record))
        if left < 0 and responses:
            break
        responses[number] = record
    return {
        "step": log.step,
        "objective": log.objective,
        "mean_entropy": rounded(log.mean_entropy),
        "left_out": len(log.responses) - len(responses),
        "responses": [responses[number] for number in sorted(responses)],
    }


def _response(response: LoggedResponse) -> dict[str, Any]:
    arrays = response.arrays
    epochs = range(len(response.updates))
    return {
        **response.about,
        "problem": str(response.about["problem"])[:2000],
        "advantage": rounded(response.advantage),
        "updates": response.updates.tolist(),
        "pieces": list(response.pieces),
        "old": _numbers(arrays["old_logprobs"]),
        "entropy": _numbers(arrays["entropies"]),
        "new": [_numbers(arrays["logprobs"][epoch]) for epoch in epochs],
        "clipped": [_sparse(arrays["clipped"][epoch]) for epoch in epochs],
        "grpo": [_sparse(arrays["clipped_grpo"][epoch]) for epoch in epochs],
        "clauses": [[_clause(clause) for clause in response.subsentences(epoch)] for epoch in epochs],
    }


def _clause(clause: Subsentence) -> list[Any]:
    """[start, end, log s_k, H_k, g_k, l_k, low, high, side, clipped tokens, and those of grpo, gspo, sspo]."""
    numbers = (clause.log_ratio, clause.entropy, clause.entropy_scale, clause.length_scale, clause.low, clause.high)
    return [
        clause.start,
        clause.end,
        *(rounded(value) for value in numbers),
        clause.clipped,
        clause.clipped_tokens,
        *(clause.others[name] for name in ("grpo", "gspo", "sspo")),
    ]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [rounded(float(value), 4) for value in values]


def _sparse(codes: np.ndarray) -> list[list[int]]:
    return [[int(place), int(codes[place])] for place in np.flatnonzero(codes)]
