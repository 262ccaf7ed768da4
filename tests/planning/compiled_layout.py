"""What crosses links in the decoding loop of a run on TPUs that are not here, as JSON:

    python -m tests.planning.compiled_layout TOPOLOGY MODEL LAYOUT

LAYOUT: `chosen` as a run chooses it, or `trained` as the weights lie for training. The model is scanned, and of few
layers, so that compiling takes seconds: the loop is the same for any number of them.
"""

import dataclasses
import json
import sys

from sspo_jax.planning import chips
from sspo_jax.planning import programs as planning

if __name__ == "__main__":  # before jax starts; not where the file is only looked through for examples
    chips.prepare_host()

import jax

from sspo_jax.commands.experiments import load_experiment
from sspo_jax.config import EvaluationConfig, TrainConfig
from sspo_jax.models.configs import QwenConfig
from sspo_jax.planning.collectives import loop_collectives, of_weights
from sspo_jax.planning.plan import layout_of
from sspo_jax.sampler import LocalEngine
from sspo_jax.sharding import RolloutMeshConfig, make_mesh
from sspo_jax.trainer.rollout_engine import rollout_sampling


def layer_parameters(model: QwenConfig) -> int:
    """Of one layer."""
    return (
        dataclasses.replace(model, num_layers=2).num_parameters
        - dataclasses.replace(model, num_layers=1).num_parameters
    )


def main(topology: str, experiment: str, layout: str) -> dict[str, object]:
    """The chosen mesh, and the operations between devices inside the loop of steps."""
    config: TrainConfig = load_experiment(experiment)
    given = RolloutMeshConfig(data=1, fsdp=-1) if layout == "trained" else None
    rollout = dataclasses.replace(config.rollout, mesh=given)
    config = dataclasses.replace(config, rollout=rollout, evaluation=EvaluationConfig())
    mesh = make_mesh(config.mesh, chips.topology_devices(topology, 1))
    model = planning.resolve_shape(config.model)
    found = layout_of(config, model, mesh, memory=chips.chip_of(topology).memory_gib * 2**30)
    short = dataclasses.replace(model, num_layers=3)
    sampler = LocalEngine(short, slots=rollout.slots, mesh=found.mesh).sampler(rollout_sampling(rollout, ()))
    sampler.unrolled = False
    traced = planning.rollout_programs(rollout, None, sampler, mesh)
    program, handed_over = planning.widest(traced.values())["decode"], traced.get("weights layer")
    with jax.set_mesh(found.mesh):
        text = program.traced.lower().compile().as_text()
        scratch = 0
        if handed_over is not None:
            scratch = handed_over.traced.lower().compile().memory_analysis().temp_size_in_bytes
    collectives = loop_collectives(text)
    return {
        "mesh": {axis: size for axis, size in found.mesh.shape.items() if size > 1},
        "fits": found.fits,
        "kinds": sorted({one.kind for one in collectives}),
        "of_weights": [str(one) for one in of_weights(collectives, program.arguments[0])],
        "kernel": "attend_held" in text,
        "scratch_in_layers": scratch / (2 * layer_parameters(model)),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
