"""Who may ask: the key, and whether a server without one may be reached from elsewhere."""

import errno
import hashlib
import hmac
import ipaddress
import os
import socket

from sspo_jax.serving.errors import AccessError

KEY_VARIABLE = "SSPO_API_KEY"
"""Environment variable with the key, of the server and of its clients."""


def server_key(option: str | None) -> str | None:
    """The key that clients must show: that of the command line, or of the environment; None: there is none.

    Raises:
      ValueError: it is empty, or holds something that a header cannot.
    """
    name, key = ("--api-key", option) if option is not None else (KEY_VARIABLE, os.environ.get(KEY_VARIABLE))
    if key is None:
        return None
    check_key(name, key)
    return key


def check_key(name: str, key: str) -> None:
    """Raises ValueError, which does not show the key, where it is not one."""
    if not key:
        raise ValueError(f"{name} is empty; expected a key, or nothing at all")
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(f"{name} holds a character other than visible ASCII; expected a key without blanks")


class Gate:
    """Lets requests with the right key through; without a key, those that no web page has sent.

    Args:
      key: that clients must show; None: they need none.
    """

    def __init__(self, key: str | None):
        self._digest = None if key is None else _digest(key)

    def check(self, authorization: str | None, origin: str | None) -> None:
        """Looks at two headers of a request. Raises AccessError where it may not pass."""
        if self._digest is None:
            if origin is not None:
                raise AccessError(
                    "requests of web pages are refused: this server has no key, and any page could ask; start it with "
                    "--api-key",
                    status=403,
                    code="origin",
                )
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise AccessError(
                "no API key was sent; expected the header 'Authorization: Bearer KEY'", status=401, code="no_api_key"
            )
        # Digests are of equal length, and are compared in constant time.
        if not hmac.compare_digest(_digest(key.strip()), self._digest):
            raise AccessError("the API key is not that of this server", status=401, code="invalid_api_key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def check_reachable(host: str, *, has_key: bool, allow_anonymous: bool) -> None:
    """Raises ValueError where others than this machine could ask without a key."""
    if not has_key and not allow_anonymous and not is_loopback(host):
        raise ValueError(
            f"--host {host or repr(host)} can be reached from other machines, and whoever reaches it could sample: set "
            f"--api-key or {KEY_VARIABLE}, or allow that with --allow-anonymous"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. Raises ValueError for an unknown name."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--host is {host!r}, which is no address of this machine: {error}") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def listen(host: str, port: int, *, backlog: int = 1024) -> socket.socket:
    """A socket that listens: connections wait in it until they are served.

    Raises:
      ValueError: the port is taken, or the address is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; expected 0 to 65535")
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(backlog)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is taken by another process: choose another with --port, or 0 for a free one"
            ) from None
        raise ValueError(f"cannot listen at {host} port {port}: {error.strerror or error}") from None
    return listener
