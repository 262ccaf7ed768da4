"""One step of a real run beside what planning traces for it: `python -m tests.planning.real_run NAME DEVICES`.

In a process of its own, where batches of abstract arrays pass. Prints JSON: {"planned" | "run": {program: arguments}},
every argument as `described` gives it.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sspo_jax.config import TrainConfig
from sspo_jax.data.problems import iterate
from sspo_jax.models.lora import LoraConfig
from sspo_jax.models.qwen import init_qwen
from sspo_jax.models.trainable import Trainable
from sspo_jax.planning.plan import layout_of, traced
from sspo_jax.planning.programs import resolve_shape
from sspo_jax.sampler.programs import CompiledPrograms, readable
from sspo_jax.sharding import MeshConfig, make_mesh
from sspo_jax.trainer.batch import assign_rows, pack_rows
from sspo_jax.trainer.rollout_engine import open_engine, rollout_sampling
from sspo_jax.trainer.setup import check
from sspo_jax.trainer.step import TrainPrograms
from tests.trainer.conftest import small

LAYERS = {"num_layers": 3, "qk_norm": True, "num_experts": 4, "experts_per_token": 2, "expert_size": 16,
          "dense_layers": (0,), "sliding_window": 8, "sliding_layers": (0, 1, 2)}  # fmt: skip


def with_layers_that_differ() -> TrainConfig:
    """Windows, and experts in some layers."""
    config = small()
    assert config.model.shape is not None
    shape = dataclasses.replace(config.model.shape, **LAYERS)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, shape=shape))


CASES: dict[str, Callable[[], TrainConfig]] = {
    "16x8-slots384": lambda: small(rollout__prompts=16, rollout__group_size=8, rollout__slots=384),
    "25x4": lambda: small(rollout__prompts=25, rollout__group_size=4, rollout__slots=256),
    "40x5": lambda: small(rollout__prompts=40, rollout__group_size=5, rollout__slots=256),
    "kl": lambda: small(loss=dataclasses.replace(small().loss, kl_coefficient=0.1)),
    "layers": with_layers_that_differ,
    "lora": lambda: small(model__lora=LoraConfig(rank=2), model__dtype="bfloat16"),
}


def described(tree: Any) -> list[list[Any]]:
    """Each leaf of the arguments: path, shape, dtype, and its shape on one device where it is placed."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.asarray(leaf) if isinstance(leaf, bool) else leaf
        sharding = getattr(leaf, "sharding", None)
        part = None if sharding is None else list(sharding.shard_shape(leaf.shape))
        found.append([jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype), part])
    return found


class Recorded(CompiledPrograms):
    """The real programs, and what each was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, list[list[Any]]] = {}

    def compiled(
        self, key: Any, function: Callable[..., Any], args: tuple[Any, ...], **settings: Any
    ) -> Callable[..., Any]:
        self.arguments.setdefault(readable(key), described(args))
        return super().compiled(key, function, args, **settings)


def real(config: TrainConfig) -> dict[str, list[list[Any]]]:
    """The rollout of a step with prompts at full length, and one update, as the run's own functions make them."""
    inputs = check(config)
    mesh, lora = inputs.mesh, config.model.lora
    engine = open_engine(config.rollout, inputs.model, inputs.decoding.mesh, run_directory=None)  # type: ignore[arg-type]
    sampler = engine.sampler(rollout_sampling(config.rollout, inputs.stop_token_ids))  # type: ignore[attr-defined]
    recorded = sampler.programs = Recorded()
    weights = init_qwen(inputs.model, jax.random.key(0), mesh=mesh)
    trainable = Trainable(inputs.model, lora)
    base = None
    if lora is not None:
        base = jax.tree.map(lambda x: x.astype(inputs.model.compute.dtype), weights)
    params = trainable.start(weights, jax.random.key(1), mesh)
    problems = [problem for problem, _ in zip(iterate(inputs.data), range(config.rollout.prompts), strict=False)]
    prompts = [(inputs.prompts(problem) * 9)[: config.rollout.max_prompt_tokens - 1] for problem in problems]
    prompts = [[index, *prompt] for index, prompt in enumerate(prompts)]
    with jax.set_mesh(mesh):
        rollout = sampler.generate(
            trainable.policy(params, base), prompts, seed=0, group_size=config.rollout.group_size
        )
    rows = pack_rows(
        rollout,
        np.ones(len(rollout.responses), np.float32),
        assign_rows(rollout, np.arange(len(rollout)), row_tokens=config.row_tokens),
        row_tokens=config.row_tokens,
        micro_rows=config.update.micro_rows,
    )[0]
    programs = TrainPrograms(
        config=inputs.model,
        objective=config.loss,
        optimizer_config=config.settled_optimizer,
        segmenter=inputs.segmenter,
        mesh=mesh,
        temperature=config.rollout.temperature,
        lora=lora,
    )
    with jax.set_mesh(mesh):
        state = programs.init_optimizer(params)
        call = (params, programs.zero_gradients(), programs.place(rows), False, base)
        train = {"update": described(call), "optimizer": described((params, state, call[1]))}
    return recorded.arguments | train


def planned(config: TrainConfig) -> dict[str, list[list[Any]]]:
    """What planning traces for the same."""
    mesh, model = make_mesh(config.mesh), resolve_shape(config.model)
    _, rollout, training = traced(config, model, mesh, layout_of(config, model, mesh, memory=None).mesh)
    return {name: described(program.arguments) for name, program in {**rollout, **training}.items()}


if __name__ == "__main__":
    name, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    config = dataclasses.replace(CASES[name](), warm_start=None, mesh=MeshConfig(), run_dir=tempfile.mkdtemp())
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, data=()))
    print(json.dumps({"planned": planned(config), "run": real(config)}))
