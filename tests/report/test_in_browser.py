"""The page in a real browser, driven through its debugging pipe: no errors, and hover, filters and tabs work."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from sspo_jax.report.page import write_report
from sspo_jax.report.reader import RunReader

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


class Browser:
    """A page of headless Chromium, by the DevTools protocol over file descriptors 3 and 4."""

    def __init__(self, profile: pathlib.Path):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def arrange() -> None:
            spare = [os.dup(theirs_in), os.dup(theirs_out)]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        assert BROWSER is not None
        self._process = subprocess.Popen(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                "--proxy-server=127.0.0.1:9",  # whatever is asked of the network fails, and is logged
                f"--user-data-dir={profile}", "--window-size=1400,1000", "about:blank",
            ],
            preexec_fn=arrange, close_fds=False, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(raw)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        os.write(
            self._out, json.dumps(request | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            message = self._message()
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        is_error = message.get("method") == "Runtime.exceptionThrown" or (
            message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
        )
        if is_error or (message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error"):
            self.errors.append(json.dumps(params)[:500])

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def settle(self, seconds: float = 0.5) -> None:
        self.run(f"new Promise((done) => setTimeout(done, {1000 * seconds}))")

    def point(self, selector: str, *, click: bool = False) -> None:
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(() => {{ const r = {place}.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle(0.2)

    def picture(self, file: pathlib.Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def pictures(pytestconfig: pytest.Config) -> pathlib.Path:
    return pytestconfig.rootpath / ".cache" / "artifacts"


def test_one_run(browser: Browser, run: pathlib.Path, tmp_path: pathlib.Path, pictures: pathlib.Path):
    page = write_report([RunReader(run)], tmp_path / "report.html")
    browser.errors.clear()
    browser.call("Page.navigate", url=page.as_uri())
    browser.settle(2)
    assert browser.run("document.querySelectorAll('.js-plotly-plot').length") >= 4  # those in view are drawn
    assert browser.run("document.querySelectorAll('.answer').length") == 3
    roofline = browser.run("document.getElementById('roofline').innerText")
    for words in ("Share of the roofline, steps 3 to 4", "1 x made up", "25.0 %", "memory", "the host"):
        assert words in roofline, words
    browser.point('[data-chart="2"] .nsewdrag')
    assert "%" in browser.run("document.querySelector('[data-chart=\"2\"] .hoverlayer').textContent")
    browser.run(
        "{ const s = document.getElementById('smoothing'); s.value = 0.8; s.dispatchEvent(new Event('input')); }"
    )
    assert browser.run("document.querySelector('#smoothing + output').value") == "0.8"
    browser.run(
        "{ const a = document.getElementById('axis'); a.value = 'hours'; a.dispatchEvent(new Event('change')); }"
    )
    browser.picture(pictures / "report_run.png")

    browser.run("document.querySelector('.answer button').click()")  # to the clause that was clipped most
    browser.settle(0.3)
    assert browser.run("document.querySelector('.clause.kept').textContent") == " so it is </script>5.▲"
    assert browser.run("document.querySelector('.clause.kept').getBoundingClientRect().top") > 0
    browser.run("document.querySelector('.clause.kept').click()")
    assert browser.run("document.querySelectorAll('.response').length") == 4
    assert browser.run("document.getElementById('step').value") == "10"  # where the most clipped clause is
    assert browser.run("document.getElementById('epochs').offsetParent") is None
    browser.point(".clause.high")
    detail = browser.run("document.getElementById('detail').innerText")
    for words in (
        "clause 2 of 2",
        "0.12, 1.127",
        "0.98 to 1.02",
        "clipped at the upper bound",
        "kept",
        "clipped, with the whole",
    ):
        assert words in detail, words
    choose = "{{ const s = document.getElementById('{0}'); s.value = '{1}'; s.dispatchEvent(new Event('{2}')); }}"
    shown = "document.querySelectorAll('.response').length"
    for name, value, event, expected in (
        ("show", "clipped", "change", 2), ("show", "low", "change", 1), ("show", "all", "change", 4),
        ("reward", "0", "change", 2), ("reward", "", "change", 4), ("search", "p1", "input", 2),
        ("search", "", "input", 4),
    ):  # fmt: skip
        browser.run(choose.format(name, value, event))
        assert browser.run(shown) == expected, (name, value)
    browser.run(choose.format("order", "ratio", "change"))
    assert "1.127" in browser.run("document.querySelector('.response .meta').innerText")
    browser.point(".clause.high", click=True)  # keeps it, until the responses are drawn again
    browser.run(choose.format("show", "low", "change"))
    browser.point(".clause.low")
    assert "clipped at the lower bound" in browser.run("document.getElementById('detail').innerText")
    browser.run("location.hash = 'run'")
    browser.settle(0.2)
    browser.run("document.querySelector('.answer button').click()")  # whatever is filtered, the clause is shown
    browser.settle(0.3)
    assert browser.run("document.querySelector('.clause.kept').textContent") == " so it is </script>5.▲"
    for by in ("entropy", "advantage", "bounds", "ratio"):
        browser.run(choose.format("colour", by, "change"))
    browser.picture(pictures / "report_clauses.png")

    browser.point("[data-page=problems]", click=True)
    assert browser.run("document.querySelectorAll('#page-problems tbody tr').length") >= 6
    browser.picture(pictures / "report_problems.png")
    assert not browser.errors


def test_two_runs(
    browser: Browser, run: pathlib.Path, other: pathlib.Path, tmp_path: pathlib.Path, pictures: pathlib.Path
):
    page = write_report([RunReader(run), RunReader(other)], tmp_path / "two.html")
    browser.errors.clear()
    browser.call("Page.navigate", url=page.as_uri())
    browser.settle(2)
    assert browser.run("document.querySelectorAll('#differences tbody tr').length") == 2
    assert browser.run("document.querySelector('.js-plotly-plot').data.length") >= 2
    browser.picture(pictures / "report_two_runs.png")
    browser.point("[data-page=clauses]", click=True)
    assert browser.run("document.getElementById('clause-run').options.length") == 2
    assert not browser.errors
