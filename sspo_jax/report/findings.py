"""What a run says, in sentences: did it learn, was the clip active, which clause was clipped most."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sspo_jax.evaluation.intervals import Difference, paired_difference
from sspo_jax.report.reader import RunData
from sspo_jax.runs.health import remarks
from sspo_jax.runs.token_log import LoggedResponse, Subsentence


def findings(run: RunData) -> list[dict[str, Any]]:
    """Question, verdict in a word or two, and answer; the answer about the clause says where it is."""
    return [
        {"question": "Did it learn?", **_learned(run)},
        {"question": "Was the clip active?", **_active(run)},
        {"question": "Which clause was clipped most?", **_most_clipped(run)},
    ]


def warnings_of(run: RunData) -> list[dict[str, Any]]:
    """Where the run is at odds with itself, each remark once, at the step where it was first true."""
    weights = reward_weights(run.record["config"].get("reward") or {})
    rows = [row for row in run.rows if row["step"] > 0]
    first: dict[str, dict[str, Any]] = {}
    for count in range(1, len(rows) + 1):
        for remark in remarks(
            rows[max(0, count - 10) : count], updates_per_rollout=run.updates_per_step, weights=weights
        ):
            first.setdefault(remark.key, {"step": remark.step, "text": remark.text})
    return list(first.values())


def reward_weights(reward: Any) -> dict[str, float]:
    """Weight of each reward term by the name it is logged under, from a recorded configuration."""
    found = {name: term["weight"] for name, term in reward.items() if isinstance(term, dict) and "weight" in term}
    return found | {term["function"]: term["weight"] for term in reward.get("user") or []}


def differences(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Every run, by its number, against the first: scores of their last evaluations, by the paired bootstrap."""
    found = []
    first = runs[0]
    for number, other in enumerate(runs[1:], 1):
        for name, kind, one, two in _pairs(first, other):
            found.append({"run": number, "set": name, "kind": kind, **_difference(two, one)})
    return found


def _pairs(first: RunData, other: RunData) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    if not (first.held_out and other.held_out):
        return
    one, two = (run.held_out[max(run.held_out)] for run in (first, other))
    for name in one:
        if name in two and one[name].ids == two[name].ids:
            for kind, found, new in (
                ("greedy", one[name].greedy, two[name].greedy),
                ("samples", one[name].sampled, two[name].sampled),
            ):
                if found is not None and new is not None:
                    yield name, kind, found, new


def _difference(new: np.ndarray, old: np.ndarray) -> dict[str, float]:
    difference: Difference = paired_difference(new, old)
    return {
        "before": float(old.mean()),
        "after": float(new.mean()),
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p_value,
    }


