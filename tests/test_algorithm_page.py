"""docs/algorithm.md names functions by line: each link must lead to where the function is defined.

`python tests/test_algorithm_page.py` writes the line numbers anew.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "algorithm.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([\w/]+\.py)#L(\d+)\)")


def line_of(name: str, file: str) -> int:
    """Where `name` is defined in `file`; it must be there exactly once."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [n for n, line in enumerate(lines, 1) if re.match(rf"\s*(?:(?:def|class) {name}\b|{name} = )", line)]
    assert len(found) == 1, f"{name} is defined {len(found)} times in {file}"
    return found[0]


def renewed(text: str) -> str:
    """The page with true line numbers."""
    return LINK.sub(lambda m: f"[`{m[1]}`](../{m[2]}#L{line_of(m[1], m[2])})", text)


def test_every_link_leads_to_its_function():
    text = PAGE.read_text(encoding="utf-8")
    links = LINK.findall(text)
    assert len(links) == text.count(".py#L") > 25
    wrong = [
        f"{name}: line {line} of {file}, is {line_of(name, file)}"
        for name, file, line in links
        if int(line) != line_of(name, file)
    ]
    assert not wrong, f"{wrong}: run python tests/test_algorithm_page.py"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
