"""The third page: solve rates by problem, the longest responses, and what the checker could not read."""

from typing import Any

from sspo_jax.report.curves import rounded
from sspo_jax.report.reader import ProblemRates, RunData

_MOST_PROBLEMS = 400
_MOST_RESPONSES = 25


def problem_page(run: RunData) -> dict[str, Any]:
    """What the page shows of a run."""
    visits: dict[str, list[tuple[int, float]]] = {}
    texts: dict[str, tuple[str, str]] = {}
    shares: dict[str, list[float]] = {"never": [], "partly": [], "always": []}
    for step, rates in run.problems.items():
        own = _rates(rates)
        for name, rate in own.items():
            visits.setdefault(name, []).append((step, rate))
        texts |= rates.texts
        count = max(len(own), 1)
        shares["never"].append(sum(rate == 0 for rate in own.values()) / count)
        shares["always"].append(sum(rate == 1 for rate in own.values()) / count)
        shares["partly"].append(1 - shares["never"][-1] - shares["always"][-1] if own else 0.0)
    last = max(run.problems, default=0)
    order = sorted(visits, key=lambda name: (visits[name][-1][1], -visits[name][-1][0], name))
    return {
        "steps": list(run.problems),
        "none": _none(run),
        "shares": {name: [rounded(value) for value in values] for name, values in shares.items()},
        "seen": len(visits),
        "never_now": sum(entries[-1][1] == 0 for entries in visits.values()),
        "always_now": sum(entries[-1][1] == 1 for entries in visits.values()),
        "problems": [
            {
                "id": name,
                "problem": texts[name][0][:300],
                "gold": texts[name][1],
                "visits": [[step, rounded(rate, 3)] for step, rate in visits[name][-40:]],
            }
            for name in order[:_MOST_PROBLEMS]
        ],
        "longest": list(run.problems[last].longest) if run.problems else [],
        "last_step": last,
        "unread": [
            {**row, "step": step} for step, rates in sorted(run.problems.items(), reverse=True) for row in rates.unread
        ][:_MOST_RESPONSES],
        "held_out": _held_out(run),
    }


def _none(run: RunData) -> str:
    """What is said where there is no step to show."""
    if not any(row["step"] for row in run.rows):
        return "No step is done yet."
    return "There are no sampled texts: log.rollouts_every, in the experiment file, says which steps write them."


def _rates(rates: ProblemRates) -> dict[str, float]:
    return {name: rates.correct[name] / judged for name, judged in rates.judged.items() if judged}


def _held_out(run: RunData) -> list[dict[str, Any]]:
    """Greedy verdicts of each set over the evaluations, where there are any: problems that changed come first."""
    found = []
    steps = sorted(run.held_out)
    for name in run.held_out[steps[-1]] if steps else ():
        ids = run.held_out[steps[-1]][name].ids
        held = {step: run.held_out[step][name] for step in steps if name in run.held_out[step]}
        columns = [(step, own.greedy[:, 0]) for step, own in held.items() if own.ids == ids and own.greedy is not None]
        if not columns:
            continue
        rows = [[int(verdicts[place]) for _, verdicts in columns] for place in range(len(ids))]
        found.append(
            {
                "set": name,
                "steps": [step for step, _ in columns],
                "problems": len(ids),
                "always": sum(all(row) for row in rows),
                "never": sum(not any(row) for row in rows),
                "gained": sum(row[-1] > row[0] for row in rows),
                "lost": [ident for ident, row in zip(ids, rows, strict=True) if row[-1] < row[0]][:50],
                "unsolved": [ident for ident, row in zip(ids, rows, strict=True) if not any(row)][:50],
            }
        )
    return found
