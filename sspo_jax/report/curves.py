"""The charts of the first page: which series, in which order, with which axes."""

import dataclasses
import datetime
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sspo_jax.losses.diagnostics import LOG_RATIO_EDGES
from sspo_jax.report.reader import RunData
from sspo_jax.runs.metric_table import describe, reading_order

LEVELS = ("token", "subsentence", "response")
_QUANTILES = {"5 %": 0.05, "median": 0.5, "95 %": 0.95}
_STAGES = ("rollout", "verify", "score", "update", "token_log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    """(name or pattern of the series, label); of a pattern the label is its last part."""
    section: str
    kind: str = "line"
    """line, or stack: one on the other."""
    is_share: bool = False
    """Shown in percent."""
    is_log: bool = False
    """Logarithmic at first."""
    note: str = ""


CHARTS = (
    Chart(title="Held-out score", unit="share correct", section="Did it learn?", is_share=True,
          lines=((r"eval/.+/(accuracy|avg_at_\d+)", ""),), note="with 95 % intervals over problems, not over seeds"),
    Chart(title="Reward", unit="reward", section="Did it learn?",
          lines=(("reward/mean", "mean"), (r"reward/.+_mean", ""))),
    Chart(title="Sampled responses", unit="share", section="Did it learn?", is_share=True,
          lines=(("verify/correct_fraction", "correct"), ("reward/informative_fraction", "in informative groups"),
                 ("verify/unparsed_fraction", "unread"), ("verify/timeout_fraction", "timed out"))),
    Chart(title="Clip of this run's objective", unit="share of tokens", section="Was the clip active?", is_share=True,
          lines=(("ratio/clip_fraction", "all"), ("ratio/clip_fraction_low", "low"),
                 ("ratio/clip_fraction_high", "high"), ("ratio/clip_fraction_dual", "dual"))),
    Chart(title="What each level would have clipped", unit="share of tokens", section="Was the clip active?",
          is_share=True, note="each with its published bounds, on the same tokens",
          lines=(("counterfactual/grpo_clip_fraction", "GRPO, per token"),
                 ("counterfactual/sspo_clip_fraction", "SSPO, per clause"),
                 ("counterfactual/gspo_clip_fraction", "GSPO, per response"))),
    Chart(title="What this run's bounds would clip by the ratio of each level", unit="share of tokens",
          section="Was the clip active?", is_share=True, note="at the run's own level: what it clips",
          lines=tuple((f"counterfactual/{level}_clip_fraction", f"per {level}") for level in LEVELS)),
    Chart(title="Which tokens lose their gradient", unit="share", section="Was the clip active?", is_share=True,
          note="extreme: the token's own ratio is outside 0.8 to 1.2, on the side that a clip takes",
          lines=(("clip/extreme_removed", "of the extreme tokens"), ("clip/moderate_removed", "of the others"),
                 ("clip/precision", "extreme, of the clipped ones"), ("clip/mass_removed", "of sum |A d|"))),
    Chart(title="Units with a clipped token", unit="share", section="Was the clip active?", is_share=True,
          lines=(("clip/subsentence_fraction", "of the clauses"), ("clip/response_fraction", "of the responses"))),
    Chart(title="Clip fraction of each update", unit="share of tokens", section="Was the clip active?", is_share=True,
          lines=((r"update/\d+/clip_fraction", ""),)),
    *(
        Chart(title=f"Log-ratio of a {level}", unit="nats", section="Was the clip active?",
              lines=tuple((f"quantile/{level}/{name}", name) for name in _QUANTILES),
              note="quantiles over tokens, interpolated in the histogram; at most ±0.5")
        for level in LEVELS
    ),
    Chart(title="Effective sample size", unit="share", section="Was the clip active?", is_share=True,
          lines=tuple((f"ratio/{level}_effective_sample_size", level) for level in LEVELS)),
    Chart(title="Entropy", unit="nats", section="The policy", lines=(("policy/entropy", "of tokens"),
          ("subsentence/entropy_mean", "of clauses"))),
    Chart(title="KL from the policy that sampled", unit="nats", section="The policy",
          lines=(("policy/kl_old", "mean of the updates"), (r"update/\d+/kl_old", ""))),
    Chart(title="Gradient norm", unit="norm before clipping", section="The policy",
          lines=(("optim/grad_norm", "mean"), ("optim/grad_norm_max", "largest"))),
    Chart(title="Gap between sampler and training program", unit="nats", section="The policy", is_log=True,
          lines=(("sampler/logprob_gap_mean", "mean"), ("sampler/logprob_gap_max", "largest"))),
    Chart(title="Response length", unit="tokens", section="Responses",
          lines=(("response/length_mean", "mean"), ("response/length_max", "longest"))),
    Chart(title="Truncated", unit="share", section="Responses", is_share=True,
          lines=(("response/truncated_fraction", "sampled"), (r"eval/.+/truncated_fraction", ""))),
    Chart(title="Clauses", unit="count", section="Responses",
          lines=(("subsentence/count_mean", "per response"), ("subsentence/length_mean", "tokens in one"))),
    Chart(title="Time of a step", unit="seconds", section="Speed", kind="stack",
          lines=tuple((f"time/{stage}_seconds", stage.replace("_", " ")) for stage in _STAGES)),
    Chart(title="Sampling speed", unit="tokens per second", section="Speed",
          lines=(("throughput/rollout_tokens_per_second", "tokens/s"),)),
    Chart(title="Learning rate", unit="rate", section="Speed", lines=(("optim/learning_rate", "of the last update"),)),
)  # fmt: skip
"""In the order in which a person reads them."""


def charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The charts that have anything to show, with the names of their series."""
    series = [series_of(run) for run in runs]
    found = []
    for chart in CHARTS:
        lines: dict[str, str] = {}
        for pattern, label in chart.lines:
            names = {
                name for own in series for name, values in own.items() if re.fullmatch(pattern, name) and _moves(values)
            }
            lines |= {name: label or _label(name) for name in reading_order(names) if name not in lines}
        if len(lines) == 2 and chart.title == "Reward" and "reward/correctness_mean" in lines:
            del lines["reward/correctness_mean"]  # the only term is the reward
        if lines:
            about = {name: metric._asdict() for name in lines if (metric := describe(name)) is not None}
            found.append(
                {
                    "title": chart.title,
                    "unit": chart.unit,
                    "section": chart.section,
                    "kind": chart.kind,
                    "share": chart.is_share,
                    "log": chart.is_log,
                    "note": chart.note,
                    "lines": [{"name": name, "label": label} for name, label in lines.items()],
                    "about": about,
                }
            )
    return found


def series_of(run: RunData) -> dict[str, list[float | None]]:
    """Every series of a run, one value a row, None where there is none; quantiles of the ratios added."""
    names = dict.fromkeys(name for row in run.rows for name in row if name != "step")
    series: dict[str, list[float | None]] = {name: [rounded(row.get(name)) for row in run.rows] for name in names}
    for level in LEVELS:
        shares = [histogram(row, level) for row in run.rows]
        if any(shares):
            for label, quantile in _QUANTILES.items():
                series[f"quantile/{level}/{label}"] = [
                    rounded(_quantile(own, quantile)) if own else None for own in shares
                ]
    return series


def histogram(row: Mapping[str, Any], level: str) -> list[float]:
    """Share of tokens in each bin of the log-ratio; empty where the row has none."""
    names = [f"ratio_histogram/{level}_below_{edge:g}" for edge in LOG_RATIO_EDGES] + [f"ratio_histogram/{level}_above"]
    values = [row.get(name) for name in names]
    return [] if any(value is None for value in values) else [float(value) for value in values if value is not None]


def _quantile(shares: Sequence[float], quantile: float) -> float:
    """Linear inside a bin; the open ones end at the outermost edges.

    >>> round(_quantile([0.0] * 6 + [1.0] + [0.0] * 6, 0.5), 6)  # all within -3e-4 and 3e-4
    0.0
    """
    edges = (LOG_RATIO_EDGES[0], *LOG_RATIO_EDGES, LOG_RATIO_EDGES[-1])
    below = np.cumsum([0.0, *shares])
    if below[-1] <= 0:
        return 0.0
    return float(np.interp(quantile * below[-1], below, edges))


def intervals(run: RunData) -> dict[str, dict[int, tuple[float, float]]]:
    """Of the held-out scores: series -> step -> (low, high)."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for step, sets in run.scores.items():
        for name, score in sets.items():
            if "greedy" in score:
                found.setdefault(f"eval/{name}/accuracy", {})[step] = (score["greedy"]["low"], score["greedy"]["high"])
            if "avg" in score:
                series = f"eval/{name}/avg_at_{score['samples']}"
                found.setdefault(series, {})[step] = (score["avg"]["low"], score["avg"]["high"])
    return found


def events(run: RunData) -> list[dict[str, Any]]:
    """Steps at which something happened: an evaluation, updates left out, a restart."""
    found = [
        {"step": step, "kind": "evaluated", "text": f"evaluation after step {step}"} for step in run.scores if step
    ]
    for row in run.rows:
        if row.get("optim/skipped_updates"):
            text = f"{row['optim/skipped_updates']:.0f} updates left out, not finite"
            found.append({"step": row["step"], "kind": "skipped", "text": text})
    times = [
        (row["step"], row["time/started_unix_seconds"]) for row in run.rows if row.get("time/started_unix_seconds")
    ]
    restarts = {step: "restarted" for (_, before), (step, now) in itertools.pairwise(times) if now != before}
    for entry in run.record.get("history", []):
        until = datetime.datetime.fromisoformat(entry["until"]).timestamp()
        later = [row["step"] for row in run.rows if (row.get("time/unix_seconds") or 0) > until]
        if later:
            changed = ", ".join(entry.get("changed", {}))
            restarts[later[0]] = f"restarted with another {changed}"
    found += [
        {"step": step, "kind": "restarted", "text": f"{text} before step {step}"} for step, text in restarts.items()
    ]
    if run.best is not None:
        found.append(
            {"step": run.best.step, "kind": "best", "text": f"best policy, {run.best.metric} {run.best.score:.1%}"}
        )
    return found


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Few enough digits for a picture; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _moves(values: Iterable[float | None]) -> bool:
    """Whether there is anything but zeros."""
    return any(values)


def _label(name: str) -> str:
    subject, *middle, last = name.split("/")
    if subject == "update":
        return f"update {middle[0]}"
    if subject == "eval":
        at = re.fullmatch(r"avg_at_(\d+)", last)
        what = f"mean of {at[1]} samples" if at else "greedy" if last == "accuracy" else last.replace("_", " ")
        return f"{'/'.join(middle)}, {what}"
    return last.removesuffix("_mean").replace("_", " ")
