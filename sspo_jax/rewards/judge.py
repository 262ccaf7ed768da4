"""`Judge`: another model scores the response, through an OpenAI-compatible server."""

import asyncio
import concurrent.futures
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from sspo_jax.files import cache_directory, replace_text
from sspo_jax.ranges import Count, NotNegative, Positive, Whole
from sspo_jax.rewards.calls import Real
from sspo_jax.rewards.own import UserReward

TEMPLATE = """You grade answers. Read the problem, the reference answer and the response of a student.

Problem:
{problem}

Reference answer:
{gold}

Response:
{response}

Is the response right, and does its reasoning hold? Think briefly, then end with a line "Score: N", where N is a whole
number from 0 (wrong or useless) to 10 (right and well reasoned)."""

_FIELDS = re.compile(r"\{(problem|response|gold)\}")
_THREADS = concurrent.futures.ThreadPoolExecutor(max_workers=1024, thread_name_prefix="judge")
_names: dict[str, str] = {}  # of the first model that a server lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge(UserReward):
    """Asks a model for a score of each response. Its terms are `judge`, and `judge_tokens`, what the answer cost.

    The score is scaled to 0 to 1. `judge_tokens` has no weight unless `weights` gives it one. Answers are kept on disk
    by everything that was asked, so that a run that is repeated or resumed pays for none twice.
    """

    function: str = f"{__name__}:score"
    weights: Mapping[str, Real] = dataclasses.field(default_factory=lambda: {"judge_tokens": 0.0})
    timeout_seconds: Positive = 120.0
    """The most one response may take, repetitions included."""
    url: str = "http://localhost:8000/v1"
    """Of the server: up to /v1."""
    model: str | None = None
    """Name of the model there; None: what the server lists first."""
    template: str = TEMPLATE
    """What is asked, with {problem}, {gold} and {response} in it."""
    pattern: str = r"(?i)score\s*[:=]\s*(-?\d+(?:\.\d+)?)"
    """A regular expression whose last match in the answer has the score as its first group."""
    lowest: Real = 0.0
    """Score that counts as 0; lower ones do too."""
    highest: Real = 10.0
    """Score that counts as 1; higher ones do too."""
    max_tokens: Count = 512
    """Longest answer."""
    temperature: NotNegative = 0.0
    """Of the judge."""
    retries: Whole = 5
    """Times that a request is sent again, after growing pauses, where the server is away or too busy."""
    cache: str | None = ""
    """Directory of answers that are kept; empty: judge/ in the cache of sspo_jax; None: none are."""
    key_variable: str = "SSPO_JUDGE_KEY"
    """Environment variable with the API key, where the server asks for one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; expected one like http://localhost:8000/v1")
        if "{response}" not in self.template:
            raise ValueError("template does not hold {response}; expected it, and {problem} and {gold} where wanted")
        if re.compile(self.pattern).groups < 1:
            raise ValueError(f"pattern is {self.pattern!r}; expected a regular expression with a group, the score")
        if not self.lowest < self.highest:
            raise ValueError(f"lowest is {self.lowest}, highest {self.highest}; expected a smaller one first")

    @property
    def name(self) -> str:
        return "judge"

    def keywords(self) -> dict[str, Any]:
        base = {field.name for field in dataclasses.fields(UserReward)}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in base}


async def score(
    problem: str,
    response: str,
    gold: str,
    *,
    url: str,
    model: str | None,
    template: str,
    pattern: str,
    lowest: float | int,
    highest: float | int,
    max_tokens: int,
    temperature: float | int,
    retries: int,
    cache: str | None,
    key_variable: str,
) -> dict[str, float]:
    """The terms of one response; see `Judge`.

    Raises:
      ValueError: the answer holds no score.
      OSError: the server refuses, or is still away after all repetitions.
    """
    server = _Server(url.rstrip("/"), os.environ.get(key_variable), retries)
    values = {"problem": problem, "response": response, "gold": gold}
    prompt = _FIELDS.sub(lambda found: values[found.group(1)], template)
    body = {
        "model": model or await server.first_model(),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    file = _file(cache, {"url": server.url, **body})
    if file is not None and file.exists():
        text, tokens = json.loads(file.read_text(encoding="utf-8"))["text"], 0  # paid for before
    else:
        answer = await server.ask("/chat/completions", body)
        text = str(answer["choices"][0]["message"]["content"] or "")
        tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(file, json.dumps({"text": text, "tokens": tokens, **body}))
    found = re.findall(pattern, text)
    if not found:
        raise ValueError(f"the judge's answer holds no score ({pattern}): {text[-200:]!r}")
    value = float(found[-1][0] if isinstance(found[-1], tuple) else found[-1])
    return {"judge": min(1.0, max(0.0, (value - lowest) / (highest - lowest))), "judge_tokens": tokens}


def _file(cache: str | None, asked: dict[str, Any]) -> pathlib.Path | None:
    """Where the answer to a request is kept."""
    if cache is None:
        return None
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return (pathlib.Path(cache) if cache else cache_directory("judge")) / digest[:2] / f"{digest}.json"


class _Server:
    """Requests to one server, sent again where that may help."""

    def __init__(self, url: str, key: str | None, retries: int):
        self.url, self._key, self._retries = url, key, retries

    async def first_model(self) -> str:
        """Name of the model that the server lists first."""
        if self.url not in _names:
            _names[self.url] = str((await self.ask("/models"))["data"][0]["id"])
        return _names[self.url]

    async def ask(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer to a POST of `body`, or to a GET without one."""
        pause = 0.2
        for attempt in range(self._retries + 1):
            try:
                return await asyncio.get_running_loop().run_in_executor(_THREADS, self._once, route, body)
            except urllib.error.HTTPError as error:
                if (error.code < 500 and error.code not in (408, 409, 429)) or attempt == self._retries:
                    text = error.read(500).decode("utf-8", "replace")
                    raise OSError(f"{self.url}{route} answers {error.code}: {text}") from None
                with_pause = error.headers.get("Retry-After", "")
                pause = max(pause, float(with_pause)) if with_pause.replace(".", "", 1).isdigit() else pause
            except (OSError, http.client.HTTPException) as error:
                if attempt == self._retries:
                    raise OSError(f"{self.url}{route} does not answer: {error}") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 20.0)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, route: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, headers)
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.loads(response.read())
