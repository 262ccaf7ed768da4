"""JSON-lines sources: random access, digests, and errors that name file and line."""

import dataclasses
import hashlib
import json
import pickle

import pytest

from sspo_jax.data.problems import JsonlSource, ListSource, Problem, ProblemSource, digest_problems, iterate
from sspo_jax.data.sources import JsonlData

ROWS = [
    {"id": "a", "problem": "1 + 1?", "answer": "2"},
    {"id": "b", "problem": "¿π·2?", "answer": "2\\pi", "level": 3, "subject": "Algebra", "source": "mine"},
    {"id": "c", "problem": "second\u2028line", "answer": "0", "solution": "none", "extra": {"lang": "zh"}},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_come_back_in_any_order(tmp_path):
    source = JsonlSource(write(tmp_path / "set.jsonl", ROWS))
    assert len(source) == 3
    assert source.name == "set"
    assert [source[index].id for index in (2, 0, 1)] == ["c", "a", "b"]
    assert source[1] == Problem(id="b", problem="¿π·2?", answer="2\\pi", level=3, subject="Algebra", source="mine")
    assert [problem.language for problem in iterate(source)] == ["en", "en", "zh"]
    assert isinstance(source, ProblemSource)


def test_blank_lines_and_a_missing_last_newline_are_allowed(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text("\n" + "\n\n".join(json.dumps(row) for row in ROWS))
    assert [problem.id for problem in iterate(JsonlSource(path))] == ["a", "b", "c"]


def test_null_is_absent_where_a_field_is_optional(tmp_path):
    rows = [{**ROWS[0], "level": None, "extra": None}, {**ROWS[1], "answer": None}]
    source = JsonlSource(write(tmp_path / "set.jsonl", rows[:1]))
    assert source[0] == Problem(id="a", problem="1 + 1?", answer="2")
    with pytest.raises(ValueError, match=r"set\.jsonl:2: None as `answer`"):
        JsonlSource(write(tmp_path / "set.jsonl", rows))


def test_digest_is_that_of_the_file(tmp_path):
    path = write(tmp_path / "set.jsonl", ROWS)
    assert JsonlSource(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()
    changed = write(tmp_path / "other.jsonl", [*ROWS[:2], {**ROWS[2], "answer": "1"}])
    assert JsonlSource(changed).digest != JsonlSource(path).digest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "problem": "p"', "not JSON"),
        ('["x"]', "list; expected an object"),
        ('{"id": "x", "problem": "p"}', "no `answer`"),
        ('{"id": "x", "problem": "p", "answer": " "}', "' ' as `answer`"),
        ('{"id": "x", "problem": "p", "answer": [3]}', "[3] as `answer`"),
        ('{"id": true, "problem": "p", "answer": 3}', "True as `id`"),
        (r'{"id": "x", "problem": "\ud800", "answer": "3"}', "half of a surrogate pair"),
        ('{"id": "x", "problem": "p", "answer": "3", "level": "5"}', "`level` is '5'; expected int"),
        ('{"id": "x", "problem": "p", "answer": "3", "level": true}', "`level` is True; expected int"),
        ('{"id": "x", "problem": "p", "answer": "3", "unit": "cm"}', "unknown field 'unit'"),
        ('{"id": "a", "problem": "p", "answer": "3"}', "id 'a' is also at line 1"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"set\.jsonl:2: ") as caught:
        JsonlSource(path)
    assert message in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"id": "x", "problem": "\xff", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"set.jsonl:1: not UTF-8"):
        JsonlSource(path)


def test_a_byte_order_mark_and_numbers_are_read(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 7, "problem": "p", "answer": 0.5}\r\n{"id": 8, "problem": "p", "answer": -3}')
    assert [(problem.id, problem.answer) for problem in iterate(JsonlSource(path))] == [("7", "0.5"), ("8", "-3")]


def test_a_problem_belongs_to_the_set_it_was_read_from_unless_it_says(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "set": "minerva"}]
    assert [problem.set for problem in iterate(JsonlSource(write(tmp_path / "a.jsonl", rows)))] == ["a", "minerva"]
    problem = Problem(id="a", problem="p", answer="1")
    assert ListSource([problem], name="list")[0].set == "list"
    assert ListSource([problem]).digest == ListSource([dataclasses.replace(problem, set="minerva")]).digest


def test_a_file_with_other_fields(tmp_path):
    rows = [{"number": 1, "question": "1 + 1?", "solution": "2", "rating": 5, "answer": "unused"}]
    path = write(tmp_path / "set.jsonl", rows)
    data = JsonlData(path=str(path), fields=("id=number", "problem=question", "answer=solution"))
    assert data.open()[0] == Problem(id="1", problem="1 + 1?", answer="2")
    assert pickle.loads(pickle.dumps(data.open()))[0].answer == "2"
    others = dataclasses.replace(data, fields=("id=number", "problem=question", "answer=rating"))
    assert data.open().digest != others.open().digest
    for fields, message in (
        (("answer",), "expected FIELD=NAME"),
        (("anser=solution",), "'anser' is not a field of a problem; expected id, problem"),
        (("answer=none",), r"set\.jsonl:1: no `id`.*--data.fields id=NAME"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(data, fields=fields).open()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,problem,answer\n", r"a\.csv: a CSV file; expected JSON lines"),
        ("a.parquet", b"PAR1", r"a\.parquet: a Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "a compressed file"),
        ("a.jsonl", b"\x1f\x8b\x08", r"a\.jsonl:1: this is compressed with gzip"),
        ("b.jsonl", b"PAR1\x15", r"b\.jsonl:1: this is a Parquet file"),
    ],
)
def test_other_formats_are_refused_by_what_they_are(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        JsonlSource(tmp_path / name)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        JsonlSource(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="no problems"):
        JsonlSource(tmp_path / "empty.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="no problems"):
        JsonlSource(tmp_path / "blank.jsonl")


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_is_an_error(tmp_path, index):
    with pytest.raises(IndexError, match="expected 0 to 2"):
        JsonlSource(write(tmp_path / "set.jsonl", ROWS))[index]


def test_a_source_travels_to_another_process_unless_the_file_changed(tmp_path):
    path = write(tmp_path / "set.jsonl", ROWS)
    sent = pickle.dumps(JsonlSource(path))
    assert pickle.loads(sent)[2].id == "c"
    write(path, ROWS[:2])
    with pytest.raises(ValueError, match="changed since"):
        pickle.loads(sent)


def test_the_digest_of_a_list_sees_every_field():
    problem = Problem(id="a", problem="p", answer="1", level=1, subject="s", source="x", extra={"unit": "cm"})
    digests = {ListSource([problem]).digest, digest_problems([problem, problem])}
    for change in (
        {"id": "b"}, {"problem": "q"}, {"answer": "2"}, {"level": 2}, {"subject": "t"}, {"source": "y"}, {"extra": {}}
    ):  # fmt: skip
        digests.add(ListSource([dataclasses.replace(problem, **change)]).digest)
    assert len(digests) == 9


def test_every_real_file_loads(real_data):
    rows = {path.stem: len(JsonlSource(path)) for path in sorted(real_data.glob("eval/*.jsonl"))}
    assert rows == {
        "aime24": 30, "aime25": 30, "amc23": 40, "gsm8k": 1319, "math500": 500, "minerva": 272, "olympiadbench": 675
    }  # fmt: skip
