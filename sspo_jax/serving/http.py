"""The HTTP side of the server: routes, bodies, events of a stream, and connections that do not keep to the limits.

GET /health, /v1/models, /v1/models/{id}; POST /v1/completions, /v1/chat/completions, /sspo/reload. Bodies are checked
in threads of their own, so that a long text to be encoded delays no other connection.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sspo_jax.serving.access import Gate
from sspo_jax.serving.answers import Answer, server_sent
from sspo_jax.serving.errors import AccessError, BusyError, RequestError, error_body
from sspo_jax.serving.limits import Budget, Limits
from sspo_jax.serving.requests import Generation
from sspo_jax.serving.service import CompletionService, Job

LOG = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 30
_SHUTDOWN_SECONDS = 3
_DISCARD_SECONDS = 2.0
_GONE = Response(status_code=499)  # nobody reads it


class Application:
    """The routes over a service.

    Args:
      service: what decodes.
      gate: who may ask.
    """

    def __init__(self, service: CompletionService, gate: Gate):
        self._service, self._limits = service, service.limits
        self._bodies = Budget(service.limits.all_body_bytes)
        self._readers = ThreadPoolExecutor(2, "read")
        self._writers = ThreadPoolExecutor(2, "write")
        self._loaders = ThreadPoolExecutor(1, "load")
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/sspo/reload", self._reload, methods=["POST"]),
        ]
        handlers: Any = {RequestError: _refused, HTTPException: _no_route, ClientDisconnect: _left, Exception: _failed}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        self.app: ASGIApp = _Guard(app, gate, body_bytes=self._limits.body_bytes)

    async def _health(self, request: Request) -> Response:
        return JSONResponse(self._service.health())

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._service.model()]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._service.model(request.path_params["name"]))

    async def _completions(self, request: Request) -> Response:
        return await self._generate(request, self._service.reader.completion)

    async def _chat(self, request: Request) -> Response:
        return await self._generate(request, self._service.reader.chat)

    async def _reload(self, request: Request) -> Response:
        body = await self._read(request, lambda body: body)
        return JSONResponse(await self._in(self._loaders, lambda: self._service.reload(body)))

    async def _in(self, executor: ThreadPoolExecutor, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    async def _read(self, request: Request, check: Callable[[dict[str, Any]], Any]) -> Any:
        """What `check` makes of the body. Raises RequestError where it is too large, too slow or no JSON object."""
        raw, is_whole = bytearray(), False
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    if len(raw) + len(chunk) > self._limits.body_bytes:
                        raise RequestError(
                            f"the body is longer than {self._limits.body_bytes} bytes: send less at once", status=413
                        )
                    self._bodies.take(len(chunk))
                    raw += chunk
            is_whole = True
            return await self._in(self._readers, lambda: check(parse_object(bytes(raw))))
        except RequestError:
            if not is_whole:
                await _discard(request.receive, 4 * self._limits.body_bytes)
            raise
        except TimeoutError:
            raise RequestError(
                f"the body has not arrived within {self._limits.body_seconds:g} seconds", status=408
            ) from None
        finally:
            self._bodies.give_back(len(raw))

    async def _generate(self, request: Request, check: Callable[[dict[str, Any]], Generation]) -> Response:
        generation: Generation = await self._read(request, check)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def on_change() -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(changed.set)

        client = (request.client.host, request.client.port) if request.client else ("", 0)
        jobs = self._service.submit(generation, client, on_change)

        def leave() -> None:
            self._service.leave(generation, client, jobs)

        answer = Answer(generation, self._service.codec, model=self._service.model()["id"])
        if generation.stream:
            return _Events(_events(generation, answer, jobs, changed), leave)
        try:
            await _ended(request.receive, jobs, changed)
        finally:
            leave()
        for job in jobs:
            if job.error is not None:
                return _error(500, str(_failure(job.error)), kind="server_error")
        text = await self._in(self._writers, lambda: json.dumps(answer.whole(jobs)).encode())
        return Response(text, media_type="application/json")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body; an empty body is an empty object.

    Raises:
      RequestError: it is something else.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        body = json.loads(raw.strip() or b"{}", parse_constant=refuse)
    except RecursionError:
        raise RequestError("the body is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(f"the body is a JSON {type(body).__name__}; expected an object")
    return body


async def _ended(receive: Receive, jobs: list[Job], changed: asyncio.Event) -> None:
    """Waits until all jobs have ended. Raises ClientDisconnect where the client leaves before that."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(disconnected())
    try:
        while True:
            changed.clear()
            if all(job.is_done for job in jobs):
                return
            waiting = asyncio.ensure_future(changed.wait())
            try:
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if gone.done():
                raise ClientDisconnect
    finally:
        gone.cancel()


