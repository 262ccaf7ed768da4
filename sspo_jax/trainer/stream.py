"""The curriculum inside a run: graded rollouts to solve rates, and what is logged of them.

Every batch that is drawn counts, also those of dynamic sampling whose groups are dropped: they are dropped because
they are always or never solved, which is what the curriculum has to know. A response without a verdict counts neither
as right nor as wrong, and a group without any verdict leaves its problem's rate as it was.
"""

import numpy as np

from sspo_jax.data.curriculum import CurriculumConfig, CurriculumStream
from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import Problem, ProblemSource
from sspo_jax.trainer.grading import GradedRollout


def open_stream(
    data: ProblemSource, curriculum: CurriculumConfig | None, *, batch_size: int, seed: int
) -> ProblemStream | CurriculumStream:
    """Training problems in the order of the run, through the curriculum where the experiment has one."""
    if curriculum is None:
        return ProblemStream(data, batch_size=batch_size, seed=seed)
    return CurriculumStream(data, config=curriculum, batch_size=batch_size, seed=seed)


def solve_rates(groups: GradedRollout) -> list[tuple[Problem, float]]:
    """Each problem with the share of right responses among those that have a verdict; without any it is left out."""
    rates = []
    correct = np.array([verdict.status == "correct" for verdict in groups.verdicts], bool)
    for group in dict.fromkeys(groups.rollout.group_ids.tolist()):
        members = np.flatnonzero(groups.rollout.group_ids == group)
        judged = members[groups.is_judged[members]]
        if len(judged):
            rates.append((groups.problems[int(members[0])], float(correct[judged].mean())))
    return rates


def learn(stream: ProblemStream | CurriculumStream, groups: GradedRollout) -> None:
    """Takes in a graded batch; without a curriculum, nothing."""
    if isinstance(stream, CurriculumStream):
        rates = solve_rates(groups)
        stream.update([problem for problem, _ in rates], [rate for _, rate in rates])


def metrics(stream: ProblemStream | CurriculumStream) -> dict[str, float]:
    """curriculum/* after a step; without a curriculum, nothing.

    `problems_seen` have a solve rate, whose mean is `solve_rate_mean`; `weight_mean` is the mean probability with which
    they are taken now, so what lies below 1 is saved; `passed_over` counts candidates since the start of the run.
    """
    if not isinstance(stream, CurriculumStream):
        return {}
    rates = stream.rates
    return {
        "curriculum/problems_seen": float(len(rates)),
        "curriculum/solve_rate_mean": float(np.mean(list(rates.values()))) if rates else 0.0,
        "curriculum/weight_mean": float(np.mean([stream.weight(ident) for ident in rates])) if rates else 1.0,
        "curriculum/passed_over": float(stream.passed_over),
    }
