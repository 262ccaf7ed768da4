"""As qwen25_math_1p5b_sspo, with Qwen2.5-Math-7B.

    make train EXP=qwen25_math_7b_sspo ARGS="--data.path math_lvl3to5_8k.jsonl"

Not yet run at full size: see docs/first_real_run.md for what it needs.
"""

import dataclasses

from sspo_jax.config import TrainConfig

from . import qwen25_math_1p5b_sspo


def config() -> TrainConfig:
    """The 1.5B setting with the larger model."""
    base = qwen25_math_1p5b_sspo.config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, path="Qwen/Qwen2.5-Math-7B"),
        rollout=dataclasses.replace(base.rollout, slots=256),  # of a v5e-16, as are the rows of a micro-batch
        update=dataclasses.replace(base.update, micro_rows=16),  # one for each chip of a v5e-16: see docs/tpu.md
    )
