"""Evaluation inside a run, with the run's own engine and checker."""

import dataclasses
from collections.abc import Callable
from typing import Any

from sspo_jax.config import EvaluationConfig
from sspo_jax.data.filters import SubsetSource
from sspo_jax.data.problems import ProblemSource
from sspo_jax.distributed.processes import is_main
from sspo_jax.evaluation.judging import Judge
from sspo_jax.evaluation.policy import evaluate_policy
from sspo_jax.evaluation.scoring import SampleRow, SetScores
from sspo_jax.files import write_json, write_json_lines
from sspo_jax.runs.directory import RunDirectory
from sspo_jax.runs.display import Display
from sspo_jax.runs.records import read_responses, read_scores
from sspo_jax.sampler import RolloutEngine, SamplingParams
from sspo_jax.trainer.setup import RunInputs


class Evaluator:
    """Scores the policy on the held-out sets: greedy, avg@k at the temperature of the rollout, or both.

    Args:
      settings: which sets, how often, how many samples.
      inputs: the sets, the prompts and the tokenizer of the run.
      sampling: of the rollouts; the engine's programs are used again where the settings allow.
      judge: that of the rewards.
      directory: of the run.
      steps: of the whole run; after the last one there is always an evaluation.
      seed: of the sampling and of the bootstrap.
      responses_at_once: how many the engine samples in one call.
    """

    def __init__(
        self,
        settings: EvaluationConfig,
        inputs: RunInputs,
        sampling: SamplingParams,
        judge: Judge,
        directory: RunDirectory,
        *,
        steps: int,
        seed: int,
        responses_at_once: int,
    ):
        self._settings, self._inputs, self._directory = settings, inputs, directory
        self._judge = judge
        self._steps, self._seed, self._responses_at_once = steps, seed, responses_at_once
        limit = settings.max_new_tokens or sampling.max_new_tokens
        self._sampled = dataclasses.replace(sampling, max_new_tokens=limit)
        self._greedy = dataclasses.replace(self._sampled, temperature=0.0, top_p=1.0, top_k=0)
        self.sets: tuple[ProblemSource, ...] = tuple(_first(source, settings.problems) for source in inputs.evaluation)

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after this step (0: before the first)."""
        every = self._settings.every
        if not self.sets or (step == 0 and not self._settings.first):
            return False
        return step in (0, self._steps) or (every > 0 and step % every == 0)

    def __call__(
        self, engine: RolloutEngine, step: int, display: Display, *, poll: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, Any]]:
        """Scores of each set; responses and scores are written to evaluations/step_N.jsonl and .json.

        Args:
          engine: with the weights of the policy.
          poll: called between blocks of decoding; what it raises ends the evaluation, and nothing is written.
        """
        scores: dict[str, dict[str, Any]] = {}
        rows: list[SampleRow] = []
        for source in self.sets:
            samples, score = self._settings.samples, {}
            if self._settings.greedy:
                greedy, greedy_rows = self._score(engine, source, self._greedy, 1, display, poll)
                rows += greedy_rows
                score = {**_about(greedy), "greedy": dataclasses.asdict(greedy.accuracy)}
            if samples:
                sampled, sampled_rows = self._score(engine, source, self._sampled, samples, display, poll)
                rows += sampled_rows
                # With one sample pass@1 is the accuracy, and is not reported apart from it.
                passed = sampled.metrics.get(f"pass@{samples}", sampled.accuracy)
                score = (score or _about(sampled)) | {
                    "samples": samples,
                    "avg": dataclasses.asdict(sampled.accuracy),
                    f"pass@{samples}": dataclasses.asdict(passed),
                    "sampled_length_mean": sampled.metrics["length_mean"].value,
                }
            scores[source.name] = score
        if is_main():
            self._write(step, scores, rows)
        return scores

    def _write(self, step: int, scores: dict[str, dict[str, Any]], rows: list[SampleRow]) -> None:
        path = self._directory.evaluation(step)
        path.parent.mkdir(exist_ok=True)
        write_json_lines(path.with_suffix(".jsonl"), map(dataclasses.asdict, rows))
        write_json(path, scores)

    def _score(
        self,
        engine: RolloutEngine,
        source: ProblemSource,
        sampling: SamplingParams,
        group_size: int,
        display: Display,
        poll: Callable[[], None],
    ) -> tuple[SetScores, list[SampleRow]]:
        what = "greedy" if sampling is self._greedy else f"avg@{group_size}"
        display.phase(f"evaluate {source.name}, {what}", total=None)

        def sample(prompts: list[list[int]], *, group_size: int, sampling: SamplingParams, seed: int) -> Any:
            return engine.generate(prompts, sampling, group_size=group_size, seed=seed, progress=lambda _: poll())

        return evaluate_policy(
            sample,
            source,
            prompts=self._inputs.prompts,
            tokenizer=self._inputs.tokenizer,
            judge=self._judge,
            sampling=sampling,
            group_size=group_size,
            seed=self._seed,
            problems_at_once=max(1, self._responses_at_once // group_size),
        )

    def read(self, step: int) -> dict[str, dict[str, Any]] | None:
        """Scores written earlier, by this process or before a restart."""
        path = self._directory.evaluation(step)
        return read_scores(path) if path.exists() else None

    def examples(self, first: int, last: int, count: int = 3) -> list[dict[str, Any]]:
        """The first (greedy, if there are any) responses to a few problems at two evaluations, side by side."""
        found = []
        for step in (first, last):
            file = self._directory.evaluation(step).with_suffix(".jsonl")
            if not file.exists():
                return []
            rows = read_responses(file)
            found.append({(row["set"], row["id"]): row for row in reversed(rows) if row["sample"] == 0})
        examples = []
        for source in self.sets:
            for index in range(min(count, len(source))):
                problem = source[index]
                before, after = (rows.get((source.name, problem.id)) for rows in found)
                if before and after:
                    examples.append(
                        {
                            "problem": problem.problem,
                            "gold": problem.answer,
                            "before": {"response": before["response"], "status": before["status"]},
                            "after": {"response": after["response"], "status": after["status"]},
                        }
                    )
        return examples[:count]


def metrics_of(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`eval/<set>/accuracy` (greedy) and the others as flat numbers for metrics.jsonl."""
    metrics = {}
    for name, score in scores.items():
        if "greedy" in score:
            metrics[f"eval/{name}/accuracy"] = score["greedy"]["value"]
        metrics[f"eval/{name}/length_mean"] = score["length_mean"]
        metrics[f"eval/{name}/truncated_fraction"] = score["truncated_fraction"]
        if "avg" in score:
            metrics[f"eval/{name}/avg_at_{score['samples']}"] = score["avg"]["value"]
    return metrics


def _about(scores: SetScores) -> dict[str, Any]:
    """What is said of the responses of a set, of the greedy ones where there are any."""
    shown = ("length_mean", "truncated_fraction", "unparsed_fraction")
    return {"problems": scores.problems, **{name: scores.metrics[name].value for name in shown}}


def _first(source: ProblemSource, count: int | None) -> ProblemSource:
    return source if count is None or count >= len(source) else SubsetSource(source, range(count))
