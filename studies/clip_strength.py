"""Does the level of the ratio matter where clips are equally strong, or does their strength alone?

    make study STUDY=clip_strength ARGS="--jobs 2"

In ratio_levels, where all clip the same share of tokens, the last score followed the share of the sum of |A d| that
the clip removes, and with it the level. Here that share is matched instead, at two strengths, so that level and
strength part. The worded task of ratio_levels at one learning rate, without entropy bounds.
"""

from sspo_jax.losses import Sspo
from sspo_jax.losses.ratios import Level
from sspo_jax.studies import Comparison, Setting, Study, Variant
from sspo_jax.studies.outcomes import AREA, CLIP, FINAL, MECHANISM, collapsed

from . import ratio_levels

STRENGTHS = {"weak": 0.5, "strong": 0.8}
"""Share of the sum of |A d| that is removed."""
WIDTHS: dict[Level, float] = {"token": 0.2, "subsentence": 0.06, "response": 0.01}
"""Where the pilots begin."""


def study() -> Study:
    """Three levels at two strengths, one learning rate, fourteen seeds: 84 runs."""
    return Study(
        title="The strength of a clip",
        question="At equal strength of the clip, does the level of its ratio change how well an objective learns? And "
        "at one level, does the strength?",
        base="arithmetic_tiny",
        changes={**ratio_levels.SMALL_STEPS, **ratio_levels.WORDED},
        settings=(Setting(name="worded", changes={"optimizer.learning_rate": ratio_levels.PILOT_RATE}),),
        variants=tuple(
            Variant(
                name=f"{level}-{strength}",
                changes={
                    "loss": Sspo(ratio_level=level, clip_low=width, clip_high=width, adapt_entropy=False),
                },
                match_mass=mass,
            )
            for strength, mass in STRENGTHS.items()
            for level, width in WIDTHS.items()
        ),
        seeds=tuple(range(14)),
        warm_starts=(0, 1),
        outcomes=(FINAL, AREA, collapsed(0.2), CLIP, *MECHANISM),
        comparisons=(
            *(
                Comparison(first=f"subsentence-{strength}", second=f"{level}-{strength}", outcome="final score")
                for strength in STRENGTHS
                for level in ("token", "response")
            ),
            *(Comparison(first=f"{level}-strong", second=f"{level}-weak", outcome="final score") for level in WIDTHS),
        ),
        related=ratio_levels.RELATED,
        seconds_per_run=45.0,
    )
