"""Random batches for the loss tests, padded or packed, in float64 so that a bound can be 1e-12."""

import numpy as np
from hypothesis import strategies as st

SHAPE = (4, 12)
ARRAYS = ("logprobs", "old_logprobs", "advantages", "mask", "subsentence_ids", "entropies")


def make(seed: int, *, scale: float = 0.3, is_packed: bool = False, rows: int = SHAPE[0], time: int = SHAPE[1]) -> dict:
    """NumPy arrays; garbage (NaN, inf) wherever the mask is false."""
    random = np.random.default_rng(seed)
    shape = (rows, time)
    segment_ids = np.ones(shape, int)
    mask = random.random(shape) < 0.8
    if is_packed:
        segment_ids = np.minimum(np.cumsum(random.random(shape) < 0.2, axis=1), 2)
        mask &= segment_ids > 0
    if rows > 1:
        mask[random.integers(rows)] = False
    cuts = np.cumsum(random.random(shape) < 0.35, axis=1)
    labels = random.permutation(np.arange(-50, 50))[cuts]
    batch = {
        "logprobs": random.normal(-1.5, 0.8, shape),
        "advantages": random.normal(0, 1, shape) * (random.random(shape) < 0.9),
        "mask": mask,
        "subsentence_ids": labels,
        "entropies": random.exponential(0.7, shape),
        "segment_ids": segment_ids,
        "sampler_logprobs": random.normal(-1.5, 0.8, shape),
    }
    # Responses share prompts across rows; every token knows how many its prompt has.
    prompts = np.random.default_rng(seed).integers(0, 3, (rows, 4))[np.arange(rows)[:, None], segment_ids]
    counts = np.bincount(prompts[mask], minlength=3)
    batch["group_tokens"] = np.where(mask, counts[prompts], np.nan)
    batch["old_logprobs"] = batch["logprobs"] - random.normal(0, scale, shape)
    batch["sampler_logprobs"] = batch["old_logprobs"] + random.normal(0, scale, shape)
    for name in ("logprobs", "old_logprobs", "advantages", "entropies", "sampler_logprobs"):
        garbage = random.choice([np.nan, np.inf, -np.inf, 1e30], shape)
        batch[name] = np.where(mask, batch[name], garbage)
    return batch


batches = st.builds(
    make,
    st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 0.02, 0.3, 2.0]),
    is_packed=st.booleans(),
)
