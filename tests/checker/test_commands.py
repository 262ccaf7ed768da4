"""`sspo verify`, `sspo data audit` and the ledger."""

import json
import pathlib

import pytest

from sspo_jax.checker import STATUSES, Verdict, ledger
from sspo_jax.commands.data import AuditConfig, audit_command
from sspo_jax.commands.verify import VerifyConfig, main, verify_command
from sspo_jax.data.audit import audit, reformattings


def test_one_response_is_explained(capsys: pytest.CaptureFixture[str]):
    assert verify_command(VerifyConfig(response=r"So $x=\boxed{2\sqrt{2}}$.", gold=r"\sqrt{8}")) == 0
    output = capsys.readouterr().out
    for part in ("extracted", "last box", "read as", "root", "verdict    correct", "equal in value"):
        assert part in output
    assert verify_command(VerifyConfig(response=r"\boxed{3}", gold="4")) == 1
    assert "different numbers" in capsys.readouterr().out


def test_a_file_is_scored(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    file, output = tmp_path / "responses.jsonl", tmp_path / "verdicts.jsonl"
    rows = [
        {"response": r"\boxed{1}", "gold": "1"},
        {"response": "", "answer": "1"},
        {"response": "#### 2", "gold": "1"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert main([str(file), "--output", str(output), "--workers", "1"]) == 0
    statuses = [json.loads(line)["status"] for line in output.read_text().splitlines()]
    assert statuses == ["correct", "unparsed", "wrong"]
    table = capsys.readouterr().out
    assert all(status in table for status in STATUSES)
    assert "33.33 %" in table


def test_a_bad_line_is_named(tmp_path: pathlib.Path):
    file = tmp_path / "responses.jsonl"
    file.write_text('{"text": "1", "gold": "1"}\n')
    with pytest.raises(ValueError, match=r"responses.jsonl:1: .*'response'.*--response-field"):
        verify_command(VerifyConfig(file=str(file)))
    file.write_text("{\n")
    with pytest.raises(ValueError, match="not JSON"):
        verify_command(VerifyConfig(file=str(file)))
    file.write_bytes(b'{"response": "1", "gold": "1"}\n\xff\n')
    with pytest.raises(ValueError, match=r"responses\.jsonl:2: not UTF-8"):
        verify_command(VerifyConfig(file=str(file)))
    file.write_text('{"response": 3, "gold": "1"}\n')
    with pytest.raises(ValueError, match="'response': 'int'"):
        verify_command(VerifyConfig(file=str(file)))
    with pytest.raises(ValueError, match="--response TEXT and --gold TEXT"):
        verify_command(VerifyConfig(response="1"))
    with pytest.raises(ValueError, match="one of the two"):
        verify_command(VerifyConfig(file=str(file), gold="1"))


def test_the_ledger_keeps_statuses_apart():
    verdicts = [Verdict(status, None, "1", "", 0.5) for status in (*STATUSES, "correct")]
    assert ledger(verdicts) == {
        "verify/correct_fraction": 2 / 6,
        "verify/wrong_fraction": 1 / 6,
        "verify/unparsed_fraction": 1 / 6,
        "verify/timeout_fraction": 1 / 6,
        "verify/error_fraction": 1 / 6,
        "verify/seconds": 3.0,
    }
    assert ledger([])["verify/correct_fraction"] == 0.0


def row(name: str, answer: str, **more: str) -> dict[str, str]:
    return {"id": name, "problem": f"problem {name}", "answer": answer, **more}


def test_the_audit_finds_what_is_wrong_with_golds():
    rows = [
        row("fine", r"\frac{1}{2}", solution=r"It is $\boxed{\frac12}$."),
        row("unreadable", r"\frac{1}{2"),
        row("readings", "100,200"),
        row("alternatives", r"1 \text{ OR } 2"),
        row("prose", "all positive integers that are not prime"),
        row("repeated", "-2,-2"),
        row("solution", "9", solution=r"$\boxed{1}$ and $\boxed{9}$"),
        row("pole", r"\frac{1}{0}"),
        {**row("one", "1"), "problem": "twice"},
        {**row("two", "2"), "problem": "twice "},
        {**row("three", "1/2"), "problem": "thrice"},
        {**row("four", "0.5"), "problem": "thrice"},
    ]
    found = {(finding.id, finding.kind) for finding in audit(rows)}
    wanted = {
        ("unreadable", "unreadable"),
        ("readings", "two readings"),
        ("alternatives", "alternatives"),
        ("prose", "prose"),
        ("repeated", "repeated"),
        ("solution", "solution"),
        ("pole", "no value"),
        ("one", "contradiction"),
        ("two", "contradiction"),
    }
    assert wanted <= found
    assert not {name for name, _ in found} & {"fine", "three", "four"}


def test_the_audit_command_prints_and_writes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    file, output = tmp_path / "problems.jsonl", tmp_path / "findings.jsonl"
    file.write_text(json.dumps(row("a", "1")) + "\n" + json.dumps(row("b", r"\frac{1")) + "\n")
    assert audit_command(AuditConfig(file=str(file), output=str(output))) == 1
    assert "unreadable" in capsys.readouterr().out
    assert "unreadable" in {json.loads(line)["kind"] for line in output.read_text().splitlines()}
    file.write_text(json.dumps(row("a", "1")) + "\n")
    assert audit_command(AuditConfig(file=str(file))) == 0


def test_reformattings_change_the_text_only():
    assert r"\dfrac{1}{2}" in reformattings(r"\frac{1}{2}")
    assert "x + 1" in reformattings("x+1")
    assert all("e - 7" not in form for form in reformattings("1e-7"))
