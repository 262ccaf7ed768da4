"""The paper's table (arXiv:2511.04256v2): GRPO, GSPO and SSPO on Qwen2.5-Math-1.5B, five sets. Accelerators, days.

    make study STUDY=paper_table

One run each of experiments/qwen25_math_1p5b_sspo.py, which says what is known of the setting and what was chosen. The
report has avg@8 beside greedy for every set, the average beside the published one, and differences by problem;
with one seed those are the only intervals there are. More seeds: a file of one's own with other `seeds`.
"""

import dataclasses

from sspo_jax.losses import Grpo, Gspo, Sspo
from sspo_jax.studies import Comparison, Study, Variant
from sspo_jax.studies.outcomes import BEST, CLIP, FINAL, MECHANISM


def study() -> Study:
    """Three objectives as published."""
    losses = {"GRPO": Grpo(), "GSPO": Gspo(), "SSPO": Sspo.paper_like()}
    return Study(
        title="The table of the paper",
        question="Do GRPO, GSPO and SSPO reach 43.01, 44.42 and 46.72 on average over the five sets?",
        base="qwen25_math_1p5b_sspo",
        changes={"evaluation.samples": 8, "evaluation.every": 100},
        variants=tuple(Variant(name=name, changes={"loss": loss}) for name, loss in losses.items()),
        outcomes=(dataclasses.replace(FINAL, meaning="avg@8, mean over the five sets, after the last step"), BEST, CLIP,
                  *MECHANISM),
        comparisons=tuple(
            Comparison(first="SSPO", second=other, outcome="final score") for other in ("GRPO", "GSPO")
        ),
        published={"GRPO": 43.01, "GSPO": 44.42, "SSPO": 46.72},
        seconds_per_run=4 * 24 * 3600.0,
        keeps_checkpoints=True,
    )  # fmt: skip
