"""What one client, and all together, may ask of the server; and whose turn it is when they ask for more than it does.

Samples wait in `FairQueue`: free slots go to the addresses in turn, and within an address to its connections in turn,
so that a client with thousands of samples delays another by the rest of one response, not by all of its own.
"""

import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Annotated, Generic, TypeVar

from sspo_jax.ranges import Positive, Range
from sspo_jax.serving.errors import BusyError

Amount = Annotated[int, Range(1, 2**40)]
Item = TypeVar("Item")
Client = tuple[str, Hashable]
"""Address, and what tells its connections apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one request, of one client, and of all clients together."""

    prompts: Amount = 128
    """Prompts in one request."""
    samples: Amount = 256
    """Samples in one request: prompts times `n`."""
    answer_values: Amount = 1 << 21
    """Log-probabilities that one answer may hold: samples x tokens x (1 + `top_logprobs`)."""
    stop_strings: Amount = 16
    """Stop strings of one request."""
    stop_string_characters: Amount = 256
    """Characters of a stop string."""
    waiting_samples: Amount = 8192
    """Samples of all clients that wait for a slot; further requests are answered with status 429."""
    waiting_tokens: Amount = 1 << 22
    """Prompt tokens of all requests that wait or are decoded; further ones are answered with status 429."""
    body_bytes: Amount = 4 << 20
    """Bytes of the body of one request; more are answered with status 413."""
    all_body_bytes: Amount = 64 << 20
    """Bytes of the bodies being read at once, of all clients; more are answered with status 429."""
    header_bytes: Amount = 64 << 10
    """Bytes of the request line and the headers."""
    header_seconds: Positive = 10.0
    """Time for the request line and the headers to arrive."""
    body_seconds: Positive = 60.0
    """Time for the body to arrive."""
    write_seconds: Positive = 60.0
    """Time that a client may leave its answer unread before the connection is cut."""
    connections: Amount = 2048
    """Open connections; further ones are answered with status 503."""


class FairQueue(Generic[Item]):
    """Items of clients, taken out in turns; not safe between threads.

    No address may fill more than three quarters of the room, so that another always finds some.

    Args:
      samples: room for items.
      tokens: room for the tokens of the items, those included that were taken and not yet released.
    """

    def __init__(self, *, samples: int, tokens: int):
        self._samples, self._tokens = samples, tokens
        self._waiting: OrderedDict[str, OrderedDict[Hashable, deque[Item]]] = OrderedDict()
        self._samples_of: Counter[str] = Counter()
        self._tokens_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._samples_of.total()

    def put(self, client: Client, items: list[Item], *, tokens: int) -> None:
        """Adds all items of a request, or none.

        Args:
          tokens: of their prompts, to be given back with `release`.

        Raises:
          BusyError: there is no room for them.
        """
        address, connection = client
        rooms = (
            ("samples wait", len(items), self._samples_of, self._samples),
            ("prompt tokens are held", tokens, self._tokens_of, self._tokens),
        )
        for what, more, used, room in rooms:
            own = used[address] + more
            # A large request is let in where its client has nothing else there, and all together hold it.
            if used.total() + more > room or (own > 0.75 * room and used[address]):
                raise BusyError(f"{used.total()} {what}, {used[address]} of them from {address}: try again later")
        self._samples_of[address] += len(items)
        self._tokens_of[address] += tokens
        self._waiting.setdefault(address, OrderedDict()).setdefault(connection, deque()).extend(items)

    def take(self) -> Item:
        """The next item. Raises IndexError where there is none."""
        if not self._waiting:
            raise IndexError("nothing waits")
        address, connections = next(iter(self._waiting.items()))
        connection, items = next(iter(connections.items()))
        item = items.popleft()
        self._samples_of[address] -= 1
        connections.move_to_end(connection)
        if not items:
            del connections[connection]
        self._waiting.move_to_end(address)
        if not connections:
            del self._waiting[address]
        self._samples_of += Counter()  # drops the zeros
        return item

    def release(self, client: Client, *, tokens: int) -> None:
        """Gives back the tokens of a request that has ended."""
        self._tokens_of[client[0]] -= tokens
        self._tokens_of += Counter()


class Budget:
    """Bytes that are held at once; not safe between threads."""

    def __init__(self, size: int):
        self._size, self._held = size, 0

    def take(self, size: int) -> None:
        """Raises BusyError where there is no room."""
        if self._held + size > self._size:
            raise BusyError(f"requests of {self._held} bytes are being read: try again later")
        self._held += size

    def give_back(self, size: int) -> None:
        """The reverse of `take`."""
        self._held -= size
