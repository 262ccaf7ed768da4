"""Programs by name and shape: compiled and run, or only traced, for who wants to know what a rollout compiles."""

import dataclasses
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sspo_jax.sampler.kv_cache import place_cache


def trace(function: Callable[..., Any], args: tuple[Any, ...], donate: tuple[int, ...], out: Any = None) -> Any:
    """The first half of compiling: the program for arguments of these shapes, for `.lower().compile()`.

    Args:
      out: where the results are to lie; None: where the program leaves them.
    """
    return jax.jit(function, donate_argnums=donate, out_shardings=out).trace(*args)


def readable(key: Hashable) -> str:
    """The name of a program: what it does, then the sizes it is for."""
    return " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)


class CompiledPrograms:
    """Compiles ahead of time, once for each key, and keeps the result.

    Ahead-of-time compilation makes the two numbers a user asks for exact: how many programs there are and what they
    cost. A call with other shapes than the program was compiled for raises; it never recompiles in silence.
    """

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Any] = {}
        self.seconds = 0.0
        """Spent tracing and compiling so far."""

    def __len__(self) -> int:
        return len(self._compiled)

    @property
    def names(self) -> list[str]:
        """What was compiled, in order."""
        return [readable(key) for key in self._compiled]

    def __call__(
        self,
        key: Hashable,
        function: Callable[..., Any],
        *args: Any,
        donate: tuple[int, ...] = (),
        out_shardings: Any = None,
    ) -> Any:
        """function(*args), compiled at the first call with this key; arguments `donate` are consumed."""
        return self.compiled(key, function, args, donate=donate, out_shardings=out_shardings)(*args)

    def compiled(
        self,
        key: Hashable,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        donate: tuple[int, ...] = (),
        out_shardings: Any = None,
    ) -> Callable[..., Any]:
        """The program of this key, compiled for arguments like `args` when it is first wanted.

        Args:
          out_shardings: where its results lie; None: where it leaves them.
        """
        compiled = self._compiled.get(key)
        if compiled is None:
            start = time.perf_counter()
            compiled = trace(function, args, donate, out_shardings).lower().compile()
            self.seconds += time.perf_counter() - start
            self._compiled[key] = compiled
        return compiled

    def temporary_bytes(self) -> int:
        """The largest scratch memory that any of the programs takes besides its arguments and results."""
        sizes = [compiled.memory_analysis() for compiled in self._compiled.values()]
        return max((size.temp_size_in_bytes for size in sizes if size is not None), default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedProgram:
    """A program that is not compiled yet: `traced.lower().compile()` does that, under the mesh it was traced for."""

    kind: str
    """What it does: the first word of its name."""
    traced: Any
    """`jax.stages.Traced`."""
    arguments: tuple[Any, ...]
    """Trees of arrays, or of `jax.ShapeDtypeStruct` where nothing exists."""
    results: Any
    """A tree of `jax.ShapeDtypeStruct`."""


class TracedPrograms(CompiledPrograms):
    """In place of `CompiledPrograms`: traces each program it is called with, and computes nothing.

    Results are shapes. What the host reads of a block of decoding steps is made up: no response ends before its budget.

    Args:
      mesh: what results are placed on; it may be one of devices that are not here.
    """

    def __init__(self, mesh: Mesh | None) -> None:
        super().__init__()
        self._mesh = mesh
        self._traced: dict[Hashable, TracedProgram] = {}

    @property
    def by_name(self) -> dict[str, TracedProgram]:
        """What was traced, in order."""
        return {readable(key): program for key, program in self._traced.items()}

    def compiled(
        self,
        key: Hashable,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        donate: tuple[int, ...] = (),
        out_shardings: Any = None,
    ) -> Callable[..., Any]:
        """What gives the shapes of the results; of a decoding block, NumPy arrays of what the host reads."""
        program = self._traced.get(key)
        if program is None:
            kind = str(key[0]) if isinstance(key, tuple) else str(key)
            traced = trace(function, args, donate, out_shardings)
            results = self._placed(kind, args, traced.out_info, out_shardings)
            program = TracedProgram(kind=kind, traced=traced, arguments=args, results=results)
            self._traced[key] = program
        if program.kind == "decode":
            cache, out = program.results
            return lambda *args: (cache, _uneventful_block(out, *args[4:7], *args[9:11]))
        return lambda *_: program.results

    def _placed(self, kind: str, args: tuple[Any, ...], results: Any, out_shardings: Any) -> Any:
        """The shapes of the results, placed as the programs leave them."""
        results = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), results)
        if out_shardings is not None:
            return jax.tree.map(
                lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
                results,
                out_shardings,
            )
        if self._mesh is None:
            return results
        if kind == "weights":
            return _placed_like(results, args[0])
        if kind == "decode":
            return place_cache(results[0], self._mesh), results[1]
        return place_cache(results, self._mesh)


def _uneventful_block(
    out: dict[str, Any], generated: np.ndarray, budgets: np.ndarray, active: np.ndarray, num_steps: Any, limit: Any
) -> dict[str, np.ndarray]:
    """What `decode_block` gives the host where only budgets end responses; the arguments are its own."""
    rest = np.where(active, budgets - generated, 0)
    ends = np.sort(rest[active])
    steps = min(int(num_steps), int(ends[min(int(limit), len(ends)) - 1]))
    made_up = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in out.items()}
    counts = np.minimum(rest, steps).astype(np.int32)
    return made_up | {"counts": counts, "active": rest > steps, "steps": np.array(steps, np.int32)}


def _placed_like(results: Any, params: Any) -> Any:
    """Weights as the parameters lie that they are made of: whole, or each layer of a stack by itself."""

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        source = params
        for key in path:
            if isinstance(key, jax.tree_util.DictKey):
                source = source.get(key.key) if isinstance(source, dict) else None
            elif not isinstance(key, jax.tree_util.SequenceKey):  # a kernel stored by outputs: left to the compiler
                return leaf
        sharding = getattr(source, "sharding", None)
        if source is None or not isinstance(sharding, NamedSharding):
            return leaf
        stacked = source.ndim - leaf.ndim
        spec = PartitionSpec(*sharding.spec[stacked:])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(sharding.mesh, spec))

    return jax.tree_util.tree_map_with_path(place, results)
