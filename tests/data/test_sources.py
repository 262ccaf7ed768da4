"""Filters, mixtures, configs and one-word specs."""

import collections
import dataclasses
import json
import pathlib

import pytest
from transformers import AutoTokenizer

from sspo_jax import data
from sspo_jax.data.arithmetic import ArithmeticData
from sspo_jax.data.filters import KEEP_ALL, ProblemFilter, filtered
from sspo_jax.data.mixtures import MixtureSource
from sspo_jax.data.pipeline import ProblemStream
from sspo_jax.data.problems import ListSource, Problem, ProblemSource, iterate
from sspo_jax.data.sources import HubData, JsonlData, MixtureData, TfdsData, data_from_record, open_problems, parse_spec

PROBLEMS = [
    Problem(id="a", problem="one two three", answer="12", level=3),
    Problem(id="b", problem="one", answer="-1,234", level=5, extra={"lang": "zh"}),
    Problem(id="c", problem="one two", answer="1/2", level=1),
    Problem(id="d", problem="x", answer="3.0", extra={"boxes": ["3", "4"]}),
    Problem(id="e", problem="x y", answer="1234", extra={"lang": "en"}),
]


@pytest.fixture
def source():
    return ListSource(PROBLEMS, name="five")


class Words:
    """A tokenizer with a token for each word."""

    def encode(self, text, add_special_tokens):
        return text.split()


@pytest.mark.parametrize(
    ("keep", "ids"),
    [
        ({"levels": (3, 4, 5)}, "ab"),
        ({"languages": ("en",)}, "acde"),
        ({"languages": ("zh", "fr")}, "b"),
        ({"integer_answers": True}, "abe"),
        ({"drop_ambiguous": True}, "abce"),
        ({"max_tokens": 2}, "bcde"),
        ({"levels": (3, 5), "languages": ("en",), "integer_answers": True}, "a"),
    ],
)
def test_filters(source, keep, ids):
    found = filtered(source, ProblemFilter(**keep), tokenizer=Words())
    assert "".join(problem.id for problem in iterate(found)) == ids
    assert isinstance(found, ProblemSource)
    assert found.digest != source.digest


def test_no_filter_is_the_source_itself(source):
    assert filtered(source, KEEP_ALL) is source


def test_a_filter_that_nothing_passes_is_refused(source):
    with pytest.raises(ValueError, match=r"none of the 5 problems of five passes .*\"levels\": \[2\]"):
        filtered(source, ProblemFilter(levels=(2,)))
    with pytest.raises(ValueError, match="no tokenizer was given"):
        filtered(source, ProblemFilter(max_tokens=5))


def make(name: str, count: int) -> ListSource:
    return ListSource([Problem(id=str(index), problem="p", answer="1") for index in range(count)], name=name)


def test_a_mixture_keeps_its_proportions_and_leaves_nothing_out():
    mixture = MixtureSource([make("small", 10), make("large", 100)], [1.0, 2.0])
    assert mixture.counts == {"small": 50, "large": 100}
    ids = [problem.id for problem in iterate(mixture)]
    assert len(set(ids)) == len(ids) == 150
    assert ids[9:12] == ["small/9", "small/0#1", "small/1#1"]
    counted = collections.Counter(ident.split("#")[0] for ident in ids)
    assert set(counted.values()) == {1, 5}
    assert len(counted) == 110


def test_a_mixture_without_weights_is_each_source_once():
    assert MixtureSource([make("a", 3), make("b", 4)]).counts == {"a": 3, "b": 4}


def test_a_mixture_can_be_streamed_and_its_digest_sees_weights():
    sources = [make("a", 3), make("b", 4)]
    digests = {MixtureSource(sources, weights).digest for weights in (None, (1.0, 1.0), (2.0, 1.0))}
    assert len(digests) == 3
    stream = ProblemStream(MixtureSource(sources), batch_size=7, seed=0)
    assert len({problem.id for problem in stream.next()}) == 7


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        (["a", "b"], [1.0], "1 weights for 2 sources"),
        (["a", "b"], [1.0, 0.0], "expected positive numbers"),
        (["a", "a"], None, "no name twice"),
        ([], None, "at least one"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        MixtureSource([make(name, 2) for name in sources], weights)


def test_configs_open(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [{"id": str(index), "problem": "p", "answer": "1", "level": 1 + index % 5} for index in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = JsonlData(path=str(path), filter=ProblemFilter(levels=(3, 4)), first=5)
    assert [problem.level for problem in iterate(config.open())] == [3, 4, 3, 4, 3]
    mixture = MixtureData(parts=(config, ArithmeticData(size=10)), weights=(1.0, 1.0)).open()
    assert mixture.counts == {"set": 10, "arithmetic_train": 10}
    with pytest.raises(ValueError, match="first is 0"):
        JsonlData(path=str(path), first=0).open()


def test_a_filter_by_length_counts_with_the_tokenizer_of_the_run():
    tokenizer = AutoTokenizer.from_pretrained(pathlib.Path(data.__file__).parent / "tiny_tokenizer")
    source = ListSource([Problem(id="a", problem="1234567890", answer="1")])
    for limit, kept in ((10, 1), (9, 0)):
        try:
            found = len(filtered(source, ProblemFilter(max_tokens=limit), tokenizer=tokenizer))
        except ValueError:
            found = 0
        assert found == kept


def test_specs():
    assert parse_spec("x.jsonl[:7]") == JsonlData(path="x.jsonl", first=7)
    assert parse_spec("tfds:gsm8k") == TfdsData(name="gsm8k", split="test")
    assert parse_spec("tfds:gsm8k:train[:5]") == TfdsData(name="gsm8k", split="train", first=5)
    assert parse_spec("hf:a/b:validation") == HubData(name="a/b", split="validation")
    assert parse_spec("arithmetic:train") == ArithmeticData(split="train", size=1000)
    assert parse_spec("arithmetic[:20]") == ArithmeticData(split="held_out", size=20)
    for wrong in ("arithmetic:test", "x.jsonl[7]", "x.jsonl[:0]"):
        with pytest.raises(ValueError, match="expected"):
            parse_spec(wrong)


def test_sets_by_name_are_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "quiz.jsonl").write_text(
        json.dumps(dataclasses.asdict(PROBLEMS[0]) | {"solution": "s", "subject": "t"})
    )
    assert open_problems("quiz", data_dir=str(tmp_path)).name == "quiz"
    monkeypatch.setenv("SSPO_DATA", str(tmp_path / "eval"))
    assert len(open_problems("quiz")) == 1
    with pytest.raises(FileNotFoundError, match=r"no problems called 'quizz': looked for .*quizz\.jsonl.*--data-dir"):
        open_problems("quizz")


@pytest.mark.parametrize(
    "data",
    [
        JsonlData(path="a.jsonl", filter=ProblemFilter(levels=(3, 4), max_tokens=9), first=2, fields=("answer=gold",)),
        TfdsData(name="gsm8k"),
        HubData(name="a/b", config="main"),
        ArithmeticData(split="held_out", size=4),
        MixtureData(parts=(JsonlData(path="a.jsonl"), ArithmeticData(split="train")), weights=(1.0, 2.0)),
    ],
)
def test_data_is_read_back_from_the_record_of_a_run(data):
    record = json.loads(json.dumps(dataclasses.asdict(data)))
    assert data_from_record(record) == data
    with pytest.raises(ValueError, match="is of no known kind"):
        data_from_record({**record, "colour": "red"})
