"""What a run trains: every weight, or LoRA adapters beside weights that stay as they are.

The trainer's `params` are what is trained: gradients, optimizer and checkpoints are of that tree. With LoRA it is the
adapters, and `base` holds the frozen weights, which every program takes as another argument; without, `base` is None.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh

from sspo_jax.models.configs import QwenConfig
from sspo_jax.models.int8 import is_int8, quantize, sharded
from sspo_jax.models.lora import LoraConfig, beside_weights, init_lora, lora_shapes, lora_shardings, with_lora
from sspo_jax.models.qwen import Params, abstract_qwen, qwen_shardings


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The trained parameters of a model: their shapes, where they lie, and the policy they make.

    Args:
      config: of the model.
      lora: which adapters are trained; None: the model itself.
    """

    config: QwenConfig
    lora: LoraConfig | None = None

    def abstract(self) -> Params:
        """`jax.ShapeDtypeStruct` of each trained parameter, float32."""
        if self.lora is None:
            return abstract_qwen(self.config)[0]
        return lora_shapes(self.config, self.lora)[0]

    def shardings(self, mesh: Mesh) -> Params:
        """`NamedSharding` of each trained parameter. Raises ValueError where the mesh does not divide an axis."""
        if self.lora is None:
            return qwen_shardings(self.config, mesh)
        return lora_shardings(self.config, self.lora, mesh)

    def abstract_base(self, mesh: Mesh) -> Params | None:
        """The frozen weights as `jax.ShapeDtypeStruct`, in the dtype they are kept in; None without LoRA."""
        if self.lora is None:
            return None
        shapes, _ = abstract_qwen(self.config, param_dtype=self.config.compute.dtype)
        found = placed(shapes, qwen_shardings(self.config, mesh))
        if self.lora.frozen == "int8":
            found["blocks"] = {name: _abstract_int8(name, leaf) for name, leaf in found["blocks"].items()}
        return found

    def start(self, weights: Params, key: jax.Array, mesh: Mesh) -> Params:
        """The trained parameters of a run that starts from these weights: they themselves, or new adapters."""
        return weights if self.lora is None else init_lora(self.config, self.lora, key, mesh=mesh)

    def policy(self, params: Params, base: Params | None) -> Params:
        """Parameters for the functions of `models.qwen` and for the sampler; differentiable in `params`."""
        if self.lora is None:
            return params
        assert base is not None
        return with_lora(base, params, self.lora)

    def abstract_policy(self, mesh: Mesh) -> Params:
        """What `policy` makes, as `jax.ShapeDtypeStruct`."""
        params, base = placed(self.abstract(), self.shardings(mesh)), self.abstract_base(mesh)
        return params if base is None else beside_weights(base, params)

    def reference(self, params: Params) -> Params | None:
        """Trained parameters that make the policy the run started from, where it takes nothing but the adapters.

        Adapters that are zero add zero, so this is the base exactly, through the same program.
        """
        return None if self.lora is None else jax.tree.map(_zeros, params)


def _abstract_int8(name: str, kernel: jax.ShapeDtypeStruct) -> Any:
    shapes = jax.eval_shape(functools.partial(quantize, name, lead=1), kernel)
    return placed(shapes, sharded(shapes, kernel.sharding)) if is_int8(shapes) else kernel


def _zeros(x: jax.Array) -> jax.Array:
    return jax.jit(jax.numpy.zeros_like, out_shardings=x.sharding)(x)


def placed(shapes: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct` of the same shapes with these shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def count(tree: Any) -> int:
    """Total number of elements in the arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
