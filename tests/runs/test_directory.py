"""Whose a run directory is: what may change at a restart, what is refused by name, and what is never deleted."""

import copy
import json
import math
import pathlib
from typing import Any

import pytest

from sspo_jax.commands.main import main
from sspo_jax.files import DiskFullError, check_writable_name, is_disk_full
from sspo_jax.models.configs import QwenConfig
from sspo_jax.runs.base_weights import base_directory
from sspo_jax.runs.directory import RunDirectory
from tests.trainer.conftest import SMALL, small

MODEL = QwenConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8
)
PROVENANCE = {"data": {"set": "1a"}, "tokenizer": "2b", "model": {"/models/base": "3c"}}


def opened(path: pathlib.Path, *, provenance: dict[str, Any] = PROVENANCE, **changes: Any) -> RunDirectory:
    """A start of the small experiment in a directory, with dotted fields (`__`) changed."""
    resolved = small().resolved()
    for name, value in changes.items():
        *sections, field = name.split("__")
        part = resolved
        for section in sections:
            part = part[section]
        assert field in part
        part[field] = value
    directory = RunDirectory(
        str(path), resolved, experiment="small", model=MODEL, provenance=provenance, completed=small().completed
    )
    directory.close()
    return directory


def record(path: pathlib.Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def begun(path: pathlib.Path, how: str = "metrics") -> pathlib.Path:
    """A directory in which something has come out."""
    opened(path)
    if how == "metrics":
        (path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 3}\n')
    elif how == "checkpoint":
        (path / "checkpoints" / "3").mkdir(parents=True)
    elif how == "damaged":
        (path / "checkpoints" / "damaged-3").mkdir(parents=True)
    else:
        (path / "evaluations").mkdir()
        (path / "evaluations" / "step_000000.json").write_text("{}")
    return path


def test_options_that_did_not_exist_are_at_their_defaults(tmp_path: pathlib.Path):
    begun(tmp_path)
    before = record(tmp_path)
    config = before["config"]
    removed = [config["optimizer"].pop("decay"), config["rollout"].pop("top_p"), config.pop("seed")]
    assert removed == ["none", 1.0, 0]
    (tmp_path / "config.json").write_text(json.dumps(before))
    opened(tmp_path)
    assert record(tmp_path) == before  # nothing changed, so nothing is recorded
    with pytest.raises(ValueError, match=r"optimizer\.decay: 'none' there, 'linear' here"):
        opened(tmp_path, optimizer__decay="linear")


def test_a_start_without_results_may_be_taken_over(tmp_path: pathlib.Path):
    opened(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    for name in ("checkpoints", "base", "rollouts"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "model.safetensors").write_text("of the first start")
    (tmp_path / "rollouts" / "step_000001.jsonl").write_text("{}\n")
    opened(tmp_path, optimizer__learning_rate=0.5)
    assert record(tmp_path)["config"]["optimizer"]["learning_rate"] == 0.5
    assert (tmp_path / "earlier-1" / "base" / "model.safetensors").read_text() == "of the first start"
    assert (tmp_path / "earlier-1" / "rollouts" / "step_000001.jsonl").exists()
    assert not (tmp_path / "base").exists()


def test_a_foreign_directory_is_left_as_it_was(tmp_path: pathlib.Path):
    (tmp_path / "mine.txt").write_text("of the user")
    with pytest.raises(ValueError, match=r"is not empty \(mine\.txt\) and holds no config\.json of a run"):
        opened(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]  # not even a lock


def test_a_kill_while_the_record_is_written_refuses_nothing(tmp_path: pathlib.Path):
    (tmp_path / "config.json.part").write_text('{"conf')
    (tmp_path / "lock").touch()
    opened(tmp_path)
    assert record(tmp_path)["experiment"] == "small"


@pytest.mark.parametrize("how", ["metrics", "checkpoint", "damaged", "evaluation"])
def test_with_results_another_configuration_is_refused(tmp_path: pathlib.Path, how: str):
    before = record(begun(tmp_path, how))
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.001 there, 0\.5 here"):
        opened(tmp_path, optimizer__learning_rate=0.5)
    with pytest.raises(ValueError, match=r"evaluation\.every: 0 there, 2 here"):
        opened(tmp_path, evaluation__every=2)
    assert record(tmp_path) == before


OF_THE_MACHINE = {
    "update__micro_rows": 2,
    "rollout__slots": 3,
    "model__remat": "full",
    "model__attention": "xla",
    "reward__workers": 2,
    "reward__timeout_seconds": 9.0,
    "reward__memory_limit_gib": 3.0,
    "rollout__server": {"url": "http://localhost:8000"},
    "log__quiet": True,
    "mesh__data": 2,
    "checkpoint__every": 5,
    "distributed__heartbeat_seconds": 60,
    "steps": 9,
}


def test_what_is_of_the_machine_may_change_and_steps_may_grow(tmp_path: pathlib.Path):
    begun(tmp_path)
    opened(tmp_path, **OF_THE_MACHINE)
    opened(tmp_path, **{**OF_THE_MACHINE, "steps": 3})
    now = record(tmp_path)
    assert now["config"]["steps"] == 3
    assert [entry["changed"].get("steps") for entry in now["history"]] == [[4, 9], [9, 3]]
    assert now["history"][0]["changed"]["update.micro_rows"] == [8, 2]
    assert set(now["history"][0]) >= {"until", "commit", "devices", "command"}
    with pytest.raises(ValueError, match=r"steps: 3 there, 2 here \(step 3 is done: expected at least 3\)"):
        opened(tmp_path, **{**OF_THE_MACHINE, "steps": 2})
    opened(tmp_path, **{**OF_THE_MACHINE, "steps": 3})
    assert record(tmp_path) == now


def test_other_weights_are_refused_by_name(tmp_path: pathlib.Path):
    begun(tmp_path)
    other = {**PROVENANCE, "model": {"/models/base": "4d"}}
    with pytest.raises(ValueError, match=r"model\./models/base: '3c' there, '4d' here \(digest of config and weights"):
        opened(tmp_path, provenance=other)


def test_records_of_earlier_versions(tmp_path: pathlib.Path):
    """One without a digest of the model is taken over, and checked from then on."""
    old = copy.deepcopy(record(begun(tmp_path)))
    del old["provenance"]["model"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    opened(tmp_path)
    assert record(tmp_path)["provenance"] == PROVENANCE
    assert record(tmp_path)["history"][0]["changed"] == {"model": [None, {"/models/base": "3c"}]}
    old["provenance"]["base"] = {"/models/base": "4d"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"model\./models/base: '4d' there, '3c' here"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "small"}))
    with pytest.raises(ValueError, match=r"config\.json: no `config`.*Restore it from a copy"):
        opened(tmp_path)


def test_the_base_of_earlier_lora_runs_is_found(tmp_path: pathlib.Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in ("base", "model"):
        with pytest.raises(ValueError, match="is not the one that"):
            base_directory(tmp_path, {"provenance": {name: {str(tmp_path): "3c"}}})
    assert base_directory(tmp_path, {"provenance": {}}) == tmp_path / "base"


def test_a_new_beginning_keeps_what_was_there(tmp_path: pathlib.Path):
    directory = opened(begun(tmp_path, "evaluation"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "base").mkdir()
    directory.begin_anew()
    directory.begin_anew()  # nothing is left to move
    assert (tmp_path / "earlier-1" / "metrics.jsonl").read_text() == '{"step": 0}\n'
    assert (tmp_path / "earlier-1" / "evaluations" / "step_000000.json").exists()
    assert (tmp_path / "base").exists()  # what a LoRA run starts from
    assert not (tmp_path / "earlier-2").exists()


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run"])
def test_object_storage_is_refused_before_anything_is_made(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
):
    monkeypatch.chdir(tmp_path)
    commands = (
        ("train", str(SMALL), "--run-dir", url),
        ("train", str(SMALL), "--supervise", "--run-dir", url),
        ("train", str(SMALL), "--rollout.server.export-directory", url),
        ("export", "run", url),
        ("evaluate", "--model", "run", "--out", url),
        ("verify", "--file", "x.jsonl", "--output", url),
        ("data", "overlap", "x.jsonl", "y", "--write", url),
    )
    for command in commands:
        assert main(command) == 1, command
        assert f"is {url}, a URL; expected a path on a file system" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="SSPO_CACHE_DIR"):
        check_writable_name("SSPO_CACHE_DIR", url)


def test_a_full_disk_is_known_by_its_number_or_its_text():
    assert is_disk_full(OSError(28, "No space left on device"))
    assert is_disk_full(DiskFullError("whatever it says"))
    assert is_disk_full(ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device"))
    behind = RuntimeError("the save failed")
    behind.__cause__ = OSError(122, "Disk quota exceeded")
    assert is_disk_full(behind)
    assert not is_disk_full(OSError(5, "Input/output error"))


def test_what_is_done_where_a_reward_fails_may_change_and_the_reward_may_not(tmp_path: pathlib.Path):
    mine = {"function": "my_reward:brevity", "weight": 1.0, "on_failure": "raise"}
    opened(tmp_path, reward__user=[mine])
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    opened(tmp_path, reward__user=[{**mine, "on_failure": "exclude", "concurrency": 32, "timeout_seconds": 60.0}])
    assert record(tmp_path)["config"]["reward"]["user"][0]["on_failure"] == "exclude"
    for other in ([{**mine, "function": "my_reward:other"}], [{**mine, "weight": 2.0}], []):
        with pytest.raises(ValueError, match=r"reward\.user: "):
            opened(tmp_path, reward__user=other)


def test_the_record_is_json_whatever_the_numbers_are(tmp_path: pathlib.Path):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    opened(tmp_path, loss__clip_low=math.inf)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    json.loads((tmp_path / "config.json").read_text(encoding="utf-8"), parse_constant=refuse)
    opened(tmp_path, loss__clip_low=math.inf)  # the same run
    with pytest.raises(ValueError, match=r"loss\.clip_low: inf there, 0\.2 here"):
        opened(tmp_path, loss__clip_low=0.2)
