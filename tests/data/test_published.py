"""`sspo data get`: from a small server that speaks as the Hub does, and from a local copy; never half a file."""

import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from sspo_jax.commands.main import main
from sspo_jax.data.problems import JsonlSource
from sspo_jax.data.published import _FILES, EVALUATION, SETS, HubUnreachableError, download
from sspo_jax.evaluation.presets import PAPER_SETS
from sspo_jax.files import read_json
from sspo_jax.runs.next_commands import next_commands

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = {
    "aime24": ("data/test-00000.parquet", {"problem": "a?", "solution": "\\boxed{025}"}, "25"),
    "amc23": ("test.jsonl", {"question": "a?", "answer": 27.0}, "27"),
    "math500": (
        "test.jsonl",
        {"problem": "a?", "answer": "x", "level": 5, "subject": "Algebra"},
        "x",
    ),
    "minerva": ("test.jsonl", {"question": "a?", "answer": "4.5e33 "}, "4.5e33"),
    "olympiadbench": ("test.parquet", {"question": "a?", "final_answer": ["$2^{9}$."], "unit": None}, "2^{9}"),
    "gsm8k-train": ("main/train-0.parquet", {"question": "a?", "answer": "so it is\n#### 1,000"}, "1000"),
    "gsm8k-test": ("main/test-0.parquet", {"question": "a?", "answer": "so it is\n#### 7"}, "7"),
    "math-lvl3to5": (
        "simplelr_qwen_level3to5/train.parquet",
        {"extra_info": {"question": "a?", "answer": "3"}, "level": "Level 4"},
        "3",
    ),
    "dapo-17k": ("all/train-0.parquet", {"prompt": "求 a", "solution": "3"}, "3"),
}


