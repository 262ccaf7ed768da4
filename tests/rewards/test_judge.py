"""A judge: what it is asked, how its answer is read, what is kept; against `sspo serve`, and one that is unwell."""

import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

import pytest

from sspo_jax.checker import Verifier
from sspo_jax.rewards import Judge, RewardConfig, RewardError, Runner
from tests.serving.conftest import speaking, speaking_model
from tests.serving.server_process import ServerProcess

__all__ = ["speaking", "speaking_model"]

ROW = {"problem": "What is {gold}?", "response": "It is {problem}: 4.", "gold": "4"}


class Unwell(http.server.BaseHTTPRequestHandler):
    """Busy at first, then a judge that says how long the prompt is."""

    asked: list[dict] = []  # noqa: RUF012 (of all instances)
    failures = [503, 429]  # noqa: RUF012
    keys: list[str | None] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers["Authorization"])
        if self.failures:
            self.send_response(self.failures.pop())
            self.send_header("Retry-After", "0.1")
            self.end_headers()
            return
        self.asked.append(body)
        text = body["messages"][0]["content"]
        says = "no idea" if "puzzle" in text else "At first score: 1. But then:\nScore: 7.5"
        self.answer({"choices": [{"message": {"content": says}}], "usage": {"total_tokens": 11}})

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "wise"}]})

    def answer(self, record: dict) -> None:
        data = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def unwell() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unwell)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def judged(judge: Judge, *rows: dict) -> list:
    with Verifier(workers=1) as verifier:
        runner = Runner(judge, verifier, 2 << 30)
        try:
            return [runner.outcomes(call)[0] for call in [runner.submit(row) for row in rows]]
        finally:
            runner.close()


def test_a_busy_server_is_asked_again_and_answers_are_kept(
    unwell: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSPO_JUDGE_KEY", "sesame")
    judge = Judge(url=unwell, template="{problem}|{gold}|{response}", cache=str(tmp_path))
    assert judged(judge, ROW) == [({"judge": 0.75, "judge_tokens": 11.0}, False)]
    assert Unwell.failures == []
    assert set(Unwell.keys) == {"Bearer sesame"}
    [asked] = Unwell.asked
    assert asked["model"] == "wise"
    assert asked["messages"][0]["content"] == "What is {gold}?|4|It is {problem}: 4."  # nothing is filled in twice
    again, other = judged(judge, ROW, {**ROW, "response": "5"})
    assert again == ({"judge": 0.75, "judge_tokens": 0.0}, False)
    assert other.terms["judge_tokens"] == 11
    assert len(Unwell.asked) == 2
    assert "sesame" not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    with pytest.raises(RewardError, match="the judge's answer holds no score"):
        judged(judge, {**ROW, "problem": "a puzzle"})


def test_a_server_that_is_away_fails_in_the_end():
    with pytest.raises(RewardError, match=r"does not answer: .*refused"):
        judged(Judge(url="http://127.0.0.1:9/v1", retries=1, cache=None, model="x"), ROW)


def test_against_our_own_server(speaking: ServerProcess, tmp_path: pathlib.Path):
    """A model that says nothing of sense: its answer is asked for, read and paid for all the same."""
    judge = Judge(url=f"{speaking.url}/v1", template="{response}", pattern=r"(?s)()", max_tokens=8, cache=str(tmp_path))
    with pytest.raises(RewardError, match="could not convert string to float"):
        judged(judge, {**ROW, "response": "2"})
    [file] = tmp_path.rglob("*.json")
    kept = json.loads(file.read_text())
    assert kept["tokens"] > 8
    file.write_text(json.dumps({**kept, "text": "Score: 4"}))
    assert judged(Judge(**{**vars(judge), "pattern": r"Score: (\d)", "highest": 8}), {**ROW, "response": "2"}) == [
        ({"judge": 0.5, "judge_tokens": 0.0}, False)
    ]
    with pytest.raises(RewardError, match="answers 400"):
        judged(Judge(**{**vars(judge), "max_tokens": 100_000}), ROW)


def test_settings_that_cannot_work_are_refused():
    for settings, message in [
        ({"template": "Good?"}, "does not hold {response}"),
        ({"pattern": "score"}, "a regular expression with a group"),
        ({"lowest": 3, "highest": 3}, "expected a smaller one first"),
        ({"url": "localhost"}, "expected one like http"),
    ]:
        with pytest.raises(ValueError, match=message):
            Judge(**settings)
    config = RewardConfig(user=(Judge(weight=2.0),))
    assert config.user[0].weights == {"judge_tokens": 0.0}
