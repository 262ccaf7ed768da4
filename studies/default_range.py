"""How narrow must SSPO's range be for its clip to act in the default experiment, and does it still learn?

    make study STUDY=default_range ARGS="--jobs 2"

The experiment of `make train`, eight seeds from one warm start, with the calibrated range, a half and a fourth of it.
"""

from sspo_jax.losses import Sspo
from sspo_jax.studies import Comparison, Study, Variant
from sspo_jax.studies.outcomes import AREA, BEST, CLIP, FINAL, MECHANISM, collapsed, steps_to

SHARES = {"calibrated": 1.0, "half": 0.5, "quarter": 0.25}


def study() -> Study:
    """Three ranges, eight seeds."""
    calibrated = Sspo.calibrated()
    ranges = {
        name: Sspo.calibrated(clip_low=share * calibrated.clip_low, clip_high=share * calibrated.clip_high)
        for name, share in SHARES.items()
    }
    return Study(
        title="The range of the default experiment",
        question="Which range clips between 0.5 and 5 % in the default experiment and leaves what it learns as it is?",
        base="arithmetic_tiny",
        changes={
            "steps": 30,
            "update.micro_rows": 2,
            "evaluation.best": "none",
            "checkpoint.every": 1000,
            "log.tokens_every": 0,
            "log.report_every": 0,
        },
        variants=tuple(Variant(name=name, changes={"loss": loss}) for name, loss in ranges.items()),
        seeds=tuple(range(8)),
        outcomes=(FINAL, BEST, AREA, collapsed(0.2), steps_to(0.9), CLIP, *MECHANISM),
        comparisons=tuple(
            Comparison(first=name, second="calibrated", outcome="final score") for name in ("half", "quarter")
        ),
        seconds_per_run=210.0,
    )
