"""`verify`, `is_correct` and `Verifier`: the layers put together, with an LRU cache and the ledger of a batch."""

import collections
import concurrent.futures
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from .decide import Decision, decide, decide_at_once, gold_answer
from .extract.response import extract
from .limits import NeedsWorker
from .verdict import EXACT, VERSION, Options, Verdict
from .workers.pool import Answer, WorkerDied, WorkerError, WorkerPool, close_at_exit, search_path

MEMORY_LIMIT_BYTES = 2 << 30
_GRACE_SECONDS = 0.2  # for the thread that tends the worker to report its own end


class Verifier:
    """Checks responses against golds; what the fast path cannot decide goes to worker processes.

    Used as a context manager, or closed with `close`. Every method may be called from any thread. Keyword arguments
    of a check (`relative_tolerance`, `lenient`, ...) are the fields of `Options`; those given here are the defaults.

    Args:
        workers: processes for hard answers; they start with the first one. Default: the processor's count.
        timeout_seconds: the most a worker may spend on one check.
        cache_size: verdicts kept by (answer, gold, options, version); 0 switches the cache off.
        memory_limit_bytes: of address space for each worker; 0 for none.
    """

    def __init__(
        self,
        workers: int | None = None,
        timeout_seconds: float | int = 5.0,
        *,
        cache_size: int = 65_536,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        **options: Any,
    ) -> None:
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds}; expected more than 0")
        self.timeout_seconds = timeout_seconds
        self.options = Options(**options) if options else EXACT
        self.pool = WorkerPool(workers if workers is not None else max(2, os.cpu_count() or 1), memory_limit_bytes)
        self._cache = _Cache(cache_size)

    def __enter__(self) -> "Verifier":
        self.pool.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is queued and end the workers."""
        self.pool.close()

    def submit(
        self, response: str, gold: str, *, deadline: float = float("inf"), **options: Any
    ) -> "concurrent.futures.Future[Verdict]":
        """A future of the verdict, which never raises; most are done when this returns.

        `deadline` (time.monotonic) bounds waiting in the queue as well; without it only the time in a worker counts.
        """
        begun = self._begin(response, gold, self._settings(options), deadline)
        if not isinstance(begun, Verdict):
            return begun
        future: concurrent.futures.Future[Verdict] = concurrent.futures.Future()
        future.set_result(begun)
        return future

    def verify(self, response: str, gold: str, **options: Any) -> Verdict:
        """The verdict on one response, within `timeout_seconds` of the call."""
        deadline = time.monotonic() + self.timeout_seconds
        begun = self._begin(response, gold, self._settings(options), deadline)
        if isinstance(begun, Verdict):
            return begun
        try:
            return begun.result(max(0.0, deadline - time.monotonic()) + _GRACE_SECONDS)
        except TimeoutError:  # the machine is too busy for the worker's own limit
            return Verdict("timeout", None, gold, f"no decision within {self.timeout_seconds} s", self.timeout_seconds)

    def verify_batch(self, responses: Sequence[str], golds: Sequence[str], **options: Any) -> list[Verdict]:
        """The verdicts on many responses, in their order; hard ones run side by side.

        Raises:
            ValueError: there are more responses than golds, or fewer.
        """
        if len(responses) != len(golds):
            raise ValueError(f"{len(responses)} responses and {len(golds)} golds; expected one gold for each response")
        settings = self._settings(options)
        begun = [self._begin(response, gold, settings) for response, gold in zip(responses, golds, strict=True)]
        return [one if isinstance(one, Verdict) else one.result() for one in begun]

    def call(
        self, function: str, /, *arguments: Any, timeout_seconds: float | int, **keywords: Any
    ) -> "concurrent.futures.Future[Any]":
        """Run `module:function` in a worker; the future raises TimeoutError, WorkerError or WorkerDied."""
        request = (function, search_path(), arguments, keywords)
        return self.pool.submit("call", request, timeout_seconds=timeout_seconds)

    def _settings(self, options: dict[str, Any]) -> Options:
        if not options:
            return self.options
        return Options(**{**vars(self.options), **options})

    def _begin(
        self, response: str, gold: str, options: Options, deadline: float = float("inf")
    ) -> "Verdict | concurrent.futures.Future[Verdict]":
        """The verdict, where this process can decide; else its future, a worker being at it."""
        started = time.perf_counter()
        try:
            answer, decision = self._decide_here(response, gold, options)
        except NeedsWorker as needs:
            answer = needs.args[1]
        except Exception as error:  # a defect of the checker is reported, never raised into a training run
            return _verdict(("error", f"{type(error).__name__}: {error}"), None, gold, _since(started))
        else:
            return _verdict(decision, answer, gold, _since(started))
        future: concurrent.futures.Future[Verdict] = concurrent.futures.Future()
        spent = _since(started)
        inner = self.pool.submit(
            "decide",
            (answer, gold_answer(gold), options),
            timeout_seconds=max(0.05, self.timeout_seconds - spent),
            deadline=deadline,
        )
        inner.add_done_callback(lambda _: self._finish(future, answer, gold, options, spent, inner))
        return future

    def _decide_here(self, response: str, gold: str, options: Options) -> tuple[str | None, Decision]:
        """The extracted answer and the decision; NeedsWorker(reason, answer) where it takes a worker."""
        if not isinstance(response, str) or not isinstance(gold, str):
            kinds = f"{type(response).__name__} and {type(gold).__name__}"
            return None, ("error", f"the response and the gold are {kinds}; expected two strings")
        answer, rule, parts = extract(response, options)
        if answer is None:
            return None, ("unparsed", rule)
        wanted = gold_answer(gold)
        if not wanted or wanted.isspace():
            return answer, ("error", "the gold is empty")
        decision = decide_at_once(answer, wanted, options)
        if decision is None or (parts and decision[0] == "wrong"):
            decision = self._decide_by_trees(answer, wanted, parts, options)
        return answer, (decision[0], f"{rule}; {decision[1]}")

    def _decide_by_trees(self, answer: str, gold: str, parts: tuple[str, ...], options: Options) -> Decision:
        """What the trees of both say, or the cache; boxes side by side may all say the same answer."""
        key = (answer, gold, options, VERSION)
        decision = self._cache.get(key)
        if decision is None:
            try:
                decision = decide(answer, gold, options, reuse=self._cache.size > 0)
                if parts and decision[0] == "wrong" and self._all_equal(parts, gold, options):
                    decision = ("correct", "every box alone is the answer")
            except NeedsWorker as needs:
                raise NeedsWorker(str(needs), answer) from None
            self._cache.put(key, decision)
        return decision

    def _all_equal(self, parts: tuple[str, ...], gold: str, options: Options) -> bool:
        """Whether boxes side by side all say the same answer, as `\\boxed{x + 1}` or `\\boxed{1 + x}` do."""
        return all(decide(part, gold, options, reuse=self._cache.size > 0)[0] == "correct" for part in parts)

    def _finish(
        self,
        future: "concurrent.futures.Future[Verdict]",
        answer: str,
        gold: str,
        options: Options,
        spent: float,
        inner: Answer,
    ) -> None:
        try:
            decision = inner.result()
            self._cache.put((answer, gold_answer(gold), options, VERSION), decision)
        except TimeoutError as error:
            decision = ("timeout", f"no decision within {self.timeout_seconds} s: {error}")
        except (WorkerError, WorkerDied) as error:
            decision = ("error", str(error))
        except BaseException as error:
            decision = ("error", f"{type(error).__name__}: {error}")
        future.set_result(_verdict(decision, answer, gold, spent + inner.seconds))


def _since(started: float) -> float:
    return time.perf_counter() - started


def _verdict(decision: Decision, answer: str | None, gold: str, seconds: float) -> Verdict:
    return Verdict(decision[0], answer, gold, decision[1], seconds)


class _Cache:
    """The last `size` decisions, by key; safe between threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: collections.OrderedDict[Any, Decision] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Decision | None:
        if not self.size:
            return None
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Any, decision: Decision) -> None:
        if self.size:
            with self._lock:
                self._kept[key] = decision
                if len(self._kept) > self.size:
                    self._kept.popitem(last=False)