def _learned(run: RunData) -> dict[str, Any]:
    steps = sorted(run.held_out)
    parts, verdicts = [], []
    if len(steps) > 1:
        first, last = run.held_out[steps[0]], run.held_out[steps[-1]]
        for name in last:
            if name not in first or first[name].ids != last[name].ids:
                continue
            kind, before, after = "Greedy", first[name].greedy, last[name].greedy
            if before is None or after is None:
                kind, before, after = "Sampled", first[name].sampled, last[name].sampled
            if before is None or after is None:
                continue
            found = _difference(after, before)
            is_better, is_worse = found["low"] > 0, found["high"] < 0
            verdicts.append("Yes" if is_better else "No, it got worse" if is_worse else "Not for sure")
            parts.append(
                f"{kind} on {name}: {_percent(found['before'])} before, {_percent(found['after'])} after step "
                f"{steps[-1]}, a difference of {100 * found['difference']:+.1f} points "
                f"[{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]."
            )
    if parts:
        return {"verdict": "; ".join(dict.fromkeys(verdicts)), "answer": " ".join(parts)}
    rewards = [row["reward/mean"] for row in run.rows if row.get("reward/mean") is not None]
    if not rewards:
        return {"answer": "No step is done yet."}
    size = max(1, len(rewards) // 5)
    before, after = np.mean(rewards[:size]), np.mean(rewards[-size:])
    return {
        "answer": f"Mean reward {before:.3f} in the first {size} steps, {after:.3f} in the last {size}; there are no "
        "two evaluations to compare."
    }


def _active(run: RunData) -> dict[str, Any]:
    rows = [row for row in run.rows if row.get("ratio/clip_fraction") is not None]
    if not rows:
        return {"answer": "No step is done yet."}

    def mean(name: str) -> float:
        return float(np.mean([row.get(name) or 0.0 for row in rows]))

    values, share = [row["ratio/clip_fraction"] for row in rows], mean("ratio/clip_fraction")
    compared = ", ".join(
        f"{name.upper()} {_percent(mean(f'counterfactual/{name}_clip_fraction'), 2)}"
        for name in ("grpo", "sspo", "gspo")
    )
    return {
        "verdict": "Hardly" if share < 0.001 else "Yes" if share <= 0.2 else "Too much",
        "answer": f"It removed the gradient of {_percent(share, 2)} of the tokens ({_percent(min(values), 2)} to "
        f"{_percent(max(values), 2)} by step), {_percent(mean('ratio/clip_fraction_high'), 2)} at the upper bound, "
        f"{_percent(mean('ratio/clip_fraction_low'), 2)} at the lower. With published bounds, on the same tokens: "
        f"{compared}.{_taken(rows)}",
    }


def _taken(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which tokens the clip took, where the run says so; shares of nothing are left out of the means."""

    def mean(name: str) -> str:
        values = [row[name] for row in rows if row.get(name) is not None and row.get("clip/extreme_fraction")]
        return _percent(float(np.mean(values)), 1) if values else "-"

    if not any(row.get("clip/extreme_fraction") for row in rows):
        return ""
    return (
        f" It removed {mean('clip/extreme_removed')} of the tokens whose own ratio is beyond 0.8 to 1.2 and "
        f"{mean('clip/moderate_removed')} of the others, and touched {mean('clip/response_fraction')} of the responses."
    )


def _most_clipped(run: RunData) -> dict[str, Any]:
    if not run.tokens:
        return {"answer": _no_tokens(run)}
    clipped = list(_clipped(run))
    if not clipped:
        return {"verdict": "None", "answer": f"None was, of those in the {len(run.tokens)} logged steps."}
    step, number, epoch, response, clause, place, _ = max(clipped, key=lambda entry: entry[-1])
    ratio, low, high = (float(response.arrays[name][epoch, place]) for name in ("ratio", "low", "high"))
    side = {-1: "low", 1: "high", 2: "dual"}[int(response.arrays["clipped"][epoch, place])]
    kept = sum(1 for entry in clipped if not entry[4].others["gspo"]) / len(clipped)
    spared = sum(1 for entry in clipped if not entry[4].others["grpo"]) / len(clipped)
    gspo = (
        "GSPO would have clipped it too, with its whole response"
        if clause.others["gspo"]
        else "GSPO would have kept it"
    )
    return {
        "answer": f"Of {len(clipped)} clipped clauses in {len(run.tokens)} logged steps, one of step {step} went "
        f"furthest beyond its bound: ratio {ratio:.3f}{_unit(response, clause, epoch)} where {low:.3f} to {high:.3f}"
        f" is allowed, clipped {side}, advantage {response.advantage:+.2f}. {gspo}; GRPO would have clipped "
        f"{clause.others['grpo']} of its {clause.tokens} tokens. Of all {len(clipped)}, GSPO would have kept "
        f"{_percent(kept, 0)}, and GRPO every token of {_percent(spared, 0)}.",
        "clause": clause.text,
        "place": {"step": step, "response": number, "epoch": epoch, "start": clause.start},
    }


def _no_tokens(run: RunData) -> str:
    if not any(row["step"] for row in run.rows):
        return "No step is done yet."
    every = run.record["config"].get("log", {}).get("tokens_every")
    if not every:
        return "There are no per-token data: start the run with --log.tokens-every 5."
    return f"There are no per-token data yet; they are kept every {every} steps."


def _unit(response: LoggedResponse, clause: Subsentence, epoch: int) -> str:
    """Whose ratio the run's objective clips, where it is not the clause's own."""
    ratios = response.arrays["ratio"][epoch, clause.start : clause.end]
    if np.allclose(ratios, math.exp(clause.log_ratio), rtol=1e-4):
        return ""
    return " of its response" if np.ptp(ratios) == 0 else " of one of its tokens"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _clipped(run: RunData) -> Iterator[tuple[int, int, int, LoggedResponse, Subsentence, int, float]]:
    """Clipped clauses with where they are, their token furthest beyond its bound, and how far: log-ratio over bound."""
    for step, log in run.tokens.items():
        for number, response in enumerate(log.responses):
            for epoch in range(len(response.updates)):
                for clause in response.subsentences(epoch):
                    if clause.clipped:
                        yield step, number, epoch, response, clause, *_furthest(response, clause, epoch)


def _furthest(response: LoggedResponse, clause: Subsentence, epoch: int) -> tuple[int, float]:
    """The clipped token of a clause whose ratio is furthest beyond its bound, and how far: log-ratio over bound."""
    tokens = slice(clause.start, clause.end)
    arrays = {name: response.arrays[name][epoch, tokens].astype(np.float64) for name in ("ratio", "low", "high")}
    codes = response.arrays["clipped"][epoch, tokens]
    bounds = np.log(np.where(codes == -1, np.maximum(arrays["low"], 1e-6), arrays["high"]))
    logs = np.log(np.maximum(arrays["ratio"], 1e-30))
    far = np.divide(logs, bounds, out=np.full(len(codes), math.inf), where=bounds != 0)
    far[codes == 0] = -math.inf
    place = int(np.argmax(far))
    return clause.start + place, float(far[place])
