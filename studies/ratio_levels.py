"""Does the level of the ratio matter? Token (GRPO), subsentence (SSPO) and response (GSPO), at matched clip fractions.

    make study STUDY=ratio_levels ARGS="--jobs 2"

Two tasks on the model of a million parameters: plain chains of arithmetic, and chains whose wording is free,
so that the policy keeps an entropy that bounds can read and its score does not saturate in the run. Sixteen updates a
rollout make the clip matter. All outcomes and contrasts are fixed here.
"""

import dataclasses

from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.worded import WordedData
from sspo_jax.losses import Grpo, Gspo, Sspo
from sspo_jax.studies import Comparison, Setting, Study, Variant
from sspo_jax.studies.outcomes import AREA, BEST, CLIP, FINAL, MECHANISM, collapsed, stable, steps_to
from sspo_jax.studies.study import Changes

PASSING = {"plain": 0.75, "worded": 0.75}
"""Between where four runs of GRPO ended at 2e-4 and 3e-4: 0.60 and 0.48 in the plain task, 0.80 and 0.68 in the other.
The two at 2e-4 are cells of this study (seed 1)."""
CLIPPED = 0.02
LEVELS = ("token", "subsentence", "response")
SMALL_STEPS: Changes = {
    "steps": 12,
    "rollout.prompts": 8,
    "rollout.group_size": 8,
    "update.per_rollout": 4,
    "update.epochs": 4,
    "update.micro_rows": 2,
    "evaluation.samples": 4,
    "evaluation.first": False,
    "evaluation.greedy": False,
    "evaluation.best": "none",
    "checkpoint.every": 1000,
    "checkpoint.keep": 1,
    "log.tokens_every": 0,
    "log.report_every": 0,
    "log.trackers": "none",
}
"""Twelve steps of 8 x 8 responses, 4 minibatches x 4 epochs each."""
PLAIN: Changes = {"evaluation.data": (ArithmeticData(split="held_out", size=64),)}
_WORDED = WordedData(wordings=6, min_steps=3, max_steps=4, reasoned_fraction=0.7)
WORDED: Changes = {
    "data": _WORDED,
    "evaluation.data": (dataclasses.replace(_WORDED, split="held_out", size=64),),
    "rollout.max_new_tokens": 60,
    "warm_start.row_tokens": 104,
    "warm_start.updates": 800,
}
TASKS = {"plain": PLAIN, "worded": WORDED}
SETS = {"plain": "arithmetic", "worded": "worded"}
RATES = {"plain": (1e-4, 2e-4), "worded": (2e-4, 3e-4)}
"""Around where those runs stop passing; in the plain task an earlier probe passed at 1e-4."""
PILOT_RATE = 2e-4
"""Where clip fractions are matched."""
RELATED = ("clip fraction", "mass removed", "extreme removed", "moderate removed", "responses touched")
"""Which of these orders the variants as the last score does: asked after the runs, for the next study to test."""


def study() -> Study:
    """Two tasks with two learning rates each, 14 seeds: seven variants in all of them, two in one, 420 runs."""
    return Study(
        title="Ratio levels",
        question="Does an objective learn better, or longer before it breaks, for the level of its ratio alone: token, "
        "subsentence, response? And do bounds that follow the entropy help?",
        base="arithmetic_tiny",
        changes=SMALL_STEPS,
        settings=tuple(
            Setting(
                name=f"{task}-{rate:g}",
                task=task,
                changes={**changes, "optimizer.learning_rate": rate},
                is_pilot=rate == PILOT_RATE,
            )
            for task, changes in TASKS.items()
            for rate in RATES[task]
        ),
        variants=(*published(), *matched()),
        seeds=tuple(range(14)),
        warm_starts=(0, 1),
        outcomes=(
            FINAL,
            BEST,
            AREA,
            stable({f"{SETS[task]}_held_out": score for task, score in PASSING.items()}),
            collapsed(0.2),
            steps_to(0.6),
            CLIP,
            *MECHANISM,
        ),
        comparisons=comparisons(),
        related=RELATED,
        passing_score=PASSING,
        seconds_per_run=45.0,
    )


def published() -> tuple[Variant, ...]:
    """The objectives as their papers set them."""
    presets = {"grpo": Grpo(), "gspo": Gspo(), "sspo": Sspo.paper_like()}
    return tuple(Variant(name=name, changes={"loss": loss}) for name, loss in presets.items())


def matched() -> tuple[Variant, ...]:
    """One loss at three levels, with and without entropy bounds, all clipping the same share of tokens.

    The bounds that the pilots scale begin near those published for the level. Entropy bounds are the paper's for
    subsentences; at the other levels they are tried where the policy's entropy is high.
    """
    widths = {"token": 0.2, "subsentence": 0.06, "response": 0.03}
    return tuple(
        Variant(
            name=f"{level}{'-entropy' if adapts else ''}",
            changes={
                "loss": Sspo(ratio_level=level, clip_low=widths[level], clip_high=widths[level], adapt_entropy=adapts)
            },
            match_clip=CLIPPED,
            settings=(f"worded-{PILOT_RATE:g}",) if adapts and level != "subsentence" else None,
        )
        for level in LEVELS
        for adapts in (False, True)
    )


def comparisons() -> tuple[Comparison, ...]:
    """Twenty questions: five pairs, each in both tasks, by the last score and by the rates survived."""
    pairs = (
        ("subsentence", "token"),
        ("subsentence", "response"),
        ("subsentence-entropy", "subsentence"),
        ("sspo", "grpo"),
        ("sspo", "gspo"),
    )
    return tuple(
        Comparison(first=first, second=second, outcome=outcome, task=task)
        for task in TASKS
        for outcome in ("final score", "stable")
        for first, second in pairs
    )
