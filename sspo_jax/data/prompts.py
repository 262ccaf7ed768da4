r"""Prompt templates as values, and problems to prompt tokens.

A template is a name and a Jinja text with `{{ problem }}` in it. `name` and `digest` belong in every result: the same
model scores differently under another prompt. Special tokens are spelled out in the text (`<|im_start|>`), and the
tokenizer is asked to add none of its own.

The shipped ones, by name: `chat` (a bare user turn), `qwen-math` (Qwen2.5-Math's own), `qwen-boxed` (SimpleRL-Zoo:
a generic system prompt, the instruction after the problem), `r1` (the DeepSeek-R1-Zero prompt), `stories` (two worked
examples, for small models), `none`.
"""

import dataclasses
import functools
import hashlib
import os
from typing import Any

from sspo_jax.data.problems import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A named Jinja template over `problem`.

    >>> PromptTemplate(name="question", text="Q: {{ problem }}\\nA:").fill("1 + 1?")
    'Q: 1 + 1?\\nA:'
    """

    name: str
    """What results call it."""
    text: str
    """Jinja source; `{{ problem }}` stands for the question."""

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def fill(self, problem: str) -> str:
        """The prompt text for a question.

        Raises:
          ValueError: the template cannot be read or filled in, or what comes out is no text.
        """
        try:
            text = _compile(self.text).render(problem=problem)
            text.encode("utf-8")
        except Exception as error:  # a template is a small program and fails in as many ways
            number = getattr(error, "lineno", None)
            line = "" if number is None else f", line {number}"
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise ValueError(
                f"prompt template {self.name}{line}: {reason[0]} ({type(error).__name__}); expected Jinja with "
                "{{ problem }} in it"
            ) from None
        return text


INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."

CHAT = PromptTemplate(name="chat", text="<|im_start|>user\n{{ problem }}<|im_end|>\n<|im_start|>assistant\n")
QWEN_MATH = PromptTemplate(name="qwen-math", text=f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n{CHAT.text}")
QWEN_BOXED = PromptTemplate(
    name="qwen-boxed",
    text="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{{ problem }}\n"
    f"{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
)
R1 = PromptTemplate(
    name="r1",
    text="A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
    "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. The "
    "reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
    "User: {{ problem }}\nAssistant: <think>",
)
NONE = PromptTemplate(name="none", text="{{ problem }}")
STORIES = PromptTemplate(
    name="stories",
    text="<|im_start|>user\nTom has 5 pens and gets 3 more. How many pens does Tom have now?<|im_end|>\n"
    "<|im_start|>assistant\n5 + 3 = 8. The answer is \\boxed{8}.<|im_end|>\n"
    "<|im_start|>user\nThere are 4 bags with 6 nuts in each. How many nuts are there in all?<|im_end|>\n"
    "<|im_start|>assistant\n4 * 6 = 24. The answer is \\boxed{24}.<|im_end|>\n" + CHAT.text,
)
TEMPLATES = (CHAT, QWEN_MATH, QWEN_BOXED, R1, STORIES, NONE)


def load_template(spec: str) -> PromptTemplate:
    """A shipped template by name, or a Jinja file by path (named after the file).

    Raises:
      ValueError: neither; a file without `{{ problem }}` or that Jinja cannot read.
    """
    for template in TEMPLATES:
        if template.name == spec:
            return template
    if not os.path.isfile(spec):
        names = ", ".join(template.name for template in TEMPLATES)
        raise ValueError(f"prompt template {spec!r}; expected {names}, or the path of a Jinja file")
    with open(spec, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{spec}: byte {error.start} is not UTF-8; expected a Jinja file in UTF-8") from None
    template = PromptTemplate(name=os.path.splitext(os.path.basename(spec))[0], text=text)
    mark = "a question that no template contains"
    if mark not in template.fill(mark):
        raise ValueError(f"{spec}: the question does not appear in the prompt; expected {{{{ problem }}}} in the file")
    return template


class PromptTokenizer:
    """Problems to prompt token ids, each tokenized once.

    Args:
      template: the prompt's text around the problem.
      tokenizer: of transformers, or anything with `encode(text, add_special_tokens=False)` and `all_special_tokens`.
      max_tokens: longest prompt allowed (context length minus room for a response); None allows any.
    """

    def __init__(self, template: PromptTemplate, tokenizer: Any, *, max_tokens: int | None = None):
        self.template = template
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._special = tuple(tokenizer.all_special_tokens)
        self._tokens: dict[str, list[int]] = {}  # by question: sources may use the same ids

    def __call__(self, problem: Problem) -> list[int]:
        """Token ids of the whole prompt.

        Raises:
          ValueError: longer than `max_tokens`, or the question contains a control token of the tokenizer, which would
            end the user's turn early.
        """
        tokens = self._tokens.get(problem.problem)
        if tokens is None:
            for special in self._special:
                if special in problem.problem:
                    raise ValueError(f"problem {problem.id!r} contains the control token {special}: remove it")
            tokens = self._tokenizer.encode(self.template.fill(problem.problem), add_special_tokens=False)
            self._tokens[problem.problem] = tokens
        if self.max_tokens is not None and len(tokens) > self.max_tokens:
            raise ValueError(
                f"the prompt of problem {problem.id!r} has {len(tokens)} tokens; expected at most {self.max_tokens}: "
                "raise the context, lower the response budget or filter with max_tokens"
            )
        return tokens


def render(template: PromptTemplate, problem: Problem, tokenizer: Any, *, max_tokens: int | None = None) -> list[int]:
    """Token ids of one prompt; for many problems keep a `PromptTokenizer`."""
    return PromptTokenizer(template, tokenizer, max_tokens=max_tokens)(problem)


@functools.lru_cache(maxsize=64)
def _compile(text: str) -> Any:
    import jinja2
    import jinja2.sandbox

    # Sandboxed: a template file comes with data sets and models. No trailing newline may get lost: it is a token.
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(text)
