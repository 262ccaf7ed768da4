"""The site: links work in it as on a code host, the navigation is complete, and what has no docstring is named."""

import os
import pathlib
import re
import subprocess
import sys

import griffe
import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
import docs_site

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_links():
    text = (
        "[a](../README.md) [b](../sspo_jax/losses/sspo.py#L36) [c](metrics.md#kl) [d](https://e.f) [g](none.md) x[i](j)"
    )
    written = docs_site.rewritten(text, path="docs/algorithm.md", uri="algorithm.md")
    assert written == (
        "[a](project/README.md) [b](source/sspo_jax/losses/sspo.py.md#L36) [c](metrics.md#kl) [d](https://e.f) "
        "[g](none.md) x[i](j)"
    )
    written = docs_site.rewritten("[a](docs/metrics.md) [b](LICENSE)", path="README.md", uri="project/README.md")
    assert written == "[a](../metrics.md) [b](../source/LICENSE.md)"
    assert docs_site.linked("docs/study.md", "[a](study/default_range.md) [b](no)") == ["docs/study/default_range.md"]


def test_a_listing_numbers_its_lines():
    page = docs_site._listing("a.py", 'x = """a\n\nb"""\ny = 1 < 2\n')
    assert re.findall(r'id="(L\d)"', page) == ["L1", "L2", "L3", "L4"]
    assert "&lt;" in page


def test_everything_public_has_a_docstring():
    assert not docs_site.undocumented()


def test_what_has_none_is_named(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""M."""\nfrom os import path\nimport abc\n\nclass A:\n    """A."""\n    def f(self):\n        """F."""\n'
        "    def g(self): ...\n    def _h(self): ...\n\nclass B(A):\n    def f(self): ...\n\ndef j(): ...\n"
    )
    found: list[str] = []
    docs_site._look(griffe.load("a", search_paths=[str(tmp_path)]), found)
    assert found == ["a.A.g", "a.B", "a.j"]


def test_examples_are_fenced():
    value = docs_site.EXAMPLE.sub(lambda match: f"<{match[0]}>", "A.\n\n>>> f([1])\n[1]\n\nB.\n\n>>> g()")
    assert value == "A.\n\n<>>> f([1])\n[1]>\n\nB.\n\n<>>> g()>"


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return {entry}
        entries = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(pages, entries))

    docs = ROOT / "docs"
    assert pages(CONFIG["nav"]) == {str(path.relative_to(docs)) for path in docs.rglob("*.md")}


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert not [path for path, text in pages.items() if re.search(r'<(script|link)[^>]*(src|href)="(https?:)?//', text)]
    assert 'id="sspo_jax.losses.sspo_loss"' in pages[tmp_path / "api" / "losses.html"]
    assert "sspo_loss" in (tmp_path / "search" / "search_index.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_broken_link_fails(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](none.md)\n")
    kept = {key: CONFIG[key] for key in ("validation", "docs_dir", "markdown_extensions")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept | {"site_name": "a"}))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "none.md" in result.stderr
