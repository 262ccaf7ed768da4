"""Bodies of requests, checked field by field; what is not supported is refused by name."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sspo_jax.models.configs import QwenConfig
from sspo_jax.sampler.sampling import SamplingParams
from sspo_jax.serving.errors import RequestError
from sspo_jax.serving.limits import Limits
from sspo_jax.serving.text import Codec

TOP = 20
"""The most alternatives to a token that are reported."""
STOP_TOKENS = 64
"""Stop tokens that a request may have, those of the model included."""

_NUMBERS = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_ONLY: dict[str, tuple[Any, ...]] = {  # values that ask for nothing; any other is refused
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "use_beam_search": (False,),
    "web_search_options": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A checked request: what is to be sampled, and how it is to be reported."""

    prompts: list[list[int]]
    count: int
    """Samples of each prompt."""
    budgets: list[int]
    """Most tokens of a sample, for each prompt; 0: nothing is sampled."""
    sampling: SamplingParams
    """Without stop strings: these are looked for in the text, here."""
    stops: tuple[str, ...]
    keeps_stop: bool
    """The text ends with the stop string."""
    seed: int | None
    top: int | None
    """Alternatives reported for each token, with its log-probability; None: neither."""
    is_chat: bool = False
    echo: bool = False
    """The prompt comes back before the response, with log-probabilities where these are asked for."""
    stream: bool = False
    include_usage: bool = False
    """The last event of a stream holds the numbers of tokens."""
    return_token_ids: bool = False
    place: int = 0
    """Tokens of the response that the prompts end with: what is sampled goes on with the noise of its seed."""

    @property
    def scores_prompts(self) -> bool:
        """Whether log-probabilities of the prompts are wanted."""
        return self.echo and self.top is not None


