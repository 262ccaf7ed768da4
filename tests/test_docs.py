"""The documentation is complete and its links lead somewhere; CI and hooks call what exists."""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md"))]
HISTORY = re.compile(
    r"\basked for and\b|\bwas asked for\b|later fresh clone|\bsince freed\b|(?<!vLLM )\bissue #?\d", re.IGNORECASE
)


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[[\w.]+\]\(([\w.]+)\) \| (.+) \|$", index, flags=re.MULTILINE))
    assert set(rows) == {page.name for page in PAGES} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_it_is_for(page):
    title, purpose, *_ = page.read_text(encoding="utf-8").split("\n\n", 2)
    assert title.startswith("# ")
    assert purpose[0] not in "#|<" or page.name == "README.md"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    assert not HISTORY.findall(text)


@pytest.mark.parametrize("word", ["subsentence", "slot", "column", "clock", "group", "minibatch", "level"])
def test_the_glossary_has(word):
    assert f"\n**{word}**: " in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_the_workflow_calls_targets_of_the_makefile():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    jobs = workflow["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == ["make lint", "make ${{ matrix.target }}"]
    matrix = jobs["test"]["strategy"]["matrix"]["include"]
    assert {"lint", *(entry["target"] for entry in matrix)} <= targets
    assert [entry["python"] for entry in matrix] == ["3.11", "3.12"]


def test_hooks_call_the_tools_of_the_environment():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    called = [hook["entry"].split()[0] for hook in hooks]
    assert called == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/basedpyright"]
    assert all(hook["language"] == "system" for hook in hooks)


def test_the_citation_names_this_version_and_the_paper():
    from sspo_jax import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["references"][0]["url"].endswith("2511.04256")
