"""tensorflow-datasets and other tables as sources; the builder gives back every field."""

import json
import sys

import pytest

from sspo_jax.data.catalogue import hub_source, last_boxed, table_source, tfds_source
from sspo_jax.data.problems import JsonlSource, iterate
from sspo_jax.data.sources import TfdsData

ROWS = [
    {"id": "a", "problem": "π?", "answer": "3"},
    {
        "id": "b", "problem": "p", "answer": "2\\pi", "solution": "s", "level": 3, "subject": "Algebra",
        "source": "mine", "extra": {"lang": "zh", "boxes": ["1", "2"]},
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(JSON-lines file, folder of the data set made of it)."""
    tfds_builder = pytest.importorskip("sspo_jax.data.tfds_builder")
    folder = tmp_path_factory.mktemp("tfds")
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    builder = tfds_builder.ProblemBuilder(jsonl={"train": path}, data_dir=folder / "data", file_format="array_record")
    builder.download_and_prepare()
    return path, str(builder.data_path)


def test_the_builder_gives_back_every_field(prepared):
    path, folder = prepared
    source = tfds_source(folder, split="train")
    found = {problem.id: problem for problem in iterate(source)}
    wanted = {problem.id: problem for problem in iterate(JsonlSource(path))}
    assert source.name == "sspo_problems_train"
    assert found["b"] == wanted["b"]
    assert found["a"].problem == "π?"
    assert (found["a"].level, found["a"].solution, found["a"].extra) == (None, None, {})
    assert tfds_source(folder, split="train").digest == source.digest


def test_tensorflow_is_not_needed(prepared):
    tfds_source(prepared[1], split="train")
    assert "tensorflow" not in sys.modules


def test_the_config_opens_and_takes_the_first(prepared):
    assert len(TfdsData(name=prepared[1], split="train").open()) == 2
    assert len(TfdsData(name=prepared[1], split="train", first=1).open()) == 1


def test_an_unknown_split_lists_the_known(prepared):
    with pytest.raises(ValueError, match="split 'test'; expected train"):
        tfds_source(prepared[1], split="test")


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="no such data set in tensorflow-datasets"):
        tfds_source("no_such_set_of_problems", split="test")


def test_gsm8k_of_the_catalogue_is_found_though_it_must_be_imported_first(tmp_path, monkeypatch):
    """Its builder is there; the download is stopped, since tests have no network."""
    import tensorflow_datasets as tfds

    def no_network(self, *arguments, **keywords):
        raise ConnectionError("no network in tests\nmore lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(OSError, match=r"tfds:gsm8k: not in .*no network in tests\): prepare it"):
        tfds_source("gsm8k", split="test", data_dir=str(tmp_path))


def test_gsm8k_is_prepared_and_read_without_tensorflow(tmp_path, monkeypatch):
    """All but the download itself: files as OpenAI publishes them become array_record, and that becomes problems."""
    import tensorflow_datasets as tfds

    def files(self, urls):
        for name in urls:
            row = {"question": f"How many in {name}?", "answer": "3 + 4 = <<3+4=7>>7\n#### 1,007"}
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        return {name: tmp_path / f"{name}.jsonl" for name in urls}

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", files)
    (problem,) = iterate(TfdsData(name="gsm8k", split="test", data_dir=str(tmp_path / "sets")).open())
    assert (problem.problem, problem.answer, problem.source) == ("How many in test?", "1007", "gsm8k_test")
    assert list((tmp_path / "sets" / "gsm8k").rglob("*.array_record*"))
    assert "tensorflow" not in sys.modules


def test_gsm8k_rows():
    table = [{"question": b"How many?", "answer": b"3 + 4 = <<3+4=7>>7 so\n#### 1,007", "short_answer": b"1,007"}]
    (problem,) = iterate(table_source(table, name="gsm8k_test"))
    assert (problem.problem, problem.answer) == ("How many?", "1007")
    assert problem.solution == "3 + 4 = <<3+4=7>>7 so"


def test_math_rows():
    rows = [
        {"problem": "p", "solution": r"so $\boxed{\frac{1}{2}}$", "level": "Level 3", "type": "Algebra"},
        {"problem": "q", "solution": r"\boxed{1} and \boxed{{2}}", "level": "Level ?", "answer": ""},
    ]
    one, two = iterate(table_source(rows, name="math"))
    assert (one.answer, one.level, one.subject) == (r"\frac{1}{2}", 3, "Algebra")
    assert (two.answer, two.level) == ("{2}", None)


@pytest.mark.parametrize(("text", "box"), [("none", ""), (r"\boxed{open", ""), (r"\boxed{a}\boxed{b{c}}", "b{c}")])
def test_the_last_box(text, box):
    assert last_boxed(text) == box


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "no rows"),
        ([{"text": "x"}], "columns text; expected one of: id, problem, answer"),
        ([{"problem": "p", "solution": "no box"}], "math: row 0: no `answer`"),
    ],
)
def test_tables_that_are_no_problems_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        table_source(table, name="math")


def test_a_hub_data_set_needs_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        hub_source("a/b", split="test")


def test_a_hub_data_set_is_read_through_the_package(monkeypatch):
    import types

    def load_dataset(name, config, split):
        assert (name, config) == ("a/MATH-x", None)
        if split == "gone":
            raise ConnectionError("cannot reach it\nlong advice")
        return [
            {"problem": "p", "solution": "s", "answer": "4", "unique_id": "test/1", "level": 2, "subject": "Algebra"}
        ]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    (problem,) = iterate(hub_source("a/MATH-x", split="test"))
    assert (problem.id, problem.answer, problem.level, problem.source) == ("test/1", "4", 2, "math_x_test")
    with pytest.raises(OSError, match=r"cannot be loaded \(cannot reach it\)"):
        hub_source("a/MATH-x", split="gone")
