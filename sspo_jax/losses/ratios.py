"""Log and importance ratios at three levels: token, subsentence, response.

All levels share one path: tokens get the label of the unit they belong to (`level_ids`), labels become dense row-local
numbers (`unit_ids`; a cumulative sum where they rise along the row, else a sort), and a sum over units is one
`segment_sum` (`unit_mean`). A unit never crosses a row or a packed response, whatever the labels say.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sspo_jax.types import Number

Level = Literal["token", "subsentence", "turn", "response"]
Gradient = Literal["token", "plain"]


class Units(NamedTuple):
    """Which unit each token belongs to, numbered inside its row."""

    ids: Int[Array, "batch time"]  # 0 <= id < time where the mask is true; `time`, out of range, elsewhere
    lengths: Float[Array, "batch time"]  # valid tokens in the unit of this token; 1 where the mask is false


def check_shapes(like: Array, **arrays: Array | None) -> None:
    """Refuses the first of `arrays` whose shape is not that of `like`, a `mask` of numbers and ids that are none.

    Raises:
      ValueError: which array, its shape or type, what was expected, and where arrays are one position apart or have
        one number a row, how to mend it.
    """
    for name, array in arrays.items():
        if array is None:
            continue
        if array.shape != like.shape:
            hint = _shape_hint(name, array.shape, like.shape)
            raise ValueError(f"{name} has shape {array.shape}, expected {like.shape}, the shape of logprobs{hint}")
        if name == "mask" and array.dtype != bool:
            raise ValueError(f"mask has type {array.dtype}, expected bool, true where a token counts: mask > 0")
        if name == "subsentence_ids" and not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"subsentence_ids has type {array.dtype}, expected integers, -1 where the mask is false")


def _shape_hint(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """How two common mistakes are mended; nothing for others."""
    if shape in (expected[:1], (*expected[:1], 1)):
        column = name if len(shape) == 2 else f"{name}[:, None]"
        return f". One number a row: jnp.broadcast_to({column}, {expected})"
    is_of_rows = len(shape) == len(expected) == 2 and shape[0] == expected[0]
    if is_of_rows and abs(shape[1] - expected[1]) == 1:
        return (
            ". They are one position apart: position t of every array is of tokens[:, t] itself, as in logprobs[:, t]. "
            "Logits at t are of the token after it, so those of logits[:, :-1] give the log-probs of tokens[:, 1:]: "
            "cut the longer arrays with [:, 1:]"
        )
    return ""


def float_type(*arrays: Array | None) -> jnp.dtype:
    """float32, or float64 when an input is: ratios and reductions are never computed in less."""
    return jnp.result_type(jnp.float32, *(array.dtype for array in arrays if array is not None))


def level_ids(
    level: str, mask: Bool[Array, "batch time"], subsentence_ids: Int[Array, "batch time"] | None = None
) -> Int[Array, "batch time"]:
    """Labels of the units of a level: the position, the subsentence id, the turn, or 0 for the whole response.

    With these labels SSPO's code is GRPO's ratio (`token`), SSPO's (`subsentence`) or GSPO's (`response`). A turn is
    what the policy says at a time: valid tokens without a gap, between texts of an environment. Without an environment
    a response is one turn.
    """
    if level == "token":
        return jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :], mask.shape)
    if level == "response":
        return jnp.zeros(mask.shape, jnp.int32)
    if level == "turn":
        is_first = mask & ~jnp.pad(mask[:, :-1], ((0, 0), (1, 0)))
        return jnp.cumsum(is_first, axis=1, dtype=jnp.int32)
    if level == "subsentence":
        if subsentence_ids is None:
            raise ValueError("ratio_level 'subsentence' needs subsentence_ids: sspo_jax.subsentences makes them")
        return subsentence_ids
    raise ValueError(f"ratio_level is {level!r}, expected one of {', '.join(get_args(Level))}")


def unit_ids(
    labels: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Units:
    """Numbers the units of each row: tokens with equal label and equal segment are one unit.

    Labels may be any integers and need not be contiguous; nothing depends on their values but which are equal. Where
    labels and segments rise along every row, as those of the segmenter do, a unit is a run of tokens and one pass
    numbers them all; otherwise a sort does, which a CPU takes several times as long for. Which of the two is decided
    on the device, so that a program is compiled once.
    """
    segments = jnp.zeros_like(labels) if segment_ids is None else segment_ids
    before = [_largest_before(values, mask) for values in (segments, labels)]
    rises = [jnp.all(~mask | (values >= most)) for values, most in zip((segments, labels), before, strict=True)]
    is_new = mask & ((segments != before[0]) | (labels != before[1]))
    ids = jax.lax.cond(rises[0] & rises[1], _run_ids, _sorted_ids, labels, segments, mask, is_new)
    ones = mask.astype(jnp.float32)
    return Units(ids, jnp.where(mask, _unit_sum(ones, ids), 1.0))


def _largest_before(values: Int[Array, "batch time"], mask: Bool[Array, "batch time"]) -> Int[Array, "batch time"]:
    """The largest valid value to the left of each token: that of the last valid token, where the values rise."""
    least = jnp.iinfo(values.dtype).min
    most = jax.lax.cummax(jnp.where(mask, values, least), axis=1)
    return jnp.pad(most[:, :-1], ((0, 0), (1, 0)), constant_values=least)


def _run_ids(
    labels: Int[Array, "batch time"],
    segments: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    is_new: Bool[Array, "batch time"],
) -> Int[Array, "batch time"]:
    """Unit numbers where a unit is a run of tokens, gaps of the mask aside, and `is_new` is true where one starts."""
    valid_before = jnp.cumsum(mask, axis=1, dtype=jnp.int32) > 1
    ids = jnp.cumsum(is_new & valid_before, axis=1, dtype=jnp.int32)
    return jnp.where(mask, ids, mask.shape[1])


def _sorted_ids(
    labels: Int[Array, "batch time"],
    segments: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    is_new: Bool[Array, "batch time"],
) -> Int[Array, "batch time"]:
    """Unit numbers of any labels, by a stable sort of each row by (masked, segment, label)."""
    time = mask.shape[1]
    positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None, :], mask.shape)
    excluded, segments, labels, order = jax.lax.sort(
        ((~mask).astype(jnp.int32), segments, labels, positions), dimension=1, num_keys=3, is_stable=True
    )
    differs = (segments[:, 1:] != segments[:, :-1]) | (labels[:, 1:] != labels[:, :-1])
    sorted_ids = jnp.pad(jnp.cumsum(differs, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    sorted_ids = jnp.where(excluded == 1, time, sorted_ids)
    # Sorting by the original position undoes the first sort; a scatter would be slower on every backend.
    _, ids = jax.lax.sort((order, sorted_ids), dimension=1, num_keys=1)
    return ids


def level_units(
    level: str,
    mask: Bool[Array, "batch time"],
    subsentence_ids: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Units:
    """The units of a level, in every row and packed response."""
    labels = level_ids(level, mask, subsentence_ids)
    if level == "response" and segment_ids is None:
        # A row is one response: its units need no sort.
        lengths = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
        return Units(jnp.where(mask, labels, mask.shape[1]), jnp.where(mask, lengths, 1.0))
    if level == "token":
        return Units(jnp.where(mask, labels, mask.shape[1]), jnp.ones(mask.shape, jnp.float32))
    return unit_ids(labels, mask, segment_ids)


def _unit_sum(values: Float[Array, "batch time"], ids: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
    """The sum over each token's unit, at each token; `values` must be 0 where the mask is false."""
    time = values.shape[1]

    def row(values: Float[Array, " time"], ids: Int[Array, " time"]) -> Float[Array, " time"]:
        # Ids equal to `time` are out of range: segment_sum drops them, and the gather below clips to a unit whose
        # value the caller masks.
        sums = jax.ops.segment_sum(values, ids, num_segments=time)
        return sums[jnp.minimum(ids, time - 1)]

    return jax.vmap(row)(values, ids)


