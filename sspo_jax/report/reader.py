"""What a report reads of a run directory. Files of finished steps are read once, so that a refresh costs little."""

import dataclasses
import heapq
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from sspo_jax.files import step_files
from sspo_jax.runs.best import Best, read_best
from sspo_jax.runs.metrics_file import read_metrics
from sspo_jax.runs.policy import read_record
from sspo_jax.runs.profile import read_roofline
from sspo_jax.runs.records import read_responses, read_rollout, read_scores
from sspo_jax.runs.token_log import TokenLog, read_token_log

_LONGEST = 12
_UNREAD = 40
_LOGS = 60  # of per-token data that a report reads, spread over the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemRates:
    """How often each problem of a step was solved."""

    texts: Mapping[str, tuple[str, str]]  # id -> problem, gold
    correct: Mapping[str, int]
    judged: Mapping[str, int]
    longest: tuple[dict[str, Any], ...]
    unread: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The verdicts of one set at one evaluation."""

    ids: tuple[str, ...]
    greedy: Bool[np.ndarray, "problems one"] | None
    sampled: Bool[np.ndarray, "problems samples"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """A run as it is now."""

    path: pathlib.Path
    name: str
    record: Mapping[str, Any]
    rows: list[dict[str, Any]]
    scores: Mapping[int, Mapping[str, Any]]  # step -> set -> scores
    held_out: Mapping[int, Mapping[str, HeldOut]]
    problems: Mapping[int, ProblemRates]
    tokens: Mapping[int, TokenLog]
    best: Best | None
    roofline: Mapping[str, Any] | None  # of its last profile
    is_complete: bool

    @property
    def updates_per_step(self) -> int:
        """Updates of a rollout."""
        update = self.record["config"].get("update", {})
        return int(update.get("per_rollout", 1)) * int(update.get("epochs", 1))


class RunReader:
    """Reads a run again and again.

    Args:
      path: of the run directory.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._kept: dict[tuple[str, int], tuple[float, Any]] = {}

    def read(self) -> RunData:
        """The run as it is on the disk.

        Raises:
          FileNotFoundError: no run there.
          ValueError: a file of it is damaged; names the file.
        """
        path = self.path
        files = {name: step_files(path / name, suffix) for name, suffix in _FILES.items()}
        logs = files["tokens"]
        if len(logs) > _LOGS:
            steps = list(logs)
            logs = {steps[place]: logs[steps[place]] for place in np.linspace(0, len(steps) - 1, _LOGS).astype(int)}
        return RunData(
            path=path,
            name=path.resolve().name,
            record=read_record(path),
            rows=read_metrics(path / "metrics.jsonl"),
            scores={step: read_scores(file) for step, file in files["evaluations"].items()},
            held_out={
                step: self._once("held_out", step, file.with_suffix(".jsonl"), read_held_out)
                for step, file in files["evaluations"].items()
                if file.with_suffix(".jsonl").exists()
            },
            problems={step: self._once("problems", step, file, _problems) for step, file in files["rollouts"].items()},
            tokens={step: self._once("tokens", step, file, read_token_log) for step, file in logs.items()},
            best=read_best(path / "checkpoints"),
            roofline=read_roofline(path),
            is_complete=(path / "summary.json").exists(),
        )

    def _once(self, kind: str, step: int, file: pathlib.Path, read: Any) -> Any:
        stamp = file.stat().st_mtime
        kept = self._kept.get((kind, step))
        if kept is None or kept[0] != stamp:
            kept = self._kept[kind, step] = (stamp, read(file))
        return kept[1]


_FILES = {"evaluations": ".json", "rollouts": ".jsonl", "tokens": ".npz"}


def read_held_out(file: pathlib.Path) -> dict[str, HeldOut]:
    """Each set's verdicts: one greedy response for each problem comes first, where there are any, then the others."""
    scores = read_scores(file.with_suffix(".json"))
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in read_responses(file):
        by_set.setdefault(row["set"], []).append(row)
    found = {}
    for name, rows in by_set.items():
        ids = tuple(dict.fromkeys(row["id"] for row in rows))
        correct = np.array([row["status"] == "correct" for row in rows], bool)
        count = len(ids)
        first = count if "greedy" in scores.get(name, {}) else 0
        samples = (len(rows) - first) // max(count, 1)
        is_whole = samples > 0 and len(rows) == first + count * samples
        found[name] = HeldOut(
            ids=ids,
            greedy=correct[:count, None] if first else None,
            sampled=correct[first:].reshape(count, samples) if is_whole else None,
        )
    return found


def _problems(file: pathlib.Path) -> ProblemRates:
    texts: dict[str, tuple[str, str]] = {}
    correct: dict[str, int] = {}
    judged: dict[str, int] = {}
    rows = read_rollout(file)
    for row in rows:
        name = row["id"]
        texts[name] = row["problem"], row["gold"]
        correct[name] = correct.get(name, 0) + (row["status"] == "correct")
        judged[name] = judged.get(name, 0) + (row["status"] not in ("timeout", "error"))
    longest = heapq.nlargest(_LONGEST, rows, key=lambda row: row["tokens"])
    unread = [row for row in rows if row["status"] in ("unparsed", "timeout", "error")]
    return ProblemRates(
        texts=texts,
        correct=correct,
        judged=judged,
        longest=tuple(map(_short, longest)),
        unread=tuple(map(_short, unread[:_UNREAD])),
    )


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "sample", "status", "reason", "extracted", "gold", "reward", "tokens", "finish")
    response = str(row["response"])
    cut = (
        response
        if len(response) <= 1500
        else f"{response[:700]}\n[… {len(response) - 1400} characters …]\n{response[-700:]}"
    )
    return {name: row.get(name) for name in names} | {"response": cut, "problem": str(row["problem"])[:1000]}
