"""The randomness of a token: a hash of (seed, step, prompt, sample, position), and of nothing else.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), the generator behind
`jax.random`, written out so that the same lines run on the host for whole rows (NumPy) and inside the decoding
program for one token a row (JAX). There it is a single fused kernel; `jax.random.fold_in` and `bits`, vectorized over
rows, compile to nested loops that take longer than the whole draw.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Two words of uint32 from two of key and two of counter, elementwise over NumPy or JAX arrays of uint32."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(_PARITY))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y = x ^ y
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def row_keys(seed: int, step: Any, prompt_ids: Any, sample_ids: Any) -> UInt32[np.ndarray, "rows 2"]:
    """The key of each row, on the host: seed (64 bits), then step, then prompt and sample."""

    def word(value: Any) -> np.ndarray:
        return np.atleast_1d(np.asarray(value, np.uint32))

    key = (word(seed >> 32), word(seed & 0xFFFFFFFF))
    key = threefry(key, (word(step), word(0)))
    return np.stack(np.broadcast_arrays(*threefry(key, (word(prompt_ids), word(sample_ids)))), axis=-1)


def token_bits(keys: Any, positions: Any) -> tuple[Any, Any]:
    """64 random bits for the tokens at these places of the responses, as two arrays of uint32.

    Args:
      keys: [rows, 2] uint32, of `row_keys`.
      positions: [rows] uint32; 0 for the first token of a response.
    """
    return threefry((keys[:, 0], keys[:, 1]), (positions, positions ^ positions))
