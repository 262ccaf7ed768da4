"""Does it matter where SSPO cuts? Rules of cutting at matched clip fractions.

    make study STUDY=segments ARGS="--jobs 2"

On the worded task of ratio_levels, without entropy bounds, so that nothing but the unit of the ratio differs.
"""

from sspo_jax.config import SegmenterConfig
from sspo_jax.losses import Sspo
from sspo_jax.studies import Comparison, Setting, Study, Variant
from sspo_jax.studies.outcomes import AREA, CLIP, FINAL, MECHANISM, mean_of

from . import ratio_levels

RULES = {
    "punctuation": SegmenterConfig(rule="punctuation"),
    "punctuation-1": SegmenterConfig(rule="punctuation", min_tokens=1),
    "punctuation-10": SegmenterConfig(rule="punctuation", min_tokens=10),
    "sentence": SegmenterConfig(rule="sentence"),
    "fixed-8": SegmenterConfig(rule="fixed(8)"),
    "fixed-16": SegmenterConfig(rule="fixed(16)"),
    "entropy": SegmenterConfig(rule="entropy"),
}


def study() -> Study:
    """Seven rules, one learning rate, sixteen seeds."""
    loss = Sspo(clip_low=0.06, clip_high=0.06, adapt_entropy=False)
    return Study(
        title="Rules of cutting",
        question="Does the rule by which responses are cut into subsentences change how well SSPO learns?",
        base="arithmetic_tiny",
        changes={**ratio_levels.SMALL_STEPS, **ratio_levels.WORDED},
        settings=(Setting(name="worded", changes={"optimizer.learning_rate": ratio_levels.PILOT_RATE}),),
        variants=tuple(
            Variant(name=name, changes={"loss": loss, "segmenter": rule}, match_clip=ratio_levels.CLIPPED)
            for name, rule in RULES.items()
        ),
        seeds=tuple(range(16)),
        warm_starts=(0, 1),
        outcomes=(
            FINAL,
            AREA,
            CLIP,
            mean_of("subsentence/length_mean", "tokens in a unit", name="unit length", is_share=False),
            *MECHANISM,
        ),
        comparisons=tuple(
            Comparison(first="punctuation", second=name, outcome="final score")
            for name in RULES
            if name != "punctuation"
        ),
        related=ratio_levels.RELATED,
        seconds_per_run=45.0,
    )