_shared: dict[tuple[int, float], Verifier] = {}
_shared_lock = threading.Lock()


def _shared_verifier(timeout_seconds: float | int) -> Verifier:
    """The verifier of this process; one pool serves every time limit."""
    key = (os.getpid(), timeout_seconds)
    verifier = _shared.get(key)
    if verifier is None:
        with _shared_lock:
            verifier = _shared.get(key)
            if verifier is None:
                verifier = Verifier(timeout_seconds=timeout_seconds)
                sibling = next((other for (pid, _), other in _shared.items() if pid == os.getpid()), None)
                if sibling is not None:
                    verifier.pool = sibling.pool
                else:
                    close_at_exit(verifier.pool)
                _shared[key] = verifier
    return verifier


def verify(response: str, gold: str, *, timeout_seconds: float | int = 5.0, **options: Any) -> Verdict:
    """Whether a response answers what the gold says; never raises, never takes longer than `timeout_seconds`.

    `options` are the fields of `Options`, such as `relative_tolerance=0.01` or `lenient=True`.

    >>> verify(r"Therefore $x = \\boxed{\\frac{2}{4}}$.", "0.5").status
    'correct'
    """
    return _shared_verifier(timeout_seconds).verify(response, gold, **options)


def is_correct(response: str, gold: str, **options: Any) -> bool:
    """Whether `verify` says `correct`; `options` as there.

    >>> is_correct("The answer is 42.", "42")
    True
    """
    return verify(response, gold, **options).status == "correct"
