"""The HTML report in a real browser: it loads from the disk without a network and without console errors."""

import re
import shutil
import struct
import subprocess

import pytest

from sspo_jax.evaluation.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_report_renders(tmp_path, pytestconfig, made_up):
    evaluation, rows, problems = made_up.evaluation_of(
        {
            "aime24": made_up.draw(0, 30, 8, 0.2),
            "amc23": made_up.draw(1, 40, 8, 0.6),
            "math500": made_up.draw(2, 500, 2, 0.8),
        }
    )
    write_report(tmp_path, evaluation, rows, problems)
    artifacts = pytestconfig.rootpath / ".cache" / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    picture = artifacts / "report.png"
    picture.unlink(missing_ok=True)

    def browse(*what: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--enable-logging=stderr",
                "--proxy-server=127.0.0.1:9",  # whatever it asked the network for would fail, and be logged
                f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,1600", *what,
                (tmp_path / "report.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    shown = browse(f"--screenshot={picture}")
    assert not re.findall(r".*CONSOLE.*", shown.stderr)
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert struct.unpack(">II", header[16:24]) == (1100, 1600)

    page = browse("--dump-dom").stdout
    assert page.count("<i style=") == 570
    rows_of_scores = re.findall(r"<tr", page[page.index('id="scores"') : page.index("</table>")])
    assert len(rows_of_scores) == 1 + 3 + 1
    for scores in evaluation.sets:
        assert f"{100 * scores.accuracy.value:.1f}" in page
