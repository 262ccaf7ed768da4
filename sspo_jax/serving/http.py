"""The HTTP side of the server: routes, JSON, errors."""

import http.server
import json
from typing import Any

from sspo_jax.serving.service import LOG, CompletionService, RequestError


class _Handler(http.server.BaseHTTPRequestHandler):
    """JSON in, JSON out."""

    protocol_version = "HTTP/1.1"
    service: CompletionService

    def do_GET(self) -> None:
        routes = {"/health": self.service.health, "/v1/models": self.service.models}
        self._respond(routes.get(self.path))

    def do_POST(self) -> None:
        routes = {
            "/v1/completions": self.service.completions,
            "/v1/chat/completions": self.service.chat_completions,
            "/sspo/reload": self.service.reload,
        }
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        route = routes.get(self.path)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            self._send(400, {"error": {"message": "the body is not JSON", "type": "invalid_request_error"}})
            return
        if not isinstance(body, dict):
            self._send(400, {"error": {"message": "the body is not an object", "type": "invalid_request_error"}})
            return
        self._respond(None if route is None else lambda: route(body))

    def _respond(self, route: Any) -> None:
        if route is None:
            self._send(404, {"error": {"message": f"no route {self.path}", "type": "not_found"}})
            return
        try:
            self._send(200, route())
        except RequestError as error:
            self._send(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
        except BrokenPipeError:
            self.close_connection = True  # the client left
        except Exception as error:
            self._send(500, {"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error"}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug(format, *args)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # a rollout's requests arrive at once


def make_server(service: CompletionService, host: str, port: int) -> http.server.ThreadingHTTPServer:
    """A server over the service, listening; `serve_forever()` runs it."""
    return _Server((host, port), type("Handler", (_Handler,), {"service": service}))
