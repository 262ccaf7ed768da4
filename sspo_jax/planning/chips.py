"""TPUs that this machine does not have: the devices of a topology, and the chip it is made of."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from sspo_jax.runs.roofline import CHIPS, Chip

GIB = 2**30


def prepare_host() -> None:
    """Lets libtpu compile without a TPU; called before any device of JAX is used.

    Raises:
      ValueError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('planning needs the TPU compiler: pip install "sspo-jax[train,tpu]"')
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else two processes fight for a lock file
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    # Without these libtpu looks for a machine, does not find one and says so at length.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as v5e:2x4.

    Raises:
      ValueError: the name before the colon is not a known generation.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise ValueError(
            f"topology {topology!r}: expected one of {', '.join(CHIPS)}, then a colon and a shape, as in v5e:2x4; or "
            "GPUs and how many, as in h100:8"
        )
    return CHIPS[generation]


def topology_devices(topology: str, slices: int) -> list[Any]:
    """The devices of a topology, which nobody has to own.

    Raises:
      ValueError: the compiler does not know the topology.
    """
    chip_of(topology)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except Exception as error:  # the compiler says no in several ways
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the compiler does not know the topology {topology!r}: {first}") from error