def unit_mean(
    values: Float[Array, "batch time"], mask: Bool[Array, "batch time"], units: Units
) -> Float[Array, "batch time"]:
    """The mean of `values` over the valid tokens of each token's unit, at each token; 0 where the mask is false."""
    total = _unit_sum(jnp.where(mask, values, 0), units.ids)
    return jnp.where(mask, total / units.lengths.astype(values.dtype), 0)


def token_log_ratio(
    logprobs: Float[Array, "batch time"], old_logprobs: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch time"]:
    """d_t = logprob_t - old_logprob_t, 0 where the mask is false whatever is stored there (NaN, -inf)."""
    dtype = float_type(logprobs, old_logprobs)
    # Both operands are masked before the subtraction: a mask on the difference alone would leave 0 * NaN gradients.
    return jnp.where(mask, logprobs, 0).astype(dtype) - jnp.where(mask, old_logprobs, 0).astype(dtype)


def clamp_log_ratio(
    log_ratio: Float[Array, "batch time"], limit: Number | None, *, both_sides: bool = True
) -> Float[Array, "batch time"]:
    """Clamps log-ratios at `limit` (nats) so that exp and its square stay finite.

    The gradient is 1 up to the limit, the limit itself included, and 0 beyond it. (jnp.clip halves it at a tie.)
    """
    if limit is None:
        return log_ratio
    clamped = jnp.where(log_ratio > limit, limit, log_ratio)
    return jnp.where(clamped < -limit, -limit, clamped) if both_sides else clamped


def importance_ratio(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    units: Units,
    *,
    gradient: str = "token",
    log_ratio_limit: Number | None = None,
    clamp_both_sides: bool = True,
) -> Float[Array, "batch time"]:
    """The ratio r_t of the unit of token t (arXiv:2511.04256v2; for responses arXiv:2507.18071 eq. 7 and 14).

        log s_k = (1 / L_k) * sum_{t in S_k} d_t
        gradient "token":  r_t = stop_gradient(s_k) * exp(logprob_t - stop_gradient(logprob_t))
        gradient "plain":  r_t = s_k

    Both have the same value. 1 where the mask is false.

    Args:
      logprobs, old_logprobs: [batch, time], nats.
      mask: [batch, time], true where a token enters the loss.
      units: from `level_units`.
      gradient: which of the two forms.
      log_ratio_limit: clamp of log s_k, nats; no gradient beyond it.
      clamp_both_sides: whether the clamp is at -limit too.
    """
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient is {gradient!r}, expected one of {', '.join(get_args(Gradient))}")
    log_ratio = token_log_ratio(logprobs, old_logprobs, mask)
    log_ratio = unit_mean(log_ratio, mask, units)
    if gradient == "token":
        logprobs = jnp.where(mask, logprobs, 0).astype(log_ratio.dtype)
        log_ratio = jax.lax.stop_gradient(log_ratio) + (logprobs - jax.lax.stop_gradient(logprobs))
    return jnp.exp(clamp_log_ratio(log_ratio, log_ratio_limit, both_sides=clamp_both_sides))


def subsentence_ratio(
    logprobs: Float[Array, "batch time"],
    old_logprobs: Float[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    subsentence_ids: Int[Array, "batch time"],
    *,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
    """s_k = exp(mean over the subsentence of logprob - old_logprob), at each of its tokens; 1 where mask is false.

    >>> import jax.numpy as jnp
    >>> log2 = jnp.log(jnp.array([[2.0, 8.0, 4.0]]))
    >>> ids = jnp.array([[0, 0, 1]])
    >>> [round(float(s), 4) for s in subsentence_ratio(log2, jnp.zeros((1, 3)), ids >= 0, ids)[0]]
    [4.0, 4.0, 4.0]
    """
    check_shapes(
        logprobs, old_logprobs=old_logprobs, mask=mask, subsentence_ids=subsentence_ids, segment_ids=segment_ids
    )
    units = level_units("subsentence", mask, subsentence_ids, segment_ids)
    return importance_ratio(logprobs, old_logprobs, mask, units, gradient="plain")
