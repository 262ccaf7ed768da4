"""Prompt templates: texts, hashes, files, and errors that name the problem."""

import pathlib

import pytest
from transformers import AutoTokenizer

from sspo_jax import data
from sspo_jax.data import prompts
from sspo_jax.data.problems import Problem

TOKENIZER = AutoTokenizer.from_pretrained(pathlib.Path(data.__file__).parent / "tiny_tokenizer")
PROBLEM = Problem(id="p-1", problem="Find $x$ if $x < 3$ & so on.\n", answer="2")


def test_qwen_math_is_written_out_as_the_model_knows_it():
    assert prompts.QWEN_MATH.fill("1+1?") == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen_math_is_the_chat_template_of_qwens_tokenizer(real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "qwen2.5-tokenizer")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROBLEM.problem}], tokenize=False, add_generation_prompt=True
    )
    tokens = prompts.render(prompts.QWEN_MATH, PROBLEM, tokenizer)
    assert tokenizer.decode(tokens) == chat
    assert tokens[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize("template", prompts.TEMPLATES, ids=lambda template: template.name)
def test_the_question_is_put_in_unchanged(template):
    assert PROBLEM.problem in template.fill(PROBLEM.problem)
    assert TOKENIZER.decode(prompts.render(template, PROBLEM, TOKENIZER)) == template.fill(PROBLEM.problem)


def test_a_question_in_braces_is_text_and_no_template():
    assert prompts.NONE.fill("{{ 7 * 6 }}") == "{{ 7 * 6 }}"


def test_names_and_digests_are_distinct():
    assert len({template.name for template in prompts.TEMPLATES}) == len(prompts.TEMPLATES)
    assert len({template.digest for template in prompts.TEMPLATES}) == len(prompts.TEMPLATES)


def test_a_jinja_file_keeps_its_last_newline(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("Q: {{ problem }}\nA:\n")
    template = prompts.load_template(str(path))
    assert template.name == "mine"
    assert template.fill("1?") == "Q: 1?\nA:\n"


def test_an_unknown_name_lists_the_known():
    assert prompts.load_template("r1") is prompts.R1
    with pytest.raises(ValueError, match="chat, qwen-math, qwen-boxed, r1, stories, none, or the path"):
        prompts.load_template("qwen_math")


@pytest.mark.parametrize(("text", "message"), [("no question", "does not appear"), ("{{ problem", "line 1")])
def test_a_bad_file_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.jinja"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prompts.load_template(str(path))


def test_a_prompt_longer_than_the_context_names_the_problem():
    tokens = prompts.render(prompts.CHAT, PROBLEM, TOKENIZER)
    assert prompts.render(prompts.CHAT, PROBLEM, TOKENIZER, max_tokens=len(tokens)) == tokens
    with pytest.raises(ValueError, match=f"'p-1' has {len(tokens)} tokens; expected at most {len(tokens) - 1}"):
        prompts.render(prompts.CHAT, PROBLEM, TOKENIZER, max_tokens=len(tokens) - 1)


def test_a_control_token_in_a_question_is_refused():
    with pytest.raises(ValueError, match=r"'x' contains the control token <\|im_end\|>"):
        prompts.render(prompts.CHAT, Problem(id="x", problem="a<|im_end|>b", answer="1"), TOKENIZER)


def test_a_prompt_is_tokenized_once():
    class Counting:
        all_special_tokens: tuple[str, ...] = ()
        calls = 0

        def encode(self, text, add_special_tokens):
            self.calls += 1
            return [len(text)]

    counting = Counting()
    tokenize = prompts.PromptTokenizer(prompts.NONE, counting)
    assert tokenize(PROBLEM) == tokenize(PROBLEM) == [len(PROBLEM.problem)]
    assert counting.calls == 1
