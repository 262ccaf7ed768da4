"""`sspo segment`: a text, a file of texts, and what it says of input that it cannot use."""

import json
import pathlib
import re

import pytest

import sspo_jax.data
from sspo_jax.commands import main as cli
from sspo_jax.commands import segment
from sspo_jax.config import SegmenterConfig
from sspo_jax.subsentences.rules import MAX_TOKENS

TEXT = "First add 3 and 4, then double it. The sum is 7, so twice that is \\boxed{14}.\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SSPO_TRACEBACK", raising=False)


def run(*arguments: object) -> int:
    return cli.main(["segment", *map(str, arguments)])


def test_a_text_is_shown_whole_with_its_statistics(tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert run(file, "--tokenizer", "tiny") == 0
    shown = capsys.readouterr().out
    assert "".join(shown.split("\n\n")[0].replace("\n", "").split()) == "".join(TEXT.replace("\n", "⏎").split())
    figures = json.loads(next(line for line in shown.splitlines() if line.startswith("{")))
    segmenter = segment.Segmenter.from_tokenizer(segment.read_tokenizer("tiny"))
    assert figures["texts"] == 1
    assert figures["subsentences"] == len(segmenter.split(TEXT)) > 2
    assert figures["tokens"] == len(segmenter.host.tokenizer.encode(TEXT, add_special_tokens=False).ids)
    assert "share" in shown


def test_a_file_of_texts(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    # U+2028 ends no line of JSON; an empty line is none; the last text is empty.
    rows = [{"answer": TEXT}, {"answer": "a\u2028b"}, {"answer": ""}]
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    tokenizer = pathlib.Path(sspo_jax.data.__file__).parent / "tiny_tokenizer" / "tokenizer.json"
    assert run(file, "--tokenizer", tokenizer, "--field", "answer", "--rule", "fixed(4)", "--show", "0") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (figures["texts"], figures["tokens_median"]) == (3, 4)
    assert figures["rule"] == "fixed(4)"


def test_long_pieces_are_cut_where_asked(tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("one two three four five six seven eight nine ten " * 40, encoding="utf-8")
    longest = {}
    for bound in ("None", "7", "30", None):
        options = ("--max-tokens", bound) if bound else ()
        assert run(file, "--tokenizer", "tiny", "--show", "0", *options) == 0
        longest[bound] = json.loads(capsys.readouterr().out.splitlines()[0])["tokens_max"]
    assert longest["None"] > 300
    assert longest["7"] == 7
    assert longest["30"] <= 30
    assert longest[None] <= MAX_TOKENS
    assert SegmenterConfig().max_tokens == segment.SegmentConfig(file=file, tokenizer="tiny").max_tokens == MAX_TOKENS


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "No such file"),
        ("{", [], r"\.jsonl:1: not JSON"),
        ('{"solution": "x"}\n[1]', [], r"\.jsonl:2: a list; expected a JSON object"),
        ('{"solution": 3, "text": "x"}', [], "no text in 'solution', the fields are solution, text"),
        ('{"solution": "x"}', ["--rule", "clause"], "rule is 'clause', expected punctuation, sentence"),
        ('{"solution": "x"}', ["--rule", "entropy"], "needs the entropies of a model"),
        ('{"solution": "x"}', ["--min-tokens", "0"], "--min-tokens is 0; expected a whole number at least 1"),
        ('{"solution": "x"}', ["--max-tokens", "0"], "--max-tokens is 0; expected a whole number at least 1"),
        ('{"solution": "x"}', ["--max-tokens", "4"], "max_tokens is 4, expected at least min_tokens, 5"),
        (
            '{"solution": "x"}',
            ["--tokenizer", "nowhere"],
            "--tokenizer is 'nowhere'; expected 'tiny', a tokenizer.json",
        ),
        ('{"solution": "x"}', ["--tokenizer", __file__], "is not a tokenizer.json"),
    ],
)
def test_wrong_input_is_named(tmp_path, capsys, content, options, message):
    file = tmp_path / "texts.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert run(file, *(["--tokenizer", "tiny"] if "--tokenizer" not in options else []), *options) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1