class Hub(http.server.ThreadingHTTPServer):
    """Files by (repository, name), as the Hub gives them out; the digest may be a wrong one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.damaged = False
        self.break_after: int | None = None
        self.ranges: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/"):
            return self.information(path.removeprefix("/api/datasets/"))
        repository, _, name = path.removeprefix("/datasets/").partition(f"/resolve/{COMMIT}/")
        content = self.server.files.get((repository, name))
        if content is None:
            return self.send_error(404)
        start = 0
        if with_body and (asked := self.headers.get("Range")) and asked != "bytes=0-":
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            end, self.server.break_after = self.server.break_after, None
            self.wfile.write(content[start:end])
        return None

    def information(self, repository: str) -> None:
        siblings = []
        for (own, name), content in self.server.files.items():
            digest = "0" * 64 if self.server.damaged else hashlib.sha256(content).hexdigest()
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 1}
            if own == repository:
                siblings.append({"rfilename": name, "size": len(content), "blobId": "1", "lfs": lfs})
        if not siblings:
            return self.send_error(404)
        body = {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with three rows in every file, one without an answer; and a cache of its client's own."""
    server = Hub()
    for name, (file, row, _) in ROWS.items():
        rows = [row, row, {**row, **({"solution": ""} if name == "dapo-17k" else {})}]
        path = tmp_path / "upstream" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".jsonl"):
            path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        server.files[_FILES[name].repository, file] = path.read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.delenv("SSPO_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def test_the_evaluation_sets_are_those_of_the_paper():
    assert EVALUATION == PAPER_SETS
    assert len(SETS["eval"]) == 5


@pytest.mark.parametrize("name", ROWS)
def test_every_set_becomes_problems(hub: Hub, tmp_path: pathlib.Path, name: str):
    file, (_, _, answer) = _FILES[name], ROWS[name]
    entry, without = download(file, tmp_path / "data", any_rows=True)
    source = JsonlSource(str(tmp_path / "data" / file.path))
    assert [problem.answer for problem in (source[0], source[1])] == [answer] * 2
    assert (entry.rows, without) == ((2, 1) if name == "dapo-17k" else (3, 0))
    assert entry.licence == "mit"
    assert COMMIT in entry.source
    if name == "math-lvl3to5":
        assert (source[0].problem, source[0].level) == ("a?", 4)


def test_get_says_licence_and_what_comes_next_and_fetches_nothing_twice(hub: Hub, tmp_path, capsys):
    assert main(["data", "get", "aime24", "math500", "--any-rows"]) == 0
    said = capsys.readouterr().out
    assert "data/eval/aime24.jsonl: 3 problems, sha256" in said
    assert "licence, as stated upstream: mit" in said
    assert said.splitlines()[-1] == next_commands("evaluate --model MODEL --data aime24,math500")
    hub.shutdown()
    assert main(["data", "get", "aime24", "math500"]) == 0
    assert capsys.readouterr().out.count("there already, and intact") == 2
    (tmp_path / "data/eval/aime24.jsonl").write_text("{}\n")
    assert main(["data", "get", "aime24"]) == 1
    assert "has another digest than manifest.json says: remove it" in capsys.readouterr().err


def test_another_number_of_rows_is_refused(hub: Hub, tmp_path, capsys):
    assert main(["data", "get", "gsm8k"]) == 1
    assert f"openai/gsm8k has 3 rows at {COMMIT[:12]}, expected 7473" in capsys.readouterr().err
    assert not list(tmp_path.glob("data/**/*.jsonl"))


def test_a_file_with_another_digest_than_the_hub_states_is_refused(hub: Hub, tmp_path, capsys):
    hub.damaged = True
    assert main(["data", "get", "math500", "--any-rows"]) == 1
    assert "not the file whose digest the Hub states" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_connection_that_breaks_goes_on_where_it_was(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 8)
    hub.break_after = 40
    download(_FILES["math500"], tmp_path / "data", any_rows=True)
    assert [each.split("-")[0] for each in hub.ranges] == ["bytes=40"]
    assert len(JsonlSource(str(tmp_path / "data/eval/math500.jsonl"))) == 3


def test_offline_says_what_to_do_or_takes_the_local_copy(hub: Hub, tmp_path, monkeypatch, capsys):
    download(_FILES["amc23"], tmp_path / "copy", any_rows=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError):
        download(_FILES["amc23"], tmp_path / "data")
    assert main(["data", "get", "amc23"]) == 1
    error = capsys.readouterr().err
    assert "cannot be reached" in error
    assert "--from or in $SSPO_DATA" in error
    monkeypatch.setenv("SSPO_DATA", str(tmp_path / "copy"))
    assert main(["data", "get", "amc23"]) == 0
    assert "taken from $SSPO_DATA" in capsys.readouterr().out
    assert (tmp_path / "data/eval/amc23.jsonl").read_bytes() == (tmp_path / "copy/eval/amc23.jsonl").read_bytes()
    assert read_json(tmp_path / "data/manifest.json") == read_json(tmp_path / "copy/manifest.json")


def test_a_local_copy_is_checked(hub: Hub, tmp_path, capsys):
    download(_FILES["amc23"], tmp_path / "copy", any_rows=True)
    copy = ["data", "get", "amc23", "--from", str(tmp_path / "copy"), "--out", str(tmp_path / "out")]
    assert main(copy) == 0
    assert main(["data", "get", "minerva", *copy[3:]]) == 1
    assert "no eval/minerva.jsonl in" in capsys.readouterr().err
    with open(tmp_path / "copy/eval/amc23.jsonl", "a") as stream:
        stream.write("\n")
    assert main([*copy[:-1], str(tmp_path / "new")]) == 1
    assert "manifest.json says" in capsys.readouterr().err
    (tmp_path / "copy/manifest.json").unlink()
    assert main([*copy[:-1], str(tmp_path / "new")]) == 1
    assert "nothing says what it must be" in capsys.readouterr().err
    assert not list(tmp_path.glob("new/**/*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["gsm"], "no set 'gsm'; expected one or more of"), ([], "no set is named; expected")]
)
def test_names_that_are_none_list_the_known(capsys, arguments, expected):
    assert main(["data", "get", *arguments]) == 1
    assert expected in capsys.readouterr().err
