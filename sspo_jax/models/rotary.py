"""Rotary position embedding, with the YaRN and linear scalings that stretch it to longer contexts."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched; `rope_scaling` or `rope_parameters` of a config.json."""

    kind: Literal["yarn", "linear"]
    """yarn (arXiv:2309.00071): low frequencies are divided by the factor, high ones kept. linear: all divided."""
    factor: float
    """Longest context over the original one."""
    original_max_positions: int = 32768
    """Context of the pretraining, in tokens (yarn)."""
    beta_fast: float = 32.0
    """Frequencies that turn more often than this within the original context are kept (yarn)."""
    beta_slow: float = 1.0
    """Frequencies that turn less often than this are divided by the factor (yarn)."""
    attention_factor: float | None = None
    """Multiplies cos and sin; None: 0.1 ln(factor) + 1 (yarn)."""

    @property
    def scale(self) -> float:
        """What cos and sin are multiplied with."""
        if self.kind == "linear":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def scaling_from_hf(where: str, rope: dict[str, Any], max_positions: int) -> RopeScaling | None:
    """Reads `rope_scaling` (old) or `rope_parameters` (new); None where nothing is stretched.

    Raises:
      ValueError: another scaling, or a setting of YaRN that no Qwen uses, by name; `where` is the file.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("yarn", "linear"):
        raise ValueError(f"{where}: rotary scaling {kind!r} is not supported, expected 'default', 'yarn' or 'linear'")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(rope["factor"]))
    for name in ("mscale", "mscale_all_dim", "partial_rotary_factor"):
        if rope.get(name):
            raise ValueError(f"{where}: {name} = {rope[name]} of rotary scaling 'yarn' is not supported, expected none")
    if rope.get("truncate") is False:
        raise ValueError(f"{where}: truncate = false of rotary scaling 'yarn' is not supported, expected true")
    return RopeScaling(
        kind="yarn",
        factor=float(rope["factor"]),
        original_max_positions=int(rope.get("original_max_position_embeddings") or max_positions),
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        attention_factor=rope.get("attention_factor"),
    )


def scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any]:
    """The entries of `rope_parameters` beside `rope_theta`."""
    if scaling is None:
        return {"rope_type": "default"}
    hf: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        hf["original_max_position_embeddings"] = scaling.original_max_positions
        hf |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            hf["attention_factor"] = scaling.attention_factor
    return hf


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Array, " half"]:
    """Radians per position of each pair of a head: theta^(-2i / head_dim), stretched as `scaling` says.

    In float32 throughout, as in transformers: at position 32,000 the last bit of a frequency is a thousandth of a
    radian, so more digits would move the logits away from the reference.
    """
    powers = theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return 1.0 / powers
    if scaling.kind == "linear":
        return 1.0 / powers / scaling.factor

    def pair_turning(times: float) -> float:
        """The (fractional) pair that turns so many times within the original context."""
        turns = scaling.original_max_positions / (times * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), head_dim - 1)
    ramp = (jnp.arange(head_dim // 2, dtype=jnp.float32) - low) / (high - low if high != low else 0.001)
    kept = 1 - jnp.clip(ramp, 0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def rotary_table(
    positions: Int[Array, "..."], head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[Array, Array]:
    """cos and sin of shape [..., 1, head_dim / 2], float32; the singleton broadcasts over heads."""
    frequencies = jnp.expand_dims(rotary_frequencies(head_dim, theta, scaling), tuple(range(positions.ndim)))
    angles = (positions.astype(jnp.float32)[..., None] * frequencies)[..., None, :]
    # Behind the barrier, or XLA computes them again for every head of every layer.
    cos, sin = jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
    return (cos, sin) if scaling is None else (cos * scaling.scale, sin * scaling.scale)


def rotate(x: Float[Array, "... heads head_dim"], angles: tuple[Array, Array]) -> Array:
    """Rotary embedding with the halves convention of Hugging Face: pairs are (i, i + head_dim / 2)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
