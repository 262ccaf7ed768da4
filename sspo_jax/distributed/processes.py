"""Several processes that train together: how they start, agree and exchange small things.

All processes run the same program on one mesh, in step. Every host knows the whole batch (token ids are small);
devices hold their own rows only, each process verifies its own answers, and process 0 alone writes files.
With one process everything here does nothing and costs nothing.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from sspo_jax.ranges import Count, Whole

T = TypeVar("T")


class ProcessesNotFoundError(ConnectionError):
    """Not all processes came in time; they may, when all are started again."""


_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ValueError, OSError, FileNotFoundError, FileExistsError, ConnectionError)
}


START_SECONDS = 300
"""How long a process waits for the others at the start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Training on several processes, one on each host; a launcher's environment is recognised without any of this."""

    launcher: Literal["environment", "auto", "none"] = "environment"
    """environment: several processes where JAX_COORDINATOR_ADDRESS, MASTER_ADDR (torchrun), Slurm or Open MPI say so.
    auto: let JAX find the others (TPU pods). none: one process, whatever the environment says."""
    coordinator: str | None = None
    """HOST:PORT of process 0, as all processes reach it; with `num_processes` and `process_id`."""
    num_processes: Count | None = None
    """How many processes there are."""
    process_id: Whole | None = None
    """Which of them this is, from 0."""
    heartbeat_seconds: Count = 20
    """A process that is silent for so long is taken for lost, and the others end."""


def settings(config: DistributedConfig, environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`; None where there is one process only.

    Raises:
      ValueError: what is given does not name a process of a group.
    """
    given = {name: getattr(config, name) for name in ("coordinator", "num_processes", "process_id")}
    if any(value is not None for value in given.values()):
        return _explicit(given, "--distributed.")
    if config.launcher == "none":
        return None
    if config.launcher == "auto":
        return {}
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        values = [environment.get(name) for name in names]
        return _explicit(dict(zip(("coordinator", "num_processes", "process_id"), values, strict=True)), "JAX_")
    if "MASTER_ADDR" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        address = f"{environment['MASTER_ADDR']}:{environment.get('MASTER_PORT', '29500')}"
        found = _explicit(
            {"coordinator": address, "num_processes": environment["WORLD_SIZE"], "process_id": environment.get("RANK")},
            "WORLD_SIZE, RANK and MASTER_ADDR: ",
        )
        local = environment.get("LOCAL_RANK")
        return found and found | ({"local_device_ids": [int(local)]} if local else {})
    several = (environment.get("SLURM_STEP_NUM_TASKS", "1"), environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    return {} if any(int(count) > 1 for count in several) else None


def _explicit(given: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{prefix}{missing[0].replace('_', '-')} is missing: several processes need coordinator (HOST:PORT of "
            "process 0), num_processes and process_id"
        )
    address, count, number = given["coordinator"], int(given["num_processes"]), int(given["process_id"])
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{prefix}coordinator is {address!r}, expected HOST:PORT of process 0")
    if not 0 <= number < count:
        raise ValueError(f"{prefix}process_id is {number} of {count} processes, expected 0 to {count - 1}")
    return {"coordinator_address": address, "num_processes": count, "process_id": number} if count > 1 else None


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes, where there are any; before anything else touches a device.

    Raises:
      ValueError: see `settings`.
      ProcessesNotFoundError: not all processes came in time.
    """
    arguments = settings(config)
    if arguments is None or jax.distributed.is_initialized():
        return
    # On CPU, programs dispatched ahead run side by side, and their collectives meet in another order on each process.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            shutdown_timeout_seconds=config.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ProcessesNotFoundError(
            f"the processes did not find each other within {START_SECONDS} s ({reason}): start all of them "
            "with the same coordinator and number of processes, and check that its port is open"
        ) from None


def is_main() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The value of each process, in order: anything that JSON holds. All processes call it together."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    width = 1 << max(10, int(sizes.max() - 1).bit_length())  # few shapes: each is compiled once
    rows = multihost_utils.process_allgather(np.pad(data, (0, width - len(data))))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def any_process(value: bool) -> bool:
    """Whether it is true on any process."""
    return any(gather(bool(value)))


def together(function: Callable[[], T]) -> T:
    """function() of this process, once it is known that it raised on none; else all processes raise.

    Raises:
      ValueError, OSError: this process's own error, or which process met what.
    """
    result, error = None, None
    try:
        result = function()
    except (ValueError, OSError) as caught:
        error = caught
    known = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), "OSError")
    for process, report in enumerate(gather(None if error is None else [known, str(error)])):
        if error is None and report is not None:
            raise _ERRORS[report[0]](f"process {process}: {report[1]}")
    if error is not None:
        raise error
    return result  # pyright: ignore[reportReturnType]


def on_main(function: Callable[[], T]) -> T:
    """What function() gives on process 0, for all; it must be something that JSON holds, and so is what comes back."""
    return gather(together(lambda: function() if is_main() else None))[0]


def share(items: int) -> range:
    """Which of `items` things are this process's to do: every `process_count`-th."""
    return range(jax.process_index(), items, jax.process_count())


def exchange(items: int, mine: Mapping[int, Any]) -> list[Any]:
    """All of `items` results in order, when each process has done its `share`."""
    results: dict[int, Any] = {}
    for part in gather({str(index): value for index, value in mine.items()}):
        results |= {int(index): value for index, value in part.items()}
    return [results[index] for index in range(items)]
