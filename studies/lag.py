"""What does training on older samples cost, and does it cost a ratio of one level more than one of another?

    make study STUDY=lag ARGS="--jobs 2"

The task of the default experiment, sampled 0, 1, 2 and 4 steps ahead, with ratios of the token, the subsentence and
the response. The bounds of a level are the same at every lag, so that inside a level only the age of the samples
differs. All outcomes and contrasts are fixed here.
"""

from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.losses import Sspo
from sspo_jax.losses.ratios import Level
from sspo_jax.studies import Comparison, Study, Variant
from sspo_jax.studies.outcomes import AREA, BEST, CLIP, FINAL, MECHANISM, collapsed, mean_of, steps_to

LAGS = (0, 1, 2, 4)
WIDTHS: dict[Level, float] = {"token": 0.2, "subsentence": 0.06, "response": 0.03}
"""Bounds near those published for a ratio of the level."""
AGE = mean_of("rollout/age_mean", "mean age of the tokens trained on, in steps", name="age", is_share=False)


def study() -> Study:
    """Four lags, three levels, eight seeds: 96 runs of 24 steps."""
    return Study(
        title="Lag",
        question="How much worse does an objective learn from samples of older weights, for ratios of the token, the "
        "subsentence and the response?",
        base="arithmetic_tiny",
        changes={
            "steps": 24,  # of which all but the first few have the full lag
            "rollout.prompts": 8,
            "rollout.group_size": 8,
            "update.per_rollout": 4,
            "update.micro_rows": 2,
            "optimizer.learning_rate": 2e-4,
            "evaluation.data": (ArithmeticData(split="held_out", size=64),),
            "evaluation.samples": 4,
            "evaluation.first": False,
            "evaluation.greedy": False,
            "evaluation.best": "none",
            "checkpoint.every": 1000,
            "checkpoint.keep": 1,
            "log.tokens_every": 0,
            "log.report_every": 0,
            "log.trackers": "none",
        },
        variants=tuple(
            Variant(
                name=f"{level}-lag{lag}",
                changes={
                    "rollout.lag": lag,
                    "loss": Sspo(ratio_level=level, clip_low=width, clip_high=width, adapt_entropy=False),
                },
            )
            for level, width in WIDTHS.items()
            for lag in LAGS
        ),
        seeds=tuple(range(8)),
        warm_starts=(0, 1),
        outcomes=(FINAL, BEST, AREA, collapsed(0.2), steps_to(0.6), CLIP, AGE, *MECHANISM),
        comparisons=tuple(
            Comparison(first=f"{level}-lag{lag}", second=f"{level}-lag0", outcome="final score")
            for level in WIDTHS
            for lag in LAGS[1:]
        ),
        seconds_per_run=60.0,
    )