async def _events(
    generation: Generation, answer: Answer, jobs: list[Job], changed: asyncio.Event
) -> AsyncIterator[bytes]:
    """A stream, event by event."""
    for event in answer.opening(jobs):
        yield server_sent(event)
    is_told = generation.top is not None or generation.return_token_ids  # also what adds no text
    echoed, ended = set[int](), set[int]()
    while len(ended) < len(jobs):
        changed.clear()
        for index, job in enumerate(jobs):
            is_done = job.is_done
            if is_done and job.error is not None:
                yield server_sent(error_body(str(_failure(job.error)), kind="server_error"))
                return
            if generation.echo and index not in echoed and (job.pieces or is_done):
                echoed.add(index)
                yield server_sent(answer.echo(index, job))
            while job.pieces:
                piece = job.pieces.popleft()
                if piece.text or is_told:
                    yield server_sent(answer.piece(index, piece))
            if is_done and index not in ended:
                ended.add(index)
                yield server_sent(answer.ending(index, job))
        if len(ended) < len(jobs):
            await changed.wait()
    for event in answer.closing(jobs):
        yield server_sent(event)
    yield b"data: [DONE]\n\n"


class _Events(StreamingResponse):
    """A stream; `leave` is called when it has ended, and also where the client left before it began."""

    def __init__(self, events: AsyncIterator[bytes], leave: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class _Guard:
    """Asks the gate before anything else is read."""

    def __init__(self, app: ASGIApp, gate: Gate, *, body_bytes: int):
        self._app, self._gate, self._body_bytes = app, gate, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._gate.check(headers.get(b"authorization"), headers.get(b"origin"))
        except AccessError as error:
            await _discard(receive, self._body_bytes)
            await (await _refused(None, error))(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def _discard(receive: Receive, most_bytes: int) -> None:
    """Reads a body, within bounds: a connection closed before it was read may lose the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while most_bytes > 0:
                message: Message = await receive()
                most_bytes -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _failure(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _error(status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> Response:
    return JSONResponse(error_body(message, kind=kind, code=code), status)


async def _refused(request: Request | None, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry_seconds is None else {"Retry-After": str(error.retry_seconds)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (401, 403, 408, 413) or isinstance(error, BusyError):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse(error.body, error.status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return JSONResponse(
            error_body(f"{request.method} is not what {request.url.path} takes"), 405, dict(error.headers or {})
        )
    return _error(error.status_code, f"no route {request.url.path[:200]}", code="not_found")


async def _left(request: Request, error: Exception) -> Response:
    return _GONE


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, _failure(error), kind="server_error")


def connections(limits: Limits) -> type[H11Protocol]:
    """uvicorn's connections, with times that a client must keep to and errors in OpenAI's format."""

    class Connection(H11Protocol):
        """One connection."""

        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._header_timer = self.loop.call_later(limits.header_seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # the headers are there
                self._header_timer = _cancelled(self._header_timer)
            elif self._header_timer is None and not self.transport.is_closing():
                self._header_timer = self.loop.call_later(limits.header_seconds, self._late)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._header_timer = _cancelled(self._header_timer)

        def connection_lost(self, exc: Exception | None) -> None:
            self._header_timer = _cancelled(self._header_timer)
            self._write_timer = _cancelled(self._write_timer)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._write_timer = _cancelled(self._write_timer)
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            if self._write_timer is None:  # what was not read until then is given up
                self._write_timer = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def _late(self) -> None:
            self._header_timer = None
            self._answer(408, f"the headers have not arrived within {limits.header_seconds:g} seconds")

        def send_400_response(self, msg: str) -> None:
            self._answer(400, f"this is not a request of HTTP/1.1 that the server can read: {msg}")

        def _answer(self, status: int, message: str) -> None:
            """An error for a request that never reached the routes, and the end of the connection."""
            data = json.dumps(error_body(message)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(data)).encode()),
                (b"connection", b"close"),
            ]
            with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way
                for event in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=data),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def serve(application: Application, listener: socket.socket, limits: Limits) -> None:
    """Answers what comes to the socket, until the process is told to end."""
    config = uvicorn.Config(
        application.app,
        http=connections(limits),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=1024,
        limit_concurrency=limits.connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    uvicorn.Server(config).run(sockets=[listener])