class Fields:
    """The fields of a body, each read once; what is left at the end is not known here."""

    def __init__(self, body: dict[str, Any]):
        self._body = body
        self._read = set[str](_WITHOUT_EFFECT)

    def get(self, name: str) -> Any:
        """The value; None where it is missing or null."""
        self._read.add(name)
        return self._body.get(name)

    def integer(self, name: str, default: Any = None, *, low: int, high: int, hint: str = "") -> Any:
        """A whole number in this range, or the default."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise RequestError(
                f"{name} is {shown(value)}; expected a whole number from {low} to {high}{hint}", param=name
            )
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number, or the default."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e30:
            raise RequestError(f"{name} is {shown(value)}; expected a finite number", param=name)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false, or the default."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise RequestError(f"{name} is {shown(value)}; expected true or false", param=name)
        return value

    def check_rest(self) -> None:
        """Raises RequestError for a field that is unknown, or known and not supported with this value."""
        for name, value in self._body.items():
            if name in self._read or value is None:
                continue
            if name not in _ONLY:
                raise RequestError(
                    f"{shown(name)} is not a field that this server supports here", param=name[:100], code="unsupported"
                )
            if not any(value == only and isinstance(value, bool) == isinstance(only, bool) for only in _ONLY[name]):
                raise RequestError(
                    f"{name} is {shown(value)}, which this server does not support: leave it out",
                    param=name,
                    code="unsupported",
                )


def shown(value: Any) -> str:
    """A value in an error, cut short."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class RequestReader:
    """Reads the bodies of requests to one model.

    Args:
      config: shape of the model.
      codec: its tokenizer.
      name: of the model.
      max_tokens: most tokens of a response.
      limits: bounds of a request.
    """

    def __init__(self, config: QwenConfig, codec: Codec, *, name: str, max_tokens: int, limits: Limits):
        self._config, self._codec, self._name = config, codec, name
        self._max_tokens, self._limits = max_tokens, limits

    def completion(self, body: dict[str, Any]) -> Generation:
        """The request of POST /v1/completions. Raises RequestError."""
        fields = Fields(body)
        self.check_model(fields)
        echo = fields.flag("echo")
        top = fields.integer("logprobs", low=0, high=TOP)
        prompts = self._prompts(fields.get("prompt"))
        least = 0 if echo else 1
        tokens = fields.integer("max_tokens", 16, low=least, high=self._max_tokens, hint=self._hint(least))
        for prompt in prompts:
            self._check_length(len(prompt), tokens)
        return self._generation(fields, prompts, [tokens] * len(prompts), top=top, echo=echo)

    def chat(self, body: dict[str, Any]) -> Generation:
        """The request of POST /v1/chat/completions. Raises RequestError."""
        fields = Fields(body)
        self.check_model(fields)
        top = fields.integer("top_logprobs", low=0, high=TOP)
        wants_logprobs = fields.flag("logprobs")
        if top is not None and not wants_logprobs:
            raise RequestError("top_logprobs is set; expected logprobs: true beside it", param="top_logprobs")
        prompt = self._codec.encode_chat(_messages(fields.get("messages")))
        if not prompt:
            raise RequestError("the chat template makes no token of these messages", param="messages")
        names = [name for name in ("max_completion_tokens", "max_tokens") if fields.get(name) is not None]
        tokens = None
        for name in reversed(names):
            tokens = fields.integer(name, low=1, high=self._max_tokens, hint=self._hint(1))
        self._check_length(len(prompt), tokens or 1)
        if tokens is None:
            tokens = min(self._max_tokens, self._config.max_positions - len(prompt))
        return self._generation(
            fields, [prompt], [tokens], top=(top or 0) if wants_logprobs else None, echo=False, is_chat=True
        )

    def check_model(self, fields: Fields) -> None:
        """Raises RequestError with status 404 where another model is asked for."""
        model = fields.get("model")
        if model is not None and not isinstance(model, str):
            raise RequestError(f"model is {shown(model)}; expected {self._name!r}", param="model")
        if model is not None and model != self._name:
            raise unknown_model(model, self._name)

    def _hint(self, least: int) -> str:
        return ", or 0 with echo: true" if least else ""

    def _check_length(self, prompt_tokens: int, tokens: int) -> None:
        positions = self._config.max_positions
        if prompt_tokens + tokens > positions:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens; with {tokens} more that is beyond the model's {positions} "
                "positions: shorten the prompt, or lower max_tokens",
                param="prompt",
                code="context_length_exceeded",
            )

    def _prompts(self, prompt: Any) -> list[list[int]]:
        many = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else [prompt]
        if len(many) > self._limits.prompts:
            raise RequestError(
                f"there are {len(many)} prompts; expected at most {self._limits.prompts} in a request", param="prompt"
            )
        prompts = []
        for one in many:
            if isinstance(one, str):
                one = self._codec.encode(one)
            if not isinstance(one, list) or not one or not all(type(token) is int for token in one):
                raise RequestError(
                    "prompt is missing, empty or neither text nor token ids; expected a text, a list of token ids, or "
                    "a list of these",
                    param="prompt",
                )
            if min(one) < 0 or max(one) >= self._config.num_tokens:
                raise RequestError(f"prompt has token ids outside 0 to {self._config.num_tokens - 1}", param="prompt")
            prompts.append(one)
        return prompts

    def _generation(
        self,
        fields: Fields,
        prompts: list[list[int]],
        budgets: list[int],
        *,
        top: int | None,
        echo: bool,
        is_chat: bool = False,
    ) -> Generation:
        """What completions and chats have in common."""
        count = fields.integer("n", 1, low=1, high=self._limits.samples)
        if fields.get("best_of") not in (None, count):
            raise RequestError(
                f"best_of is {shown(fields.get('best_of'))}, which this server does not support: leave it out",
                param="best_of",
                code="unsupported",
            )
        self._check_size(count, prompts, budgets, top, echo)
        sampling = self._sampling(fields, max(1, *budgets))
        stream = fields.flag("stream")
        generation = Generation(
            prompts=prompts,
            count=count,
            budgets=budgets,
            sampling=sampling,
            stops=self._stops(fields),
            keeps_stop=fields.flag("include_stop_str_in_output"),
            seed=fields.integer("seed", low=-(2**63), high=2**64 - 1),
            top=top,
            is_chat=is_chat,
            echo=echo,
            stream=stream,
            include_usage=_include_usage(fields.get("stream_options"), stream=stream),
            return_token_ids=fields.flag("return_token_ids"),
            place=fields.integer("response_place", 0, low=0, high=max(0, min(map(len, prompts)) - 1)),
        )
        fields.check_rest()
        return generation

    def _check_size(
        self, count: int, prompts: list[list[int]], budgets: list[int], top: int | None, echo: bool
    ) -> None:
        samples = count * len(prompts)
        if samples > self._limits.samples:
            raise RequestError(
                f"{len(prompts)} prompts and n = {count} make {samples} samples; expected at most "
                f"{self._limits.samples} in a request",
                param="n",
            )
        tokens = sum(budgets) + (sum(map(len, prompts)) if echo else 0)
        values = count * tokens * (1 + (top or 0))
        if values > self._limits.answer_values:
            raise RequestError(
                f"the answer may hold {values} log-probabilities; expected at most {self._limits.answer_values}: ask "
                "for fewer samples, tokens or alternatives in a request",
                param="max_tokens",
            )

    def _sampling(self, fields: Fields, max_new_tokens: int) -> SamplingParams:
        vocab = self._config.num_tokens
        stops = fields.get("stop_token_ids")
        stops = [] if stops is None else stops
        if not isinstance(stops, list) or not all(type(token) is int and 0 <= token < vocab for token in stops):
            raise RequestError(
                f"stop_token_ids is {shown(stops)}; expected a list of token ids from 0 to {vocab - 1}",
                param="stop_token_ids",
            )
        ends = set(stops)
        if not fields.flag("ignore_eos"):
            ends |= {token for token in self._codec.end_tokens if token < vocab}
        if len(ends) > STOP_TOKENS:
            raise RequestError(
                f"there are {len(ends)} stop tokens; expected at most {STOP_TOKENS}", param="stop_token_ids"
            )
        top_k = fields.integer("top_k", 0, low=-1, high=2**31 - 1)
        least = fields.integer("min_tokens", 0, low=0, high=max_new_tokens)
        temperature, top_p, min_p = (fields.number(name, default) for name, default in _NUMBERS.items())
        try:
            return SamplingParams(
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                min_p=min_p,
                top_k=max(0, top_k),
                stop_token_ids=tuple(sorted(ends)),
                min_new_tokens=least,
            )
        except ValueError as error:
            raise RequestError(str(error)) from None

    def _stops(self, fields: Fields) -> tuple[str, ...]:
        stops = fields.get("stop")
        stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
        longest = self._limits.stop_string_characters
        if not isinstance(stops, list) or not all(isinstance(stop, str) and 0 < len(stop) <= longest for stop in stops):
            raise RequestError(
                f"stop is {shown(stops)}; expected a text, or a list of texts, of 1 to {longest} characters",
                param="stop",
            )
        if len(stops) > self._limits.stop_strings:
            raise RequestError(
                f"stop holds {len(stops)} texts; expected at most {self._limits.stop_strings}", param="stop"
            )
        if stops and not self._codec.has_text:
            raise RequestError("this server has no tokenizer: stop strings are not available", param="stop")
        return tuple(stops)


