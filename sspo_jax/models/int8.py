"""Weights in int8 with one scale for each output: half the memory of bfloat16, for weights that are not trained.

`matmul` multiplies with the integers and scales the product, so nothing of full size is made of them; everything else
takes `astype`, which gives the weights that they stand for. What is computed with them is exactly the model whose
weights are `values * scale`: old and new log-probs are of that policy, and so is what a run exports.

Each weight is off by at most half a scale, 1/254 of the largest one of its output.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

MOST = 127
SUMMED_AXES = {
    **dict.fromkeys(("query", "key", "value", "gate", "up", "down"), 1),
    **dict.fromkeys(("delta_query_key_value", "delta_gate", "delta_rate", "delta_decay"), 1),
    **dict.fromkeys(("delta_query_key_value_gate", "delta_rate_decay", "shared_gate", "shared_up", "shared_down"), 1),
    **dict.fromkeys(("output", "delta_output"), 2),
}
"""Axes that a kernel of a block sums over; they lead, but for those of layers."""
_EXPERTS = ("expert_gate", "expert_up", "expert_down")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A kernel [..., inputs, outputs] of one layer or several: `values * scale`."""

    values: Any
    """int8, of the kernel's shape."""
    scale: Any
    """float32, of the kernel's shape without its inputs."""
    summed: int = dataclasses.field(metadata={"static": True})
    """Axes of the inputs."""
    outputs: int = dataclasses.field(metadata={"static": True})
    """Axes of the outputs, which are last."""
    dtype: Any = dataclasses.field(metadata={"static": True})
    """Of the kernel that it was made of."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The kernel's."""
        return self.values.ndim

    @property
    def sharding(self) -> Any:
        """The kernel's."""
        return self.values.sharding

    def astype(self, dtype: Any) -> Array:
        """The weights that it stands for."""
        inputs = tuple(range(self.ndim - self.outputs - self.summed, self.ndim - self.outputs))
        return (self.values.astype(jnp.float32) * jnp.expand_dims(self.scale, inputs)).astype(dtype)

    def product(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """x times the kernel of one layer, in the dtype of x; sums and scales are float32."""
        values = self.values.reshape(x.shape[1], -1).astype(x.dtype)
        y = jnp.matmul(x, values, preferred_element_type=jnp.float32)
        return (y * self.scale.reshape(1, -1)).astype(x.dtype)


def quantized(kernel: Array, *, summed: int, outputs: int) -> Int8:
    """The nearest integers, with the scale that makes the largest weight of an output 127.

    Args:
      kernel: [..., inputs, outputs].
      summed, outputs: how many axes those are.
    """
    inputs = tuple(range(kernel.ndim - outputs - summed, kernel.ndim - outputs))
    weights = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(weights), axis=inputs, keepdims=True) / MOST
    values = jnp.round(weights / jnp.where(scale == 0, 1, scale)).astype(jnp.int8)
    return Int8(values, scale.squeeze(inputs), summed, outputs, jnp.dtype(kernel.dtype))


def quantize(name: str, kernel: Any, *, lead: int) -> Any:
    """A parameter of a block, quantized if it is a large matrix.

    Args:
      lead: axes before those of the kernel itself: 1 where layers are stacked.
    """
    if name in _EXPERTS:
        return quantized(kernel, summed=1, outputs=1)
    if name in SUMMED_AXES:
        summed = SUMMED_AXES[name]
        return quantized(kernel, summed=summed, outputs=kernel.ndim - lead - summed)
    return kernel


def dense(params: dict[str, Any], dtype: Any = None) -> dict[str, Any]:
    """Parameters, or those of blocks, with the weights that quantized ones stand for; others as they are.

    Args:
      dtype: of what quantized ones become; None: that of the kernels that they were made of.
    """

    def one(x: Any) -> Any:
        return x.astype(dtype or x.dtype) if is_int8(x) else x

    return jax.tree.map(one, params, is_leaf=is_int8)


def is_int8(x: Any) -> bool:
    """Whether it is a quantized kernel."""
    return isinstance(x, Int8)


def sharded(kernel: Int8, sharding: NamedSharding) -> Int8:
    """Where values and scales lie if the kernel lies like this: scales like its outputs, in the place of arrays."""
    axes = (*sharding.spec, *[None] * (kernel.ndim - len(sharding.spec)))
    last = kernel.ndim - kernel.outputs
    spec = PartitionSpec(*axes[: last - kernel.summed], *axes[last:])
    return dataclasses.replace(kernel, values=sharding, scale=NamedSharding(sharding.mesh, spec))
