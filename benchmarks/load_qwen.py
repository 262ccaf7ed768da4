"""Host memory and seconds to load a random checkpoint of Qwen2.5-1.5B's shape (bfloat16, about 3 GB), one JSON line.

    python benchmarks/load_qwen.py [--layers 28] [--folder DIR]

On a CPU the parameters themselves lie in host memory; `beside_gib` is what loading took on top of them and of the
process before it. The bound of the project is the largest tensor plus 1 GB.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from sspo_jax.models import configs
from sspo_jax.models.hf import layout, load, save


def write_random(folder: pathlib.Path, config: configs.QwenConfig) -> None:
    """A checkpoint of noise, written one tensor at a time."""
    tensors = [tensor for group in layout.hf_tensors(config).values() for tensor in group]
    half = len(tensors) // 2
    random = np.random.default_rng(0)
    weight_map = {}
    for number, shard in enumerate((tensors[:half], tensors[half:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        shard = sorted(shard, key=lambda tensor: tensor.name)
        noise = (random.integers(0x3C00, 0x3D00, tensor.shape, dtype=np.uint16).view(jnp.bfloat16) for tensor in shard)
        save.write_safetensors(folder / name, shard, noise, "bfloat16")
        weight_map |= {tensor.name: name for tensor in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(configs.config_to_hf(config, dtype="bfloat16")))


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def resident_gib() -> float:
    """Resident memory now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def main() -> None:
    """Writes, loads, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    config = dataclasses.replace(configs.QWEN25_1P5B, num_layers=options.layers)
    folder = pathlib.Path(tempfile.mkdtemp(dir=options.folder))
    try:
        write_random(folder, config)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        jax.block_until_ready(jnp.zeros(()))
        before, peak_before = resident_gib(), peak_gib()
        wall, cpu = time.perf_counter(), time.process_time()
        params, _ = load.load_qwen(folder, param_dtype="bfloat16")
        jax.block_until_ready(params)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        loaded = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**30
        largest = max(np.prod(t.shape) for group in layout.hf_tensors(config).values() for t in group) * 2 / 2**30
        result = {
            "benchmark": "load_qwen",
            "checkpoint_gib": size / 2**30,
            "parameters_gib": loaded,
            "largest_tensor_gib": float(largest),
            "beside_gib": max(peak_gib(), peak_before) - before - loaded,
            "bound_gib": float(largest) + 1e9 / 2**30,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
        }
        print(json.dumps({name: round(x, 3) if isinstance(x, float) else x for name, x in result.items()}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
