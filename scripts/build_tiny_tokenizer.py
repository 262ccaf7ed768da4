"""Builds the tokenizer of the tiny experiments: byte-level BPE, 512 entries, Qwen's special tokens and chat template.

    python scripts/build_tiny_tokenizer.py [DIRECTORY]

It is trained on text of this project only: generated problems and their solutions, and the prose below, which gives
the merges that are left something sensible to do. All 256 bytes are in the vocabulary, so every text round-trips;
digits are cut apart before merging, so a digit (with the space before it) is always one token. The result is the same
bytes every time (tests/data/test_tiny_tokenizer.py builds it again and compares).
"""

import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sspo_jax.data.arithmetic import ArithmeticData

VOCABULARY = 512  # a multiple of 64: an embedding of this many rows divides evenly over devices
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen2's splitting rule (words with one leading mark, single digits, runs of marks, white space), but for one thing: a
# space goes with the digit after it, as with a word. It saves a quarter of the tokens of the arithmetic.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROSE = r"""
Please reason step by step, and put your final answer within \boxed{}. A language model reads a problem and writes a
response: a chain of clauses and sentences that ends with an answer. The response is right or wrong, and the reward is
one or zero. Policy optimization makes the responses with a reward above the mean of their group more likely, and the
others less likely. The ratio of the new policy to the old policy is taken over a subsentence: a run of tokens that
ends at a comma, a full stop, a question mark or a new line. Where the entropy of a subsentence is high, the bounds of
the ratio are wider; where it is low, they are tighter.

Let $x$ be a real number such that $2x + 3 = 7$. Then $2x = 4$, so $x = 2$. Therefore, the value of $x$ is \boxed{2}.
We have $\frac{1}{2} + \frac{1}{3} = \frac{5}{6}$, and the sum of the angles in the triangle is $180^\circ$. Find the
number of positive integers $n$ for which $n^2 - 1$ is a prime. If $a$ and $b$ are the roots of the equation, what is
$a + b$? First, we note that the function is defined for all $x > 0$. Since the numbers are equal, we can write
$\sqrt{a} = b$. Hence, there are three solutions. Thus the answer is $\boxed{\frac{3}{4}}$.
"""


def corpus() -> list[str]:
    """The training text: problems, solutions and guesses of the generated set, then the prose."""
    source = ArithmeticData(size=2_000).open()
    texts = []
    for index in range(len(source)):
        problem = source[index]
        texts += [problem.problem, problem.solution or "", source.demonstration(index)]
    turns = ["system\n", "user\n", "assistant\n"] * 100  # the roles of a chat, so that each is one token
    return [*texts, *turns, *[PROSE] * 20]


def build() -> Tokenizer:
    """The trained tokenizer; special tokens come first, `<|endoftext|>` has id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[
            AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, TURN_START, TURN_END)
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} entries, want {VOCABULARY}: give the trainer more text")
    return tokenizer


def write(directory: pathlib.Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1024,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer.json").write_text(build().to_str(pretty=False) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    default = pathlib.Path(__file__).resolve().parent.parent / "sspo_jax" / "data" / "tiny_tokenizer"
    write(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default)
