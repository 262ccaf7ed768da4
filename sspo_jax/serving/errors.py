"""Refusals, with the status and the body that OpenAI's clients understand."""

from typing import Any


class RequestError(ValueError):
    """The client's mistake, answered with a status of 400 or above.

    Args:
      message: what came, what was expected, and what to do.
      status: of the answer.
      param: the field at fault, where there is one.
      code: a short name of the kind, for programs.
      retry_seconds: after which the client may try again, where that helps.
    """

    kind = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_seconds = status, param, code, retry_seconds

    @property
    def body(self) -> dict[str, Any]:
        """JSON in OpenAI's format."""
        return error_body(str(self), kind=self.kind, param=self.param, code=self.code)


class BusyError(RequestError):
    """The server has too much to do; the same request may be accepted later."""

    kind = "rate_limit_error"

    def __init__(self, message: str):
        super().__init__(message, status=429, code="rate_limit_exceeded", retry_seconds=1)


class AccessError(RequestError):
    """Who asks may not ask this."""

    kind = "authentication_error"


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's servers write it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
