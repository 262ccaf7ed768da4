"""JSON over HTTP to a server that may be away for a while, asked by process 0 for all processes."""

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from typing import Any

from sspo_jax.distributed.processes import gather, is_main

_DOUBTS = {
    401: ": put the server's key into the variable that --rollout.server.api-key-variable names (SSPO_API_KEY)",
    404: ": is this the server's address?",
}
LOOK_SECONDS = 0.25
"""At the latest after so long `arrivals` yields, also where nothing has come."""


class ServerError(OSError):
    """The server refuses what it is asked, or answers what is of no use."""


class ServerGoneError(ServerError, ConnectionError):
    """The server has not answered for too long; it may when it is up again."""


class Connection:
    """Calls of one server; a call that fails is repeated, with growing pauses, as long as patience lasts.

    Args:
      url: of the server; a trailing /v1 is taken off.
      timeout_seconds: for the answer to one request.
      patience_seconds: from the first failure after an answer (to whichever call) to giving up.
      api_key: sent with every request, but not where the server redirects it.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float | int = 600,
        patience_seconds: float | int = 60,
        api_key: str | None = None,
    ):
        self.url = url.rstrip("/").removesuffix("/v1")
        self._api_key = api_key
        self.retries = 0
        """Requests that were sent again so far."""
        self.broken = 0
        """Requests that failed so far: after each the server may be another process."""
        self._timeout, self._patience = timeout_seconds, patience_seconds
        self._failing_since: float | None = None

    def call(
        self, route: str, body: dict[str, Any] | None = None, *, is_over: threading.Event | None = None
    ) -> dict[str, Any]:
        """The JSON answer to a POST of `body`, or to a GET without one.

        Args:
          is_over: when set, nobody waits for the answer any more, and nothing is sent again.

        Raises:
          ServerError: the request is refused, or what comes back is no JSON object.
          ServerGoneError: no answer for `patience_seconds`.
        """
        data = None if body is None else json.dumps(body).encode()
        is_over, pause = is_over or threading.Event(), 0.05
        while True:
            request = self.request(route, data)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    text = response.read()
                self._failing_since = None
                return self._parsed(route, text)
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_message(error)}"
                if error.code < 500 and error.code not in (408, 429):
                    self._failing_since = None
                    doubt = _DOUBTS.get(error.code, "")
                    raise ServerError(f"{self.url}{route} refuses: {reason}{doubt}") from None
                self.broken += 1
            except ServerError:
                raise
            except (OSError, http.client.HTTPException) as error:  # away, or cut off
                self.broken += 1
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            now = time.monotonic()
            since = self._failing_since = self._failing_since or now
            if is_over.is_set() or now - since + pause > self._patience:
                raise ServerGoneError(
                    f"{self.url}{route} has not answered for {self._patience:g} seconds ({reason}): is the server up?"
                )
            self.retries += 1
            is_over.wait(pause)
            pause = min(2 * pause, 5.0)

    def request(self, route: str, data: bytes | None = None) -> urllib.request.Request:
        """A request to the route, with the key."""
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        if self._api_key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._api_key}")
        return request

    def _parsed(self, route: str, text: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(text) if text.strip() else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            shown = text[:60].decode(errors="replace")
            raise ServerError(
                f"{self.url}{route} answers {shown!r}; expected a JSON object: is this the server's address?"
            )
        return answer


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says: the message of OpenAI's format, or the start of the body."""
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return str(error.reason) if "<" in text[:20] else text[:500].strip() or str(error.reason)  # not a page of HTML


def arrivals(
    jobs: Sequence[Callable[[threading.Event], Any]], *, threads: int, is_alone: bool = False
) -> Generator[list[tuple[int, Any]], None, None]:
    """Runs jobs in threads of process 0, and yields on all processes what has come back: (place of the job, result).

    It yields every `LOOK_SECONDS` at the latest, equally often everywhere, so that whoever iterates can look around
    meanwhile; closing the iterator abandons what has not come back. The threads are daemons.

    Args:
      jobs: each takes an event that is set when nobody waits for its result any more; results are something that JSON
        holds. Processes other than 0 only count them.
      threads: jobs that run at once.
      is_alone: process 0 calls it and the others do not.

    Raises:
      ServerError: of the first job that failed, on all processes.
    """
    is_over = threading.Event()
    finished: queue.SimpleQueue[tuple[int, Any, Exception | None]] = queue.SimpleQueue()
    if is_main():
        _start(jobs, min(threads, len(jobs)), finished, is_over)
    left = len(jobs)
    try:
        while left:
            results, error = _drain(finished) if is_main() else ([], None)
            failure = None if error is None else [isinstance(error, ConnectionError), str(error)]
            results, failure = (results, failure) if is_alone else gather([results, failure])[0]
            if error is not None:
                raise error
            if failure is not None:
                raise (ServerGoneError if failure[0] else ServerError)(failure[1])
            left -= len(results)
            yield [(place, result) for place, result in results]
    finally:
        is_over.set()


def _start(
    jobs: Sequence[Callable[[threading.Event], Any]],
    threads: int,
    finished: queue.SimpleQueue[tuple[int, Any, Exception | None]],
    is_over: threading.Event,
) -> None:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(jobs)):
        waiting.put(place)

    def work() -> None:
        while not is_over.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((place, jobs[place](is_over), None))
            except Exception as error:  # raised where the results are waited for
                finished.put((place, None, error))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True, name="request").start()


def _drain(
    finished: queue.SimpleQueue[tuple[int, Any, Exception | None]],
) -> tuple[list[tuple[int, Any]], Exception | None]:
    """What has come back, waiting a little for the first."""
    results: list[tuple[int, Any]] = []
    try:
        place, result, error = finished.get(timeout=LOOK_SECONDS)
        while error is None:
            results.append((place, result))
            place, result, error = finished.get_nowait()
    except queue.Empty:
        return results, None
    return results, error
