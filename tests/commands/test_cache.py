"""`sspo cache`: what is kept, and that nothing else is ever deleted."""

import pathlib

import pytest

from sspo_jax.commands.main import main


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """A cache with something of every kind, in a directory where a user keeps other things."""
    monkeypatch.setenv("SSPO_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    for name, size in (
        ("compiled/a-cache", 2**20),
        ("warm_start/arithmetic-1/model.safetensors", 3 * 2**20),
        ("warm_start/arithmetic-1/config.json", 0),
        ("boundaries-1.npz", 2**19),
        ("thesis.tex", 10),
        ("runs/metrics.jsonl", 10),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    return tmp_path


def names(path: pathlib.Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_it_lists_kinds_with_sizes_and_deletes_nothing(cache: pathlib.Path, capsys):
    before = names(cache)
    assert main(["cache"]) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert {kind: line.split("│")[3].strip() for kind, line in rows.items() if kind} == {
        "compiled": "1.0 MiB",
        "warm_start": "3.0 MiB",
        "boundaries": "0.5 MiB",
    }
    assert names(cache) == before


@pytest.mark.parametrize(
    ("kind", "freed", "left"),
    [
        ("compiled", "1.0 MiB", 5),
        ("warm_start", "3.0 MiB", 4),
        ("boundaries", "0.5 MiB", 5),
        ("all", "4.5 MiB", 2),
    ],
)
def test_it_deletes_one_kind_or_all_and_nothing_of_the_users(cache: pathlib.Path, capsys, kind, freed, left):
    assert main(["cache", "--empty", kind]) == 0
    assert f"{freed} freed" in capsys.readouterr().out
    assert len(names(cache)) == left
    assert {"thesis.tex", "runs/metrics.jsonl"} <= names(cache)


def test_an_absent_cache_is_empty(tmp_path: pathlib.Path, monkeypatch, capsys):
    monkeypatch.setenv("SSPO_CACHE_DIR", str(tmp_path / "none"))
    assert main(["cache"]) == main(["cache", "--empty", "all"]) == 0
    assert not (tmp_path / "none").exists()


def test_a_folder_behind_a_link_is_left_alone(cache: pathlib.Path):
    target = cache / "elsewhere"
    target.mkdir()
    (target / "weights").write_bytes(b"x")
    (cache / "warm_start" / "linked").symlink_to(target)
    assert main(["cache", "--empty", "warm_start"]) == 0
    assert (target / "weights").exists()
    assert not (cache / "warm_start" / "linked").exists()


def test_an_unknown_kind_is_refused(cache: pathlib.Path):
    before = names(cache)
    with pytest.raises(SystemExit):
        main(["cache", "--empty", "everything"])
    assert names(cache) == before