def unknown_model(model: str, served: str) -> RequestError:
    """The refusal of a model that is not served."""
    return RequestError(
        f"the model {shown(model)} is not served here; expected {served!r}",
        status=404,
        param="model",
        code="model_not_found",
    )


def _include_usage(options: Any, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise RequestError("stream_options is set; expected stream: true beside it", param="stream_options")
    if not isinstance(options, dict):
        raise RequestError(f"stream_options is {shown(options)}; expected an object", param="stream_options")
    fields = Fields(options)
    include = fields.flag("include_usage")
    fields.flag("include_obfuscation")
    fields.check_rest()
    return include


def _messages(messages: Any) -> list[dict[str, Any]]:
    """Messages with texts, as chat templates take them."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            "messages is missing or empty; expected a list of {'role': ..., 'content': ...}", param="messages"
        )
    return [_message(place, message) for place, message in enumerate(messages)]


def _message(place: int, message: Any) -> dict[str, Any]:
    param = f"messages[{place}]"
    if not isinstance(message, dict):
        raise RequestError(f"{param} is {shown(message)}; expected {{'role': ..., 'content': ...}}", param=param)
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise RequestError(f"{param} has role {shown(role)}; expected one of {', '.join(_ROLES)}", param=param)
    unknown = sorted(str(name) for name in set(message) - {"role", "content", "name"} if message[name])
    if unknown:
        raise RequestError(
            f"{param} has {shown(unknown[0])}, which this server does not support: leave it out",
            param=param,
            code="unsupported",
        )
    if isinstance(content, list):
        content = "".join(_parts(param, content))
    if not isinstance(content, str):
        raise RequestError(f"{param} has content {shown(content)}; expected a text", param=param)
    return {"role": "system" if role == "developer" else role, "content": content}


def _parts(param: str, content: Sequence[Any]) -> list[str]:
    for part in content:
        is_text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            raise RequestError(
                f"{param} has a part {shown(part)}; expected {{'type': 'text', 'text': ...}}: other kinds are not "
                "supported",
                param=param,
            )
    return [part["text"] for part in content]
