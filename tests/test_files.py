"""JSON and JSON lines: what is written is read again, and what cannot be read says where."""

import ast
import json
import math
import pathlib

import pytest

import sspo_jax
from sspo_jax.files import (
    append_json_lines,
    json_lines,
    parse_json,
    read_json,
    read_json_lines,
    replace_text,
    step_files,
    to_json,
    write_json,
    write_json_lines,
)

_ODD = "one\u2028two\u2029three\u0085four\x0bfive\x0csix\x1cseven\r\neight"


def test_lines_end_at_newlines_only(tmp_path: pathlib.Path):
    rows = [{"response": _ODD}, {"response": "\n"}, ["\u2028"]]
    write_json_lines(tmp_path / "a.jsonl", rows)
    append_json_lines(tmp_path / "a.jsonl", rows)
    found = list(read_json_lines(tmp_path / "a.jsonl"))
    assert [value for _, value in found] == rows + rows
    assert [where for where, _ in found] == [f"{tmp_path / 'a.jsonl'}:{number}" for number in range(1, 7)]


def test_a_byte_order_mark_blank_lines_and_a_missing_newline_are_fine():
    lines = [b'\xef\xbb\xbf{"a": 1}\r\n', b" \n", b'{"b": 2}']
    assert list(json_lines(lines, "f")) == [("f:1", {"a": 1}), ("f:3", {"b": 2})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"^f:1: not JSON \(.*, column 2\)$"),
        (b"id,problem,answer", "^f:1: not JSON"),
        (b'"\xff"', r"^f:1: not UTF-8 \(invalid start byte at byte 1\)"),
        (b'"\xed\xa0\x80"', "^f:1: not UTF-8"),
        (rb'{"a": ["\ud800"]}', r"^f:1: \\ud800 is half of a surrogate pair"),
        (b"[" * 100_000 + b"]" * 100_000, "^f:1: JSON that is nested too deeply"),
        (b"9" * 5000, "^f:1: not usable JSON"),
        (b"\x1f\x8b\x08\x00", "^f:1: this is compressed with gzip: decompress it first"),
        (b"PAR1\x15\x04", "^f:1: this is a Parquet file"),
        (b"\xff\xfe{\x00", "^f:1: this is UTF-16"),
    ],
)
def test_what_cannot_be_read_names_its_file_and_line(line: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        list(json_lines([line + b"\n"], "f", may_be_cut=True))


def test_a_surrogate_pair_is_a_character():
    assert parse_json(rb'"\ud83d\ude00"', "f") == "\U0001f600"


def test_a_line_cut_by_a_kill_is_left_out_where_that_is_wanted():
    lines = [b'{"a": 1}\n', b'{"b": "\xe2\x80']
    assert [value for _, value in json_lines(lines, "f", may_be_cut=True)] == [{"a": 1}]
    with pytest.raises(ValueError, match="f:2"):
        list(json_lines(lines, "f"))
    with pytest.raises(ValueError, match="f:1"):  # in the middle: damage, not a kill
        list(json_lines([b'{"a"\n', b'{"b": 2}\n'], "f", may_be_cut=True))


def test_numbers_that_json_lacks_come_back(tmp_path: pathlib.Path):
    record = {"a": math.inf, "b": [-math.inf, (1.5, math.nan)], "c": {"d": 1, "e": None}}
    write_json(tmp_path / "config.json", record)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["a"] == "Infinity"
    again = read_json(tmp_path / "config.json")
    assert again["a"] == math.inf
    assert again["b"][0] == -math.inf
    assert math.isnan(again["b"][1][1])
    assert again["c"] == record["c"]
    (tmp_path / "old.json").write_text('{"a": Infinity}')
    assert read_json(tmp_path / "old.json") == {"a": math.inf}


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 40])
def test_a_damaged_file_says_what_to_do(tmp_path: pathlib.Path, content: bytes):
    (tmp_path / "best.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"best\.json: .*\. Remove it$"):
        read_json(tmp_path / "best.json", advice="Remove it")


def test_characters_that_cannot_be_written_do_not_stop_the_writer(tmp_path: pathlib.Path):
    assert to_json("a\ud800b") == '"a\ufffdb"'
    replace_text(tmp_path / "report.md", "a\ud800b\r\n")
    assert (tmp_path / "report.md").read_bytes() == "a\ufffdb\r\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]


def test_step_files_are_those_of_exactly_that_name(tmp_path: pathlib.Path):
    names = ["step_000002.json", "step_000010.json", "step_1000000.json"]
    others = ["step_000002.json.part", "step_000003.jsonl", "step_7.json", "step_x.json", "mystep_000004.json"]
    for name in names + others:
        (tmp_path / name).touch()
    assert step_files(tmp_path, ".json") == {
        number: tmp_path / name for number, name in zip((2, 10, 1_000_000), names, strict=True)
    }
    assert step_files(tmp_path / "absent", ".json") == {}


def test_json_lines_are_parsed_here_alone():
    """Who parses one value after the other has another idea of where a line ends, and other errors."""
    loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    package, found = pathlib.Path(sspo_jax.__file__).parent, set()
    for file in sorted(package.rglob("*.py")):
        for loop in ast.walk(ast.parse(file.read_bytes())):
            for node in ast.walk(loop) if isinstance(loop, loops) else ():
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load"):
                    found.add(str(file.relative_to(package)))
    assert found == {"distributed/processes.py"}  # what other processes send
