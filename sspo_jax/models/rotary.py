"""Rotary position embedding, with the YaRN, Llama 3 and linear scalings that stretch it to longer contexts."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched; `rope_scaling` or `rope_parameters` of a config.json."""

    kind: Literal["yarn", "llama3", "linear"]
    """yarn (arXiv:2309.00071), llama3 (Llama 3.1's, arXiv:2407.21783): low frequencies are divided by the factor, high
    ones kept, those between are mixed. linear: all are divided."""
    factor: float
    """Longest context over the original one."""
    original_max_positions: int = 32768
    """Context of the pretraining, in tokens (yarn, llama3)."""
    beta_fast: float = 32.0
    """Frequencies that turn more often than this within the original context are kept (yarn)."""
    beta_slow: float = 1.0
    """Frequencies that turn less often than this are divided by the factor (yarn)."""
    attention_factor: float | None = None
    """Multiplies cos and sin; None: 0.1 ln(factor) + 1 (yarn)."""
    low_freq_factor: float = 1.0
    """Frequencies that turn less often than this within the original context are divided by the factor (llama3)."""
    high_freq_factor: float = 4.0
    """Frequencies that turn more often than this are kept (llama3)."""

    def __post_init__(self) -> None:
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rotary scaling 'llama3' has low_freq_factor {self.low_freq_factor} and high_freq_factor "
                f"{self.high_freq_factor}; expected the first below the second"
            )

    @property
    def scale(self) -> float:
        """What cos and sin are multiplied with."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


_KINDS = ("yarn", "llama3", "linear")


def rope_from_hf(where: str, hf: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The rotary base and the entries about scaling of a config.json, as transformers 5 takes them.

    `rope_scaling` (the older spelling), where it is there and not empty, stands in the place of the whole of
    `rope_parameters`. The base is that of the entries taken, else `rope_theta` beside them, else 10,000.

    Args:
      where: the file; starts the error.
      hf: its content.

    Raises:
      ValueError: transformers would lose the base, because only the `rope_parameters` that it passes over has one; or
        the entries are by kind of layer.
    """
    new, old = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    rope = old or new
    if nested := [name for name, entry in rope.items() if isinstance(entry, dict)]:
        raise ValueError(
            f"{where}: rotary settings by kind of layer ({', '.join(nested)}) are not supported; expected the same "
            "for all layers"
        )
    theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 1e4)
    meant = float(new.get("rope_theta") or theta)
    if meant != theta:
        raise ValueError(
            f"{where}: rope_scaling replaces rope_parameters, whose rope_theta of {meant:g} would be lost: "
            f"transformers computes with {theta:g}. Put the scaling into rope_parameters, or rope_theta beside it"
        )
    return theta, rope


def scaling_from_hf(
    where: str, rope: dict[str, Any], max_positions: int, *, can_be_partial: bool = False
) -> RopeScaling | None:
    """Reads the entries that `rope_from_hf` found; None where nothing is stretched.

    Args:
      where: the file; starts the error.
      rope: the entries.
      max_positions: of the checkpoint, which stand for the original context where the entries do not say it.
      can_be_partial: a part of a head may be left as it is.

    Raises:
      ValueError: another scaling, or a setting that this model does not compute, by name.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if (partial := rope.get("partial_rotary_factor")) not in (None, 1, 1.0) and not can_be_partial:
        raise ValueError(f"{where}: partial_rotary_factor = {partial} is not supported, expected none or 1")
    if kind == "default":
        return None
    if kind not in _KINDS:
        known = ", ".join(map(repr, ("default", *_KINDS[:-1])))
        raise ValueError(f"{where}: rotary scaling {kind!r} is not supported, expected {known} or {_KINDS[-1]!r}")
    factor, original = float(rope["factor"]), int(rope.get("original_max_position_embeddings") or max_positions)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind == "llama3":
        if missing := [name for name in ("low_freq_factor", "high_freq_factor") if not rope.get(name)]:
            raise ValueError(f"{where}: rotary scaling 'llama3' has no {missing[0]}; expected one")
        return RopeScaling(
            kind="llama3",
            factor=factor,
            original_max_positions=original,
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
        )
    for name in ("mscale", "mscale_all_dim"):
        if rope.get(name):
            raise ValueError(f"{where}: {name} = {rope[name]} of rotary scaling 'yarn' is not supported, expected none")
    if rope.get("truncate") is False:
        raise ValueError(f"{where}: truncate = false of rotary scaling 'yarn' is not supported, expected true")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        attention_factor=rope.get("attention_factor"),
    )


def scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any]:
    """The entries of `rope_parameters` beside `rope_theta`."""
    if scaling is None:
        return {"rope_type": "default"}
    hf: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        hf["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        hf |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
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
    if scaling.kind == "llama3":
        return _llama3_frequencies(1.0 / powers, scaling)

    def pair_turning(times: float) -> float:
        """The (fractional) pair that turns so many times within the original context."""
        turns = scaling.original_max_positions / (times * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), head_dim - 1)
    ramp = (jnp.arange(head_dim // 2, dtype=jnp.float32) - low) / (high - low if high != low else 0.001)
    kept = 1 - jnp.clip(ramp, 0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _llama3_frequencies(frequencies: Float[Array, " half"], scaling: RopeScaling) -> Float[Array, " half"]:
    """With t = original context x frequency / 2 pi turns, low and high the two factors, s = (t - low) / (high - low):

    f / factor where t < low, f where t > high, between them (1 - s) f / factor + s f.
    """
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions
    wavelengths = 2 * math.pi / frequencies
    divided = frequencies / scaling.factor
    share = (context / wavelengths - low) / (high - low)
    between = (1 - share) * divided + share * frequencies
    kept = jnp.where(wavelengths < context / high, frequencies, between)
    return jnp.where(wavelengths > context / low, divided, kept)


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
    """Rotary embedding with the halves convention of Hugging Face: pairs are (i, i + half).

    Of the first 2 half entries, as many as there are angles for; the others are passed through.
    """
    cos, sin = angles
    turned = 2 * cos.shape[-1]
    if turned < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :turned], angles), x[..., turned:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
