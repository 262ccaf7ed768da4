"""Two evaluations side by side: the difference on the same problems, with its interval and p-value."""

import dataclasses
from collections.abc import Mapping

from sspo_jax.evaluation.intervals import Difference, Estimate, paired_average_difference, paired_difference
from sspo_jax.evaluation.presets import PAPER_SETS
from sspo_jax.evaluation.results import Evaluation
from sspo_jax.evaluation.scoring import SetScores

_SAME = ("preset", "temperature", "top_p", "max_new_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """First minus second, set by set."""

    sets: Mapping[str, tuple[Estimate, Estimate, Difference]]
    """Scores of the first and the second, and their difference, for every set that both have."""
    average_of: tuple[str, ...]
    """The sets of the average: the paper's five where both have them, else all common ones."""
    average: Difference
    """Difference of the unweighted means over those sets."""
    remarks: tuple[str, ...]
    """What a reader must know: another prompt, sets that only one has."""


def compare(first: Evaluation, second: Evaluation, *, seed: int = 0) -> Comparison:
    """The differences between two evaluations by the paired bootstrap.

    Raises:
      ValueError: sampled under different protocols (preset, temperature, top-p, token budget), a set of different
        problems, or no set in common.
    """
    differing = [
        f"{key} is {first.protocol.get(key)!r} and {second.protocol.get(key)!r}"
        for key in _SAME
        if first.protocol.get(key) != second.protocol.get(key)
    ]
    if differing:
        raise ValueError(
            "the two evaluations were sampled differently and are not comparable: "
            + "; ".join(differing)
            + ". Evaluate one of them again"
        )
    one = {scores.name: scores for scores in first.sets}
    two = {scores.name: scores for scores in second.sets}
    common = [name for name in one if name in two]
    if not common:
        raise ValueError(f"no set in common: {', '.join(one)} and {', '.join(two)}, expected at least one")
    for name in common:
        _check_same(name, one[name], two[name])
    average_of = PAPER_SETS if all(name in common for name in PAPER_SETS) else tuple(common)
    remarks = [
        f"only one of them has {', '.join(sorted(set(one) ^ set(two)))}: left out",
    ] * (set(one) != set(two))
    if first.protocol.get("prompt") != second.protocol.get("prompt"):
        remarks.append(f"other prompts: {first.protocol.get('prompt')} and {second.protocol.get('prompt')}")
    return Comparison(
        sets={
            name: (
                one[name].accuracy,
                two[name].accuracy,
                paired_difference(one[name].correct, two[name].correct, seed=seed),
            )
            for name in common
        },
        average_of=tuple(average_of),
        average=paired_average_difference(
            {name: (one[name].correct, two[name].correct) for name in average_of}, seed=seed
        ),
        remarks=tuple(remarks),
    )


def _check_same(name: str, first: SetScores, second: SetScores) -> None:
    if first.digest != second.digest or first.problem_ids != second.problem_ids:
        raise ValueError(
            f"{name}: the problems are not the same ({first.problems} with digest {first.digest[:12]}, "
            f"{second.problems} with {second.digest[:12]}): evaluate both on one file"
        )


def comparison_table(comparison: Comparison, names: tuple[str, str]) -> str:
    """The comparison as a Markdown table, in percent."""
    lines = [
        f"| set | {names[0]} | {names[1]} | difference | 95 % interval | p |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (one, two, difference) in comparison.sets.items():
        lines.append(f"| {name} | {one.value:.1%} | {two.value:.1%} | {_difference_cells(difference)} |")
    mean = [sum(comparison.sets[name][side].value for name in comparison.average_of) for side in (0, 1)]
    count = len(comparison.average_of)
    lines.append(
        f"| average of {count} | {mean[0] / count:.1%} | {mean[1] / count:.1%} "
        f"| {_difference_cells(comparison.average)} |"
    )
    return "\n".join([*lines, *(f"\n{remark}" for remark in comparison.remarks)])


def _difference_cells(difference: Difference) -> str:
    return (
        f"{100 * difference.value:+.1f} | {100 * difference.low:+.1f} to {100 * difference.high:+.1f} "
        f"| {difference.p_value:.2g}"
    )
