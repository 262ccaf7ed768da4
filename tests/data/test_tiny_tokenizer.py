"""The shipped tokenizer: reproducible, round-trips any text, digits and special tokens are single tokens."""

import pathlib
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sspo_jax import data
from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.problems import iterate
from sspo_jax.data.prompts import CHAT, PromptTokenizer

SHIPPED = pathlib.Path(data.__file__).parent / "tiny_tokenizer"
SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "build_tiny_tokenizer.py"
TOKENIZER = AutoTokenizer.from_pretrained(SHIPPED)


def test_building_again_gives_the_same_bytes(tmp_path):
    runpy.run_path(str(SCRIPT))["write"](tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes(), name


def test_size_and_special_tokens():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 200_000
    assert len(TOKENIZER) == 512
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 2)


@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


@given(st.integers(min_value=0), st.sampled_from(["", " ", "x", "{", "-", "\n", "1,000."]))
def test_a_digit_is_a_token_of_its_own(number, prefix):
    tokens = [TOKENIZER.decode([token]) for token in TOKENIZER.encode(prefix + str(number), add_special_tokens=False)]
    assert [token.lstrip(" ") for token in tokens if any(letter.isdigit() for letter in token)] == [
        letter for letter in prefix + str(number) if letter.isdigit()
    ]


def test_the_generated_problems_are_short():
    prompts = PromptTokenizer(CHAT, TOKENIZER, max_tokens=48)
    for problem in iterate(ArithmeticData(size=1000).open()):
        prompts(problem)  # raises when longer
        assert len(TOKENIZER.encode(problem.solution, add_special_tokens=False)) + 1 <= 64  # and the end token


def test_the_chat_template_is_the_template_chat():
    messages = [{"role": "user", "content": "1 plus 1?"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == CHAT.fill("1 plus 1?")


@pytest.mark.parametrize("word", [" answer", " plus", " is", " times", " minus", "boxed"])
def test_the_words_of_the_solutions_are_single_tokens(word):
    assert len(TOKENIZER.encode(word, add_special_tokens=False)) == 1
