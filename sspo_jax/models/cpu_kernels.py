"""Kernels stored for a CPU: by outputs, and those that multiply the same input in one.

Both are other forms of a block's weights, made by the sampler; `qwen.matmul` and the functions of a block take them
like the plain ones.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW_ROWS = 64
"""Rows up to which a kernel stored by outputs multiplies faster."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputMajor:
    """A kernel stored as [outputs, inputs], for products of few rows on a CPU; `matmul` takes it like any other.

    With 8 to 64 rows `weight @ x.T` takes 0.5 to 0.9 of the time of `x @ kernel`: XLA's CPU backend rearranges the
    right operand before it multiplies, and here that is the small one.
    """

    weight: Any  # [outputs, inputs]
    outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The kernel's axes after those of the inputs."""

    @classmethod
    def of(cls, kernel: Array, *, summed: int = 1) -> "OutputMajor":
        """From a kernel whose first `summed` axes are the inputs."""
        inputs = math.prod(kernel.shape[:summed])
        return cls(kernel.reshape(inputs, -1).T, kernel.shape[summed:])

    def product(self, x: Float[Array, "rows inputs"], *, dtype: Any = None) -> Float[Array, "rows outputs"]:
        """x times the kernel; `dtype`: of the sums and the result, by default that of x."""
        if x.shape[0] > FEW_ROWS:
            return jnp.matmul(x, self.weight.astype(x.dtype).T, preferred_element_type=dtype)
        return self.columns(x.T, dtype=dtype).T

    def columns(self, x: Float[Array, "inputs rows"], *, dtype: Any = None) -> Float[Array, "outputs rows"]:
        """The same with a column for each row."""
        # Without the barrier XLA turns this back into x @ weight.T.
        weight = self.weight.astype(x.dtype)
        return jax.lax.optimization_barrier(jnp.matmul(weight, x, preferred_element_type=dtype))


_FUSED = {"query_key_value": ("query", "key", "value"), "gate_up": ("gate", "up")}


def fuse_kernels(block: dict[str, Any]) -> dict[str, Any]:
    """Puts kernels stored by outputs that multiply the same input into one each: fewer and larger products."""
    block = dict(block)
    for fused, names in _FUSED.items():
        if not all(isinstance(block.get(name), OutputMajor) for name in names):
            continue
        kernels = [block[name] for name in names]
        if len({kernel.outputs[1:] for kernel in kernels}) > 1:  # queries with a gate are wider
            continue
        block = {name: x for name, x in block.items() if name not in names}
        outputs = (sum(kernel.outputs[0] for kernel in kernels), *kernels[0].outputs[1:])
        block[fused] = OutputMajor(jnp.concatenate([kernel.weight for kernel in kernels]), outputs)
        biases = [block.pop(f"{name}_bias") for name in names if f"{name}_bias" in block]
        if biases:
            block[f"{fused}_bias"] = jnp.concatenate(biases)
    return block


def fusable(block: dict[str, Any]) -> dict[str, Any]:
    """The part of a block that `fuse_kernels` replaces."""
    names = [name for group in _FUSED.values() for name in group]
    return {name: block[name] for kernel in names for name in (kernel, f"{kernel}_bias") if name in block}
