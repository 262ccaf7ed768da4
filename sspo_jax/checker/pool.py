"""The errors of worker processes, under the name that other parts of the package import them by."""

from .workers.pool import WorkerDied, WorkerError

__all__ = ["WorkerDied", "WorkerError"]
