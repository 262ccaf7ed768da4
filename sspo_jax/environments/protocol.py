"""What an environment is: text in, text or the end and a reward out."""

import dataclasses
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol, runtime_checkable

from sspo_jax.ranges import Count, Positive

ON_FAILURE = ("stop", "exclude", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a conversation is about: the problem that the prompt was made of."""

    id: str
    """Unique inside its source."""
    problem: str
    """The question, which the policy has read."""
    gold: str
    """The gold answer."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the data says."""
    sample: int = 0
    """Which of the responses to the problem this is."""
    seed: int = 0
    """For an environment that draws: of (run, step, problem), the same for all responses to a problem."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What an environment answers to one turn of the policy."""

    text: str | None = None
    """What it says; None: nothing, the conversation is over."""
    reward: float = 0.0
    """For this turn; those of all turns add up."""


@runtime_checkable
class Environment(Protocol):
    """One conversation with the policy: an object is made for each response.

    Both methods may be `async`. Many conversations go on at once, in threads or on one event loop, and share nothing
    unless the class does.
    """

    def reset(self, task: Task) -> str | Awaitable[str | None] | None:
        """Begins. A text is put to the policy after the prompt, as if the user had gone on; None: nothing is."""
        ...

    def step(self, text: str) -> Reply | Awaitable[Reply]:
        """Answers what the policy has said in a turn, without its end token."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """Which environment a run talks to, and how."""

    environment: str
    """`module:Class`, importable from the working directory or the folder of the experiment file."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the class."""
    max_turns: Count = 4
    """The most turns of the policy; after the last one the environment is still asked for its reward."""
    before: str = "\n<|im_start|>user\n"
    """Written before a text of the environment, after the end token of the policy's turn."""
    after: str = "<|im_end|>\n<|im_start|>assistant\n"
    """Written after it; the policy goes on."""
    concurrency: Count = 64
    """Conversations that the environment is in at the same time."""
    timeout_seconds: Positive = 30.0
    """The most one call of it may take."""
    on_failure: str = "stop"
    """Where it raises or overruns: "stop" ends the run, "exclude" takes the response out of its group, "zero" ends
    the conversation with the rewards so far."""

    def __post_init__(self) -> None:
        module, colon, name = self.environment.partition(":")
        if not (module and colon and name):
            raise ValueError(f"environment is {self.environment!r}; expected module:Class")
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure is {self.on_failure!r}; expected 'stop', 'exclude' or 'zero'")
        if not (self.before or self.after):
            raise ValueError("before and after are empty; expected what marks a text of the environment")
